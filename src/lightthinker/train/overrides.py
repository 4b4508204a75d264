"""YAML as recipes write it, and `a.b=value` settings on top of it.

A setting's path names sections by their keys and items of lists by their numbers, from 0:
`data.sources.0.path=traces.jsonl`. Knows nothing of what settings mean.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from lightthinker.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as text; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=_Loader)


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Change one setting in place.

    Args:
        settings: A recipe as plain data.
        override: `a.b=value`, value in YAML; sections that are missing are made, list items not.

    Raises:
        ConfigError: It has no `=`, no valid value, or its path leads through a value that is
            neither section nor list, or to a list item that is not there.
    """
    path, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override!r} must look like trainer.learning_rate=1e-5.")
    try:
        parsed = read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    target: Any = settings
    keys = path.split(".")
    for depth, key in enumerate(keys):
        place = _place(target, key, ".".join(keys[:depth]), override)
        if depth == len(keys) - 1:
            target[place] = parsed
        elif isinstance(target, dict):
            target = target.setdefault(place, {})
        else:
            target = target[place]


def _place(target: Any, key: str, name: str, override: str) -> str | int:
    """Return what to index `target`, which the path calls `name`, with."""
    if isinstance(target, dict):
        return key
    if not isinstance(target, list):
        raise ConfigError(f"--set {override!r}: {name} is not a section.")
    if not key.isdecimal():
        raise ConfigError(
            f"--set {override!r}: {name} is a list; say which item by its number, from 0: {name}.0."
        )
    if int(key) >= len(target):
        has = f"has {len(target)} (0 to {len(target) - 1})" if target else "is empty"
        raise ConfigError(f"--set {override!r}: there is no item {key}; the list {name} {has}.")
    return int(key)
