"""An HTTP request as a value: run by an application elsewhere, its answer a stream of messages.

This is what lets a gateway hand a request to a replica, and to another one when that dies. Knows
ASGI, and neither Ray nor our API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
    "root_path", "headers", "client", "server",
)  # fmt: skip


@dataclass(frozen=True)
class HttpRequest:
    """A whole request: ASGI scope without what cannot travel, and body."""

    scope: dict[str, Any]
    body: bytes


async def read_request(scope: Scope, receive: Receive, max_body_bytes: int) -> HttpRequest | None:
    """Return the request with its body; None if the body is too large or the client left."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_body_bytes:
            return None
        if not message.get("more_body", False):
            break
    return HttpRequest({key: scope[key] for key in SCOPE_KEYS if key in scope}, bytes(body))


async def run_app(app: App, request: HttpRequest) -> AsyncIterator[Message]:
    """Run an application over a request and yield its messages.

    Closing the iterator is the client's leaving: the application gets a disconnect, then a moment
    to clean up.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    unread = True

    async def receive() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": request.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(dict(request.scope), receive, _put)
        finally:
            messages.put_nowait(None)

    async def _put(message: Message) -> None:
        messages.put_nowait(message)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        left.set()
        if not task.done():
            with suppress(Exception, asyncio.CancelledError):
                await asyncio.wait_for(task, timeout=1.0)
