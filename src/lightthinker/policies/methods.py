"""Names of methods -> how to run them: `h2o:budget=256` as the command line and results write it.

A method is a way to run one checkpoint: full chain-of-thought, the compression that it was trained
for, or a cache policy, which may stand in a file of the user's own (`own.py`). LightThinker at
thought or token level and AnLLM are settings of a checkpoint and cannot be chosen afterwards;
naming one asks that the checkpoint be that.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from lightthinker.compression import CompressionConfig
from lightthinker.engine.policy import CachePolicy
from lightthinker.errors import RequestError, suggestion
from lightthinker.policies.h2o import H2O
from lightthinker.policies.own import is_own, load_policy
from lightthinker.policies.r_kv import RKV
from lightthinker.policies.random_eviction import RandomEviction
from lightthinker.policies.sepllm import SepLLM
from lightthinker.policies.snapkv import SnapKV
from lightthinker.policies.streaming_llm import StreamingLLM
from lightthinker.policies.tova import TOVA

POLICIES: dict[str, type[Any]] = {
    "streaming_llm": StreamingLLM,
    "sepllm": SepLLM,
    "h2o": H2O,
    "r_kv": RKV,
    "snapkv": SnapKV,
    "tova": TOVA,
    "random": RandomEviction,
}
"""Policy classes by name."""


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A method that is a setting of the checkpoint.

    Attributes:
        enabled: Whether triggers compress.
        summary: What it does, for people.
        method: What the checkpoint must have been trained as; None: anything.
        options: Compression settings that a run may change, and their defaults; None: the
            checkpoint's own.
    """

    enabled: bool
    summary: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


COMPRESSIONS: dict[str, Compression] = {
    "full_cot": Compression(enabled=False, summary="full chain-of-thought: nothing is freed"),
    "lightthinker": Compression(
        enabled=True, summary="compression as the checkpoint was trained for it"
    ),
    "lightthinker_thought": Compression(
        enabled=True, method="thought", summary="a thought ends at the trigger"
    ),
    "lightthinker_token": Compression(
        enabled=True, method="token", summary="a thought ends after so many tokens"
    ),
    "anllm": Compression(enabled=True, method="anllm", summary="a thought ends at its anchor"),
    "retention": Compression(
        enabled=True,
        summary="the last thoughts stay in full for a while",
        options={"retain_thoughts": 1},
    ),
    "gists_blanked": Compression(
        enabled=True, summary="control: gists are dropped too", options={"blank_gists": True}
    ),
}
"""Methods that are settings of the checkpoint, by name."""


@dataclass(frozen=True, kw_only=True)
class ResolvedMethod:
    """How to run a method.

    Attributes:
        name: Its name, without options.
        compression: For `SamplingParams.compression`: whether triggers compress.
        policy: For `SamplingParams.policy`; None for full chain-of-thought and compression.
        settings: Every setting of it: a policy's fields, or the compression settings it changes.
        trained_as: The compression method that the checkpoint must have been trained for, if any.
        file_sha256: Digest of the file that defines the policy, if it is the user's own.
    """

    name: str
    compression: bool | None
    policy: CachePolicy | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    trained_as: str | None = None
    file_sha256: str | None = None

    def compression_config(self, saved: CompressionConfig | None) -> CompressionConfig | None:
        """Return the compression settings to run a checkpoint with.

        Args:
            saved: The checkpoint's own settings.

        Raises:
            RequestError: The checkpoint does not compress, or was trained for another method.
        """
        if not self.compression:
            return saved
        if saved is None or saved.method == "full":
            raise RequestError(f"Method {self.name!r} needs a checkpoint trained to compress.")
        if self.trained_as is not None and saved.method != self.trained_as:
            raise RequestError(
                f"Method {self.name!r} needs a checkpoint trained with method "
                f"{self.trained_as!r}, and this one was trained with {saved.method!r}."
            )
        return dataclasses.replace(saved, **self.settings) if self.settings else saved


