"""A policy of one's own, in a file of one's own: `my_policy.py:budget=256` is a method like others.

The file is Python and is run. It defines one policy, a dataclass derived from `Budgeted`; of
several one is named, `my_policy.py#KeepEven:budget=256`. Nothing is registered: the name says where
the class is, so it works in every process of an evaluation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
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


def load_policy(name: str) -> type[Any]:
    """Return the policy class that `FILE.py` or `FILE.py#CLASS` names.

    Raises:
        RequestError: There is no such file, it fails, or it defines no such policy.
    """
    file, _, chosen = name.partition("#")
    policies = _policies(Path(file).resolve(), file)
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
    return policies[chosen] if chosen else next(iter(policies.values()))


def file_sha256(name: str) -> str:
    """Return a digest of the file of such a method, for the record."""
    return hashlib.sha256(Path(name.partition("#")[0]).read_bytes()).hexdigest()


@cache
def _policies(path: Path, written: str) -> dict[str, type[Any]]:
    if not path.is_file():
        raise RequestError(f"There is no file {written} with a cache policy in {Path.cwd()}.")
    module_name = f"lightthinker_policy_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "the suffix is Python's"
    assert spec.loader is not None, "the suffix is Python's"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Where dataclasses look their annotations up.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise RequestError(f"{written} fails: {type(error).__name__}: {error}") from error
    found = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Budgeted) and kind.__module__ == module_name
    }
    for name, kind in found.items():
        _check(kind, f"{written}: class {name}")
    return found


def _check(kind: type[Any], where: str) -> None:
    missing = {*kind.__abstractmethods__, *({"observation", "keep"} - {*dir(kind)})}
    if missing:
        raise RequestError(f"{where} lacks {', '.join(sorted(missing))} (docs/policies.md).")
    if "__dataclass_params__" not in vars(kind):
        raise RequestError(f"{where} must be a @dataclass(frozen=True, kw_only=True).")
