"""The gateway: what happens to requests whose replica dies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightthinker.engine.reporting import EngineStats
from lightthinker.scale.asgi import HttpRequest, Message, run_app
from lightthinker.scale.gateway import (
    MAX_ATTEMPTS,
    Forward,
    Gateway,
    ReadMetrics,
    ReplicaLostError,
)
from lightthinker.scale.metrics import merge_expositions
from lightthinker.server.metrics import Metrics

SCOPE = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [], "query_string": b""}
WAIT_S = 30


def head(kind: bytes = b"text/event-stream") -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def no_metrics() -> dict[str, str]:
    raise ReplicaLostError("2 were asked in vain.")


def call(
    forward: Forward,
    body: bytes = b"{}",
    leave: asyncio.Event | None = None,
    metrics: ReadMetrics = no_metrics,
    **scope: object,
) -> list[Message]:
    """Send one request through a gateway and return what the client got."""

    async def go() -> list[Message]:
        sent: list[Message] = []
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if inbox:
                return inbox.pop()
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        gateway = Gateway(forward, metrics, max_body_bytes=100, pause_s=0.0)
        await asyncio.wait_for(gateway({**SCOPE, **scope}, receive, send), WAIT_S)
        return sent

    return asyncio.run(go())


def dying(deaths: int, *before: Message, after: tuple[Message, ...]) -> tuple[Forward, list[int]]:
    calls: list[int] = []

    async def forward(request: HttpRequest) -> AsyncIterator[Message]:
        calls.append(1)
        for message in before if len(calls) <= deaths else after:
            yield message
        if len(calls) <= deaths:
            raise ReplicaLostError("killed")

    return forward, calls


def test_a_request_that_has_not_begun_to_stream_goes_to_another_replica() -> None:
    whole = (head(), piece(b"data: 1\n\n"), piece(b"", more=False))
    forward, calls = dying(2, head(), after=whole)

    assert call(forward) == list(whole)
    assert len(calls) == 3


def test_a_stream_that_is_lost_ends_in_an_error_event_and_without_done() -> None:
    forward, calls = dying(9, head(), piece(b"data: 1\n\n"), after=())

    sent = call(forward)

    assert len(calls) == 1
    assert sent[:2] == [head(), piece(b"data: 1\n\n")]
    event = json.loads(sent[2]["body"].decode().removeprefix("data: "))
    assert event["error"]["code"] == "replica_lost"
    assert sent[2]["more_body"] is False
    assert len(sent) == 3


def test_a_plain_answer_that_is_lost_half_way_is_not_taken_for_whole() -> None:
    forward, _ = dying(9, head(b"application/json"), piece(b'{"a":'), after=())

    with pytest.raises(ReplicaLostError):
        call(forward)


def test_without_replicas_the_answer_is_503_and_when_to_come_back() -> None:
    forward, calls = dying(99, after=())

    sent = call(forward)

    assert len(calls) == MAX_ATTEMPTS
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"2") in sent[0]["headers"]
    assert "try again" in json.loads(sent[1]["body"])["error"]["message"]


def test_a_body_that_is_too_large_is_refused() -> None:
    forward, calls = dying(0, after=())

    sent = call(forward, b"x" * 101)

    assert sent[0]["status"] == 413
    assert calls == []


def test_a_client_that_leaves_ends_the_request_on_the_replica() -> None:
    told: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"{}"
        await send(head())
        await send(piece(b"data: 1\n\n"))
        leave.set()
        told.append((await receive())["type"])

    leave = asyncio.Event()

    sent = call(lambda request: run_app(application, request), leave=leave)

    assert told == ["http.disconnect"]
    assert len(sent) <= 2


def test_an_application_behind_the_gateway_answers_as_without_it() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await send(head(b"application/json"))
        await send(piece(message["body"] + scope["path"].encode(), more=False))

    sent = call(lambda request: run_app(application, request), b"[1]")

    assert sent == [head(b"application/json"), piece(b"[1]/v1/x", more=False)]


def exposition(refusals: int) -> str:
    metrics = Metrics("model")
    for _ in range(refusals):
        metrics.refuse(429)
    metrics.ttft.observe(0.3)
    numbers = {field.name: 1 for field in dataclasses.fields(EngineStats)}
    return metrics.render(EngineStats(**numbers)).decode()


def test_metrics_are_those_of_all_replicas_by_name() -> None:
    texts = {"a": exposition(2), "b": exposition(5)}

    async def metrics() -> dict[str, str]:
        return texts

    forward, calls = dying(0, after=())
    sent = call(forward, metrics=metrics, method="GET", path="/metrics")

    body = sent[1]["body"].decode()
    headers = dict(sent[0]["headers"])
    assert calls == []
    assert headers[b"content-type"].startswith(b"text/plain")
    assert int(headers[b"content-length"]) == len(sent[1]["body"])
    name = "lightthinker:requests_refused_total"
    assert body.count(f"# TYPE {name} counter") == 1
    for replica, count in (("a", 2), ("b", 5)):
        labels = f'model_name="model",replica="{replica}",status="429"'
        assert f"{name}{{{labels}}} {count}.0" in body
    for text in texts.values():
        for line in text.splitlines():
            assert line.startswith("#") or line.partition("{")[0] in body


def test_one_replicas_metrics_are_its_own_but_for_the_label() -> None:
    text = exposition(3)
    merged = merge_expositions({"a": text}).decode()

    assert merged.replace(',replica="a"', "").splitlines() == text.splitlines()


def test_without_metrics_the_answer_is_503_and_says_why() -> None:
    forward, _ = dying(0, after=())

    sent = call(forward, method="GET", path="/metrics")

    assert sent[0]["status"] == 503
    assert "2 were asked in vain" in json.loads(sent[1]["body"])["error"]["message"]
