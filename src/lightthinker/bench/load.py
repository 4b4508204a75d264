"""Sends requests as they would arrive, many at once, within a limit of time.

Arrivals: gaps are gamma distributed with the mean of the rate; burstiness 1 is a Poisson process,
below 1 comes in bursts, above is more even (vLLM's definition). An infinite rate sends all at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from lightthinker.bench.send import ENDPOINTS, RequestResult, body_of, send
from lightthinker.bench.workload import BenchRequest
from lightthinker.client import api_base, auth_headers, refusal
from lightthinker.errors import ConfigError, RequestError, suggestion

CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """How to send.

    Attributes:
        base_url: The server, with or without `/v1`.
        model: Served name; None is the server's first.
        backend: `openai-chat` or `openai` (text completions).
        request_rate: Requests per second; infinite sends all at once.
        burstiness: Shape of the arrivals; 1 is Poisson.
        max_concurrency: Most requests in flight; None is no limit.
        max_seconds: After this long everything unfinished is abandoned and counted as failed.
        num_warmups: Requests sent before measuring.
        seed: Draws the arrivals.
        extra_body: Fields added to every request.
    """

    base_url: str
    model: str | None = None
    backend: str = "openai-chat"
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    max_seconds: float = 600.0
    num_warmups: int = 1
    seed: int = 0
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backend not in ENDPOINTS:
            raise ConfigError(
                f"Unknown backend {self.backend!r}; there are {', '.join(ENDPOINTS)}."
                f"{suggestion(self.backend, ENDPOINTS)}"
            )
        for name in ("request_rate", "burstiness", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency is {self.max_concurrency}; it must be at least 1.")
        if self.num_warmups < 0:
            raise ConfigError(f"num_warmups is {self.num_warmups}; it must be at least 0.")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run yields: one result per request, in order, and the seconds it took."""

    model: str
    results: list[RequestResult]
    duration: float


def arrival_times(load: Load, count: int) -> list[float]:
    """Return when each request is sent, in seconds from the start."""
    if math.isinf(load.request_rate):
        return [0.0] * count
    rng = Random(f"arrivals/{load.seed}")
    scale = 1 / (load.request_rate * load.burstiness)
    moments, now = [], 0.0
    for _ in range(count):
        moments.append(now)
        now += rng.gammavariate(load.burstiness, scale)
    return moments


async def run_load(load: Load, requests: Sequence[BenchRequest]) -> Measured:
    """Send all requests and wait for their ends.

    Raises:
        RequestError: The server cannot be reached, or the first request already fails.
    """
    import httpx

    async with httpx.AsyncClient(
        base_url=api_base(load.base_url),
        headers=auth_headers(),
        timeout=httpx.Timeout(load.max_seconds, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None),
    ) as client:
        model = load.model or await _first_model(client)
        endpoint = ENDPOINTS[load.backend]
        bodies = [
            body_of(request, model=model, backend=load.backend, extra=load.extra_body)
            for request in requests
        ]
        for body in bodies[: load.num_warmups]:
            warm = await send(client, endpoint, body)
            if not warm.success:
                raise RequestError(f"The first request failed: {warm.error}")
        gate = asyncio.Semaphore(load.max_concurrency or len(bodies))
        results = [RequestResult(error="not finished in time") for _ in bodies]

        async def one(index: int) -> None:
            async with gate:
                results[index] = await send(client, endpoint, bodies[index])

        started = time.perf_counter()
        await _all_within(load.max_seconds, one, arrival_times(load, len(bodies)), started)
        return Measured(model=model, results=results, duration=time.perf_counter() - started)


async def _all_within(limit: float, one: Any, moments: Sequence[float], started: float) -> None:
    """Start `one(i)` at each moment; at the limit cancel what still runs."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.timeout(limit):
            for index, moment in enumerate(moments):
                await asyncio.sleep(max(0.0, started + moment - time.perf_counter()))
                tasks.add(asyncio.create_task(one(index)))
            await asyncio.gather(*tasks)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_model(client: Any) -> str:
    import httpx

    try:
        response = await client.get("models")
    except httpx.HTTPError as error:
        raise RequestError(f"{client.base_url} cannot be reached: {error}") from error
    if response.status_code != 200:
        raise refusal(response.status_code, response.content)
    cards = response.json()["data"]
    if not cards:
        raise RequestError(f"{client.base_url} serves no model.")
    return str(cards[0]["id"])
