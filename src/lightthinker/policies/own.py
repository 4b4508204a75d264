"""A policy of one's own, in a file of one's own: `my_policy.py:budget=256` is a method like others.

The file is Python and is run, alone: its folder is not on the path. It defines one policy, a
dataclass derived from `Budgeted`; of several one is named, `my_policy.py#KeepEven:budget=256`.
Nothing is registered: the name says where the class is, so it works in every process of an
evaluation.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lightthinker.errors import RequestError, suggestion
from lightthinker.policies.budget import Budgeted

_SUFFIX = ".py"


def is_own(name: str) -> bool:
    """Return whether a method's name says that its policy is in a file."""
    return name.partition("#")[0].endswith(_SUFFIX)


def own_label(name: str) -> str:
    """Return what a table calls such a method: the class if it is named, else the file's stem."""
    file, _, chosen = name.partition("#")
    return chosen or Path(file).stem


def load_policy(name: str) -> tuple[type[Any], str]:
    """Return the policy class that `FILE.py` or `FILE.py#CLASS` names, and the file's sha256.

    Raises:
        RequestError: There is no such file, it fails, or it defines no such policy.
    """
    file, _, chosen = name.partition("#")
    path = Path(file)
    if not path.is_file():
        raise RequestError(f"There is no file {file} with a cache policy in {Path.cwd()}.")
    source = path.read_bytes()
    policies = _policies(path.resolve(), file, source)
    if not policies:
        raise RequestError(
            f"{file} defines no policy: a dataclass derived from "
            "lightthinker.policies.budget.Budgeted with name, observation, num_protected and keep "
            "(docs/policies.md)."
        )
    if not chosen and len(policies) > 1:
        raise RequestError(
            f"{file} defines {', '.join(policies)}; name one, as in {file}#{next(iter(policies))}."
        )
    if chosen and chosen not in policies:
        raise RequestError(
            f"{file} defines no policy {chosen!r}, but {', '.join(policies)}."
            f"{suggestion(chosen, policies)}"
        )
    policy = policies[chosen] if chosen else next(iter(policies.values()))
    return policy, hashlib.sha256(source).hexdigest()


@cache
def _policies(path: Path, written: str, source: bytes) -> dict[str, type[Any]]:
    """Run a file's content; a changed file is run anew, an unchanged one only once."""
    digest = hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()
    module = ModuleType(f"lightthinker_policy_{digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # Where dataclasses look their annotations up.
    try:
        exec(compile(source, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise RequestError(f"{written} fails: {type(error).__name__}: {error}") from error
    found = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, Budgeted)
        and kind.__module__ == module.__name__
    }
    whole = {name: kind for name, kind in found.items() if not _missing(kind)}
    for name, kind in (whole or found).items():
        _check(kind, f"{written}: class {name}")
    return whole


def _check(kind: type[Any], where: str) -> None:
    if missing := _missing(kind):
        raise RequestError(f"{where} lacks {', '.join(sorted(missing))} (docs/policies.md).")
    if "__dataclass_params__" not in vars(kind):
        raise RequestError(f"{where} must be a @dataclass(frozen=True, kw_only=True).")


def _missing(kind: type[Any]) -> set[str]:
    """What a class still lacks to be a policy; others may derive from it."""
    return {*kind.__abstractmethods__, *({"observation", "keep"} - {*dir(kind)})}
