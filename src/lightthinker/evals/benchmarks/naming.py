"""How a benchmark is named: `name[/subset][:style][@version][=path]`.

`gsm8k`, `gsm8k=path/to/test.jsonl`, `bbh/navigate`, `mmlu:chat`, `math500:r1@1`. A version that is
not the current one is an error: results with another prompt would not be comparable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lightthinker.errors import ConfigError, suggestion
from lightthinker.evals.benchmarks.prompts import DEFAULT_STYLE, STYLES

_NAME = re.compile(
    r"([^/:@=]+)(?:/([^/:@=]*))?(?::([^/:@=]*))?(?:@([^/:@=]*))?(?:=(.*))?", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class BenchmarkName:
    """A parsed name.

    Attributes:
        name: The benchmark.
        subset: One of its subsets instead of the default ones.
        style: Prompt style; None if not given.
        version: Prompt version asked for.
        path: Local file or folder instead of the hub.
    """

    name: str
    subset: str | None = None
    style: str | None = None
    version: int | None = None
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> BenchmarkName:
        """Parse a name.

        Raises:
            ConfigError: It is not of the form, or the style is unknown.
        """
        match = _NAME.fullmatch(text.strip())
        if match is None or any(part == "" for part in match.groups()):
            raise ConfigError(
                f"{text!r} does not name a benchmark; the form is "
                "name[/subset][:style][@version][=path], e.g. gsm8k:r1=test.jsonl."
            )
        name, subset, style, version, path = match.groups()
        if style is not None and style not in STYLES:
            hint = suggestion(style, STYLES)
            raise ConfigError(
                f"Unknown prompt style {style!r}; there are {', '.join(STYLES)}.{hint}"
            )
        if version is not None and not (version.isascii() and version.isdigit()):
            raise ConfigError(f"{text!r}: the prompt version {version!r} is not a whole number.")
        return cls(
            name=name, subset=subset, style=style, version=int(version) if version else None,
            path=Path(path) if path else None,
        )  # fmt: skip

    @property
    def style_or_default(self) -> str:
        """The style in which prompts are rendered."""
        return self.style or DEFAULT_STYLE
