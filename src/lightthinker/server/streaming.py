"""Server-sent events that stop the engine when the client leaves.

Invariant: whatever ends a response (its last chunk, a client that disconnects, a time-out, an
error), every engine request behind it is aborted or finished when the response is over. Slow
clients hold up only themselves: the next chunk is made from the newest state.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightthinker.server.errors import APIError, ClientDisconnectedError, as_api_error

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(separators=(",", ":")).encode


def sse(data: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + _encode(data).encode() + b"\n\n"


class EventStream(Response):
    """Sends chunks as server-sent events, and `[DONE]`.

    Args:
        chunks: JSON-ready chunks; closed when the client leaves.
        deadline: Event-loop time at which the stream is ended with an error.
        finish: Called once it is over, however it ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        *,
        deadline: float,
        finish: Callable[[], None],
        headers: dict[str, str],
    ):
        super().__init__(
            None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | headers
        )
        del self.headers["content-length"]
        self.chunks = chunks
        self.deadline = deadline
        self.finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the chunks or the client end."""
        try:
            await until_disconnect(receive, self._send(send))
        except (ClientDisconnectedError, OSError):
            return
        finally:
            self.finish()

    async def _send(self, send: Send) -> None:
        async def write(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self.deadline):
                async for chunk in self.chunks:
                    await write(sse(chunk))
        except TimeoutError:
            await write(sse(timed_out().body()))
        except OSError:
            raise
        except Exception as error:
            await write(sse(as_api_error(error).body()))
        await write(DONE, more=False)


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`; cancel it and raise ClientDisconnectedError if the client leaves first."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnectedError
    finally:
        for pending in (task, watcher):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await pending


def timed_out() -> APIError:
    """Return the error of a request that took longer than the server allows."""
    return APIError(
        408,
        "The request took longer than this server allows; ask for fewer tokens.",
        code="timeout",
        headers={"x-should-retry": "false"},
    )
