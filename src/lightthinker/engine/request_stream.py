"""RequestStream: one request's newest state, handed from the engine's thread to one reader.

Invariant: it holds at most one undelivered state. Lives in the reader's event loop; `deliver`,
`accept` and `fail` are posted there. Knows no engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from lightthinker.engine.outputs import RequestOutput
from lightthinker.errors import LightThinkerError


class EngineBusyError(LightThinkerError):
    """The queue is full; the request was not taken and can be sent again later."""


class EngineStoppedError(LightThinkerError):
    """The engine takes no requests any more: it is draining or has been shut down."""


class EngineDeadError(RuntimeError):
    """A step failed; what was running is lost and the process has to be restarted."""


class RequestAbortedError(RuntimeError):
    """The request was ended from outside (a drain that ran out of time) before it finished."""


class RequestStream:
    """The outputs of one request, for one reader.

    Iterate over it for its states. Whoever leaves before the end calls `abort`, as
    `AsyncLLM.generate` does.
    """

    def __init__(
        self,
        request_id: str,
        loop: asyncio.AbstractEventLoop,
        abort: Callable[[RequestStream], None],
        wake: asyncio.Event,
    ):
        self.request_id = request_id
        self.wake = wake
        self.finished = False
        self.accepted: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._abort = abort
        self._latest: RequestOutput | None = None
        self._error: BaseException | None = None

    def take(self) -> RequestOutput | None:
        """Return the newest state if it was not taken before; raise what ended the request."""
        if self._error is not None:
            self.finished = True
            raise self._error
        output, self._latest = self._latest, None
        if output is not None and output.finished:
            self.finished = True
        return output

    def abort(self) -> None:
        """End the request if it still runs; it holds nothing after the engine's current step."""
        if not self.finished:
            self.finished = True
            self._abort(self)

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        while not self.finished:
            self.wake.clear()
            output = self.take()
            if output is None:
                await self.wake.wait()
            else:
                yield output

    def accept(self) -> None:
        """Note that the engine has taken the request; called in the event loop."""
        if not self.accepted.done():
            self.accepted.set_result(None)

    def deliver(self, output: RequestOutput) -> None:
        """Replace the newest state; called in the event loop."""
        self._latest = output
        self.wake.set()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error; called in the event loop."""
        self._error = error
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # seen here: the caller may have gone
        self.wake.set()


async def merged(streams: list[RequestStream]) -> AsyncIterator[tuple[int, RequestOutput]]:
    """Yield `(index, newest state)` of several streams that share their `wake` event."""
    wake = streams[0].wake
    assert all(s.wake is wake for s in streams), "merged streams share one wake event"
    while not all(s.finished for s in streams):
        wake.clear()
        for i, stream in enumerate(streams):
            output = None if stream.finished else stream.take()
            if output is not None:
                yield i, output
        if not all(s.finished for s in streams):
            await wake.wait()
