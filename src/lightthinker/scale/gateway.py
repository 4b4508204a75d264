"""The front door of several replicas: a request outlives the replica that had it.

Until the first byte of an answer was sent, a request whose replica dies goes to another one;
generating twice harms nobody. After that it cannot: a stream then ends in an error event in
OpenAI's form, and without [DONE], so that no client takes a part for the whole.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from lightthinker.scale.asgi import HttpRequest, Message, Receive, Scope, Send, read_request

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
RETRY_AFTER_S = 2
EVENT_STREAM = b"text/event-stream"
Forward = Callable[[HttpRequest], AsyncIterator[Message]]
ReadMetrics = Callable[[], Awaitable[Mapping[str, str]]]


class ReplicaLostError(Exception):
    """The replica that had a request is gone."""


class Gateway:
    """An ASGI application that forwards.

    Args:
        forward: Runs a request on some replica and yields ASGI messages; raises
            `ReplicaLostError` when that replica is gone.
        metrics: Returns every replica's name and exposition; raises `ReplicaLostError` when none
            answers.
        max_body_bytes: Largest request body.
        pause_s: Wait before another attempt, so that the dead replica is no longer chosen.
    """

    def __init__(
        self, forward: Forward, metrics: ReadMetrics, *, max_body_bytes: int, pause_s: float = 0.2
    ):
        self.forward = forward
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.pause_s = pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request = await read_request(scope, receive, self.max_body_bytes)
        if request is None:
            limit = f"The request body may have at most {self.max_body_bytes} bytes."
            await _refuse(send, 413, limit)
            return
        answering = asyncio.create_task(self._answer(request, send))
        leaving = asyncio.create_task(_disconnect(receive))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not answering.done():
            answering.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
        if not answering.cancelled() and (error := answering.exception()):
            raise error

    async def _answer(self, request: HttpRequest, send: Send) -> None:
        if (request.scope["method"], request.scope["path"]) == ("GET", "/metrics"):
            await self._answer_metrics(send)
            return
        for attempt in range(1, MAX_ATTEMPTS + 1):
            answer = _Answer(send)
            try:
                async with aclosing(self.forward(request)) as messages:  # type: ignore[type-var]
                    async for message in messages:
                        await answer.add(message)
                return
            except ReplicaLostError:
                logger.warning("a replica was lost (attempt %d of %d)", attempt, MAX_ATTEMPTS)
                if answer.started:
                    await answer.break_off()
                    return
            await asyncio.sleep(self.pause_s * attempt)
        await _refuse(send, 503, "No replica could answer; try again.", retry=True)

    async def _answer_metrics(self, send: Send) -> None:
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        from lightthinker.scale.metrics import merge_expositions

        try:
            texts = await self.metrics()
        except ReplicaLostError as error:
            await _refuse(
                send, 503, f"The replicas did not tell their metrics: {error}", retry=True
            )
            return
        await _send(send, 200, CONTENT_TYPE_LATEST, merge_expositions(texts))


class _Answer:
    """One attempt: holds the head back until there is a body, so that it can be taken back."""

    def __init__(self, send: Send):
        self.send = send
        self.started = False
        self._head: Message | None = None
        self._is_stream = False

    async def add(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            headers = {bytes(k).lower(): bytes(v) for k, v in message.get("headers", ())}
            self._is_stream = headers.get(b"content-type", b"").startswith(EVENT_STREAM)
            return
        if self._head is not None:
            head, self._head = self._head, None
            self.started = True
            await self.send(head)
        await self.send(message)

    async def break_off(self) -> None:
        """End an answer that cannot be completed."""
        if not self._is_stream:
            raise ReplicaLostError("A replica was lost in the middle of an answer.")
        error = _error("The replica that generated this answer was lost.", "replica_lost")
        event = f"data: {json.dumps(error)}\n\n".encode()
        await self.send({"type": "http.response.body", "body": event, "more_body": False})


def _error(message: str, code: str) -> dict[str, Any]:
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return {"error": error}


async def _refuse(send: Send, status: int, message: str, *, retry: bool = False) -> None:
    body = json.dumps(_error(message, "replica_lost" if retry else "request_too_large")).encode()
    headers = [(b"retry-after", b"%d" % RETRY_AFTER_S)] if retry else []
    await _send(send, status, "application/json", body, headers)


async def _send(
    send: Send, status: int, kind: str, body: bytes, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
