"""Sends one request and times what comes back. Knows nothing of arrivals or statistics."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightthinker.bench.workload import BenchRequest
from lightthinker.client import is_end, parse_event, refusal
from lightthinker.errors import LightThinkerError

if TYPE_CHECKING:
    import httpx

ENDPOINTS = {"openai-chat": "chat/completions", "openai": "completions"}


@dataclass(kw_only=True)
class RequestResult:
    """What happened to one request; times are in seconds.

    Attributes:
        success: Whether the answer was complete.
        error: Why not.
        started: Moment it was sent, on the clock of `time.perf_counter`.
        ttft: From sending to the first text.
        itl: Gaps between later pieces of text.
        latency: From sending to the end of the stream.
        prompt_tokens: As the server counts.
        output_tokens: As the server counts; pieces of text where it does not tell.
        costs: The `lightthinker` block of usage, from servers that send one.
    """

    success: bool = False
    error: str = ""
    started: float = 0.0
    ttft: float = 0.0
    itl: list[float] = field(default_factory=list)
    latency: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    costs: dict[str, Any] = field(default_factory=dict)

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


def body_of(
    request: BenchRequest, *, model: str, backend: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON body of a request.

    Args:
        request: What to ask.
        model: The served name.
        backend: A key of `ENDPOINTS`.
        extra: Fields to add or replace.
    """
    body: dict[str, Any] = {
        "model": model, "max_tokens": request.max_tokens, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if backend == "openai":
        body["prompt"] = request.messages[-1]["content"]
    else:
        body["messages"] = list(request.messages)
    if request.exact:
        body["ignore_eos"] = True
    return {**body, **extra}


async def send(client: httpx.AsyncClient, endpoint: str, body: Mapping[str, Any]) -> RequestResult:
    """Send a request and read its stream to the end; failures are results, too."""
    import httpx

    result = RequestResult(started=time.perf_counter())
    pieces, complete, previous = 0, False, 0.0
    try:
        async with client.stream("POST", endpoint, json=dict(body)) as response:
            if response.status_code != 200:
                raise refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                complete = complete or is_end(line)
                chunk = parse_event(line)
                if chunk is None:
                    continue
                _read_usage(result, chunk)
                if not _text(chunk):
                    continue
                now = time.perf_counter()
                if pieces == 0:
                    result.ttft = now - result.started
                else:
                    result.itl.append(now - previous)
                pieces, previous = pieces + 1, now
    except (httpx.HTTPError, LightThinkerError, json.JSONDecodeError) as error:
        result.error = str(error) or type(error).__name__
        return result
    result.latency = time.perf_counter() - result.started
    result.output_tokens = result.output_tokens or pieces
    result.success = complete and pieces > 0
    if not result.success:
        result.error = "no text came" if complete else "the stream ended early"
    return result


def _read_usage(result: RequestResult, chunk: Mapping[str, Any]) -> None:
    usage = chunk.get("usage") or {}
    result.prompt_tokens = usage.get("prompt_tokens") or result.prompt_tokens
    result.output_tokens = usage.get("completion_tokens") or result.output_tokens
    result.costs = usage.get("lightthinker") or result.costs


def _text(chunk: Mapping[str, Any]) -> str:
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        parts = (delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content"))
        if text := "".join(part for part in (*parts, choice.get("text")) if part):
            return text
    return ""
