"""Errors that a user can act on. Invariants of ours are `assert`; everything here is input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LightThinkerError(ValueError):
    """Base of every error raised for something the user can change."""


class ConfigError(LightThinkerError):
    """A setting is unknown, out of range or contradicts another one."""


class CheckpointError(LightThinkerError):
    """A checkpoint lacks what is asked of it: settings, tokens, safetensors weights."""


class DataError(LightThinkerError):
    """A trace or data file cannot be used as it stands."""


class RequestError(LightThinkerError):
    """A generation request cannot be served: prompt too long, parameters out of range."""


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
