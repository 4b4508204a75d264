"""Settings that come from files and flags have the types that their dataclass declares.

Only plain values are checked: numbers, text, true and false, null. Knows no setting by name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from lightthinker.errors import ConfigError

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}


def check_types(kind: type, settings: Mapping[str, Any], prefix: str) -> None:
    """Raise ConfigError for a plain value of the wrong type.

    Args:
        kind: Dataclass whose annotations say what is allowed.
        settings: Values by field name; unknown names are not looked at.
        prefix: Put before the names in messages, such as `data.`.
    """
    hints = get_type_hints(kind)
    for name, value in settings.items():
        allowed = _plain_types(hints.get(name))
        if allowed and type(value) not in allowed and not _is_number_for(value, allowed):
            words = " or ".join(WORDS[one] for one in WORDS if one in allowed)
            raise ConfigError(f"{prefix}{name} is {value!r}; it must be {words}.")


def _plain_types(hint: Any) -> frozenset[type]:
    """Return the types that a hint allows, or nothing if it allows others than plain ones."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return frozenset(parts) if all(part in WORDS for part in parts) else frozenset()


def _is_number_for(value: Any, allowed: frozenset[type]) -> bool:
    return type(value) is int and float in allowed
