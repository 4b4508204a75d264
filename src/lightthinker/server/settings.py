"""ServerSettings: limits, keys and switches of one server. Knows no HTTP framework."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lightthinker.errors import ConfigError

API_KEY_VARIABLE = "LIGHTTHINKER_API_KEY"

MAX_STREAM_UPDATES_PER_S = 2500.0
"""Chunks that a server writes in a second, over all its streams: at about 0.1 ms of Python each,
a quarter of a core. A single stream gets every token; 64 get about 40 chunks a second each."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server allows.

    Attributes:
        model_name: Name that clients ask for.
        api_keys: Accepted bearer tokens; empty accepts everybody.
        max_queued_requests: Requests that may wait while `max_num_seqs` sequences run; more get
            429.
        max_body_bytes: Largest request body.
        max_prompt_tokens: Longest prompt; None for what the model takes.
        max_output_tokens: Largest `max_tokens`; None for what the model takes.
        max_n: Most choices of one request, over all its prompts.
        max_stop_strings: Most stop strings of one request.
        max_stop_chars: Longest stop string.
        request_timeout_s: A request that takes longer, body and queue included, is ended.
        drain_timeout_s: How long running requests may take after SIGTERM.
        allowed_origins: Origins that browsers may call from (CORS); empty switches CORS off.
        allowed_hosts: Host names accepted in the Host header; empty accepts all.
        metrics_prefix: Put before vLLM's metric names.
    """

    model_name: str = "lightthinker"
    api_keys: tuple[str, ...] = ()
    max_queued_requests: int = 256
    max_body_bytes: int = 4 * 1024 * 1024
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_n: int = 16
    max_stop_strings: int = 16
    max_stop_chars: int = 256
    request_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    metrics_prefix: str = "vllm:"

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes", "max_n", "max_stop_strings", "max_stop_chars", "request_timeout_s",
        ):  # fmt: skip
            _check(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        for name in ("max_queued_requests", "drain_timeout_s"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("max_prompt_tokens", "max_output_tokens"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "greater than 0, or left out")
        _check(all(self.api_keys), "api_keys", "an empty key", "non-empty")


def read_api_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of a file (one a line, `#` comments) and of LIGHTTHINKER_API_KEY.

    Raises:
        ConfigError: The file cannot be read or holds no key.
    """
    keys: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the API keys in {file}: {error}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{file} holds no API key; write one key a line.")
    variable = os.environ.get(API_KEY_VARIABLE, "").strip()
    return (*keys, variable) if variable else tuple(keys)


def _check(ok: bool, field: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{field} is {value!r}; it must be {allowed}.")