def method_names() -> list[str]:
    """Return the names of all methods."""
    return [*COMPRESSIONS, *POLICIES]


def parse_method(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:option=value,option=value` into its name and options.

    Raises:
        RequestError: An unknown name (with a suggestion) or an option without a value.
    """
    name, _, rest = text.strip().partition(":")
    name = name.strip()
    if name not in COMPRESSIONS and name not in POLICIES and not is_own(name):
        hint = suggestion(name, method_names())
        raise RequestError(
            f"Unknown method {name!r}; there are {', '.join(method_names())}, and FILE.py for a "
            f"policy of your own.{hint}"
        )
    options: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not key or not value:
            raise RequestError(f"Method {text!r}: {part!r} must be written as option=value.")
        if key in options:
            raise RequestError(f"Method {text!r}: option {key!r} is given twice.")
        options[key] = value
    return name, options


def split_methods(text: str) -> list[str]:
    """Split a comma-separated list of methods, whose options are separated by commas too.

    A piece that is an option (`budget=256`, without a name before it) belongs to the method on its
    left.
    """
    methods: list[str] = []
    for piece in filter(None, (p.strip() for p in text.split(","))):
        if methods and "=" in piece and ":" not in piece.partition("=")[0]:
            methods[-1] += f",{piece}"
        else:
            methods.append(piece)
    return methods


def resolve_method(text: str) -> ResolvedMethod:
    """Return how to run a method given as `name` or `name:option=value,...`.

    Raises:
        RequestError: An unknown method or option (with a suggestion), or a value out of range.

    Example:
        >>> resolve_method("streaming_llm:budget=256").policy
        StreamingLLM(budget=256, ratio=None, buffer=1, sinks=4)
    """
    name, options = parse_method(text)
    if name in COMPRESSIONS:
        method = COMPRESSIONS[name]
        hints = get_type_hints(CompressionConfig)
        changes = _converted(name, options, {key: hints[key] for key in method.options})
        return ResolvedMethod(
            name=name,
            compression=method.enabled,
            settings={**method.options, **changes},
            trained_as=method.method,
        )
    file_sha256: str | None
    if is_own(name):
        policy_class, file_sha256 = load_policy(name)
    else:
        policy_class, file_sha256 = POLICIES[name], None
    hints = get_type_hints(policy_class)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(policy_class)}
    policy = policy_class(**_converted(name, options, fields))
    return ResolvedMethod(
        name=name,
        compression=False,
        policy=policy,
        settings=dataclasses.asdict(policy),
        file_sha256=file_sha256,
    )


def describe() -> str:
    """Return a line of help for each method: name, options with their defaults."""
    lines = [f"{name}: {method.summary}" for name, method in COMPRESSIONS.items()]
    for name, policy in POLICIES.items():
        options = ", ".join(
            f.name if f.default in (None, dataclasses.MISSING) else f"{f.name}={f.default}"
            for f in dataclasses.fields(policy)
        )
        lines.append(f"{name}: {str(policy.__doc__).splitlines()[0]} Options: {options}.")
    return "\n".join(lines)


def _converted(name: str, options: dict[str, str], types_: Mapping[str, Any]) -> dict[str, Any]:
    for key in options:
        if key not in types_:
            allowed = f"its options are {', '.join(types_)}" if types_ else "it has none"
            raise RequestError(
                f"Method {name!r} has no option {key!r}; {allowed}.{suggestion(key, types_)}"
            )
    return {key: _value(name, key, text, types_[key]) for key, text in options.items()}


def _value(name: str, key: str, text: str, annotation: Any) -> Any:
    kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    try:
        if bool in kinds:
            return {"true": True, "false": False}[text.lower()]
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except (ValueError, KeyError):
        wanted = "true or false" if bool in kinds else "a number"
        wanted = "a whole number" if int in kinds and bool not in kinds else wanted
        raise RequestError(f"{name}: {key} is {text!r}; it must be {wanted}.") from None
    return text
