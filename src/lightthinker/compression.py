"""CompressionConfig: everything a checkpoint must remember about how it compresses.

The layout rules (what sees what) plus the tokens that carry them and the text around them. Saved
under the key `lightthinker` of a checkpoint's config.json, so the folder stays a plain Hugging Face
checkpoint. Knows no tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightthinker.checks import check_types
from lightthinker.errors import CheckpointError, ConfigError, suggestion
from lightthinker.layout import LayoutRules

CONFIG_KEY = "lightthinker"


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(LayoutRules):
    """How a checkpoint compresses its thoughts (see `LayoutRules` for the method's knobs).

    Attributes:
        trigger_token: Token that ends a thought (the paper's <w>); sampled, a training target.
        gist_tokens: The C gist tokens; the same ids for every thought. Empty: named `<|gist_1|>`
            and so on. One name: all C gists share that token.
        continue_token: Token at which the next thought's first token is read (the paper's [o]).
        recover_token: Token after which training has a thought written again from its gists;
            training only, and only with `data.recover_share`.
        separator: What the visible text shows between two thoughts, in place of `thought_suffix`
            and trigger.
        thought_suffix: Text put before the trigger, in place of a thought's trailing white space.
        reasoning_begin: Text appended to the chat template's generation prompt, where reasoning
            begins.
        reasoning_end: Text that ends reasoning; the answer follows.
        compress_answer: Whether the answer's pieces are thoughts too (the paper's recipes).
        trigger_id: Token id, set when the tokens are added to a tokenizer.
        gist_ids: Token ids, likewise.
        continue_id: Token id, likewise.
        recover_id: Token id, likewise.
    """

    trigger_token: str = "<|trigger|>"
    gist_tokens: tuple[str, ...] = ()
    continue_token: str = "<|continue|>"
    recover_token: str | None = None
    separator: str = "\n\n"
    thought_suffix: str = "\n"
    reasoning_begin: str = "<think>\n"
    reasoning_end: str = "</think>\n\n"
    compress_answer: bool = False
    trigger_id: int | None = None
    gist_ids: tuple[int, ...] = ()
    continue_id: int | None = None
    recover_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "gist_ids", tuple(self.gist_ids))
        tokens: tuple[str, ...] = tuple(self.gist_tokens) or tuple(
            f"<|gist_{i + 1}|>" for i in range(self.num_gists)
        )
        if len(tokens) == 1:
            tokens *= self.num_gists
        object.__setattr__(self, "gist_tokens", tokens)
        if len(tokens) != self.num_gists:
            raise ConfigError(
                f"compression.gist_tokens has {len(tokens)} names but compression.num_gists is "
                f"{self.num_gists}."
            )
        if self.gist_ids and len(self.gist_ids) != self.num_gists:
            raise ConfigError(
                f"compression.gist_ids has {len(self.gist_ids)} ids but compression.num_gists is "
                f"{self.num_gists}; "
                "a checkpoint can only be used with the number of gists it was trained with."
            )
        self._check_tokens()

    def _check_tokens(self) -> None:
        """Refuse one token in two roles: it would compress at every gist, or never."""
        if self.method == "full":
            return
        named = [("gist_tokens", token) for token in dict.fromkeys(self.gist_tokens)]
        named += [("trigger_token", self.trigger_token)] if self.has_trigger else []
        named += [("continue_token", self.continue_token)] if self.has_continue else []
        named += [("recover_token", self.recover_token)] if self.recover_token else []
        roles: dict[str, str] = {}
        for role, token in named:
            if not token:
                raise ConfigError(f"compression.{role} is empty; give the token a name.")
            if token in roles:
                raise ConfigError(
                    f"compression.{role} is {token!r}, which compression.{roles[token]} has "
                    "already; each needs a token of its own."
                )
            roles[token] = role

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens this method needs in the tokenizer, in the order in which they are added."""
        if self.method == "full":
            return ()
        trigger = (self.trigger_token,) if self.has_trigger else ()
        ending = (self.continue_token,) if self.has_continue else ()
        recover = (self.recover_token,) if self.recover_token else ()
        return (*trigger, *dict.fromkeys(self.gist_tokens), *ending, *recover)

    @property
    def is_resolved(self) -> bool:
        """Whether the token ids are known."""
        return self.method == "full" or (
            bool(self.gist_ids)
            and (not self.has_trigger or self.trigger_id is not None)
            and (not self.has_continue or self.continue_id is not None)
            and (self.recover_token is None or self.recover_id is not None)
        )

    @property
    def separator_id(self) -> int | None:
        """Id of the token that ends a thought, shown as the separator: trigger or anchor."""
        return self.gist_ids[0] if self.method == "anllm" and self.gist_ids else self.trigger_id

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Ids that the engine inserts and must never sample."""
        if self.method == "full":
            return ()
        banned = () if self.method == "anllm" else self.gist_ids
        inserted = (self.continue_id, self.recover_id)
        return (*banned, *(token for token in inserted if token is not None))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `from_dict` reads back."""
        out = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> CompressionConfig:
        """Build from a mapping.

        Raises:
            ConfigError: An unknown key (with a suggestion) or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for key in settings:
            if key not in known:
                raise ConfigError(f"Unknown setting compression.{key}.{suggestion(key, known)}")
        check_types(cls, settings, "compression.")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        return cls(**values)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CompressionConfig:
        """Read the settings saved in a local checkpoint's config.json.

        Raises:
            CheckpointError: There is no config.json, or it holds no settings of ours.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"No config.json in {folder}: is it a Hugging Face checkpoint folder?"
            )
        settings = json.loads(path.read_text(encoding="utf-8")).get(CONFIG_KEY)
        return cls.from_model_config({CONFIG_KEY: settings}, name=str(folder))

    @classmethod
    def from_model_config(cls, config: Any, *, name: str = "this checkpoint") -> CompressionConfig:
        """Read the settings from a transformers config (or a mapping with our key)."""
        is_mapping = isinstance(config, Mapping)
        settings = config.get(CONFIG_KEY) if is_mapping else getattr(config, CONFIG_KEY, None)
        if settings is None:
            raise CheckpointError(
                f"{name} has no '{CONFIG_KEY}' settings in its config.json: it was not trained "
                "with LightThinker. Train it first, run it with compression off, or use "
                "`lightthinker convert` for an upstream checkpoint."
            )
        return cls.from_dict(settings)
