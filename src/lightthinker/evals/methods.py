"""Methods by name, and the budgets of those that are matched to LightThinker.

A method is a switch of compression plus changes to the checkpoint's compression settings; with
changes it gets an engine of its own over the same weights. Knows no problems and no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from lightthinker.engine.engine import LLMEngine
    from lightthinker.engine.llm import LLM


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to run a checkpoint.

    Attributes:
        name: Key in results.
        compression: Whether triggers compress.
        changes: Fields of the checkpoint's CompressionConfig to replace.
    """

    name: str
    compression: bool
    changes: Mapping[str, Any] = field(default_factory=dict)

    def params(self, sampling: SamplingParams) -> SamplingParams:
        """Return how this method samples."""
        return dataclasses.replace(sampling, compression=self.compression)

    def check(self, llm: LLM) -> None:
        """Refuse a checkpoint that cannot run this method.

        Raises:
            ConfigError: It has no compression to switch on.
        """
        if self.compression and (llm.compression is None or llm.compression.method == "full"):
            raise ConfigError(f"Method {self.name!r} needs a checkpoint trained with LightThinker.")

    def engine(self, llm: LLM) -> LLMEngine:
        """Return the engine that runs this method: the LLM's own unless settings change."""
        self.check(llm)
        if not self.changes:
            return llm.engine
        from lightthinker.engine.engine import LLMEngine

        assert llm.compression is not None
        compression = dataclasses.replace(llm.compression, **self.changes)
        engine = llm.engine
        return LLMEngine(
            engine.runner.model, llm.tokenizer, compression, config=engine.config,
            sampler=engine.sampler,
        )  # fmt: skip


METHODS = {
    method.name: method
    for method in (
        Method(name="full_cot", compression=False),
        Method(name="lightthinker", compression=True),
        Method(name="gists_blanked", compression=True, changes={"blank_gists": True}),
    )
}


def find_methods(names: Sequence[str]) -> list[Method]:
    """Return methods by name.

    Raises:
        ConfigError: An unknown name.
    """
    for name in names:
        if name not in METHODS:
            hint = suggestion(name, METHODS)
            raise ConfigError(f"Unknown method {name!r}; there are {', '.join(METHODS)}.{hint}")
    return [METHODS[name] for name in dict.fromkeys(names)]
