"""AsyncLLM: one engine, stepped in a thread of its own, shared by many asyncio tasks.

Everything that touches the engine happens in that thread: requests and aborts come through a
thread-safe queue that is emptied between steps, so an abort takes effect within one step. A reader
gets the newest state, never a backlog: outputs are cumulative, so a slow reader misses steps and no
text. An engine in a process of its own steps by itself: the thread then sends and receives, never
waits for one request's answer, and is woken by whoever asks for something. Invariant: a request is
unfinished in the engine exactly as long as its `RequestStream` is registered here. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch

from lightthinker.engine.llm import LLM, Prompt
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.parallel import Answer, ParallelEngine, WorkerError
from lightthinker.engine.reporting import EngineStats
from lightthinker.engine.request_stream import (
    EngineBusyError,
    EngineDeadError,
    EngineStoppedError,
    RequestAbortedError,
    RequestStream,
)
from lightthinker.engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """One request as the engine thread sees it after a step.

    Attributes:
        request_id: Its name.
        num_prompt_tokens: Prompt length.
        arrived: `time.monotonic()` when it was submitted.
        scheduled: When the first of its tokens was about to be forwarded; None while it waits.
        num_sampled: Tokens sampled so far, over its samples.
        output: Its final output, if this step finished it.
    """

    request_id: str
    num_prompt_tokens: int
    arrived: float
    scheduled: float | None
    num_sampled: int
    output: RequestOutput | None


@dataclass
class _Tracked:
    """A request that is in the engine, or on its way there while it has no prompt length."""

    stream: RequestStream
    loop: asyncio.AbstractEventLoop
    num_prompt_tokens: int
    arrived: float
    scheduled: float | None = None


@dataclass(frozen=True)
class _Submit:
    tracked: _Tracked
    prompt: Prompt
    params: SamplingParams
    stream: bool


class AsyncLLM:
    """Serves one `LLM` to many asyncio tasks.

    The `LLM` must not be used directly while this runs.

    Args:
        llm: A loaded checkpoint.
        max_requests: Requests that may be unfinished at once, waiting ones included; None for no
            limit.
        on_step: Called in the engine's thread after each step with every unfinished or
            just-finished request's progress (metrics). It must be quick.

    Example:
        >>> engine = AsyncLLM(LLM("path/to/checkpoint"))
        >>> async for output in engine.generate("What is 12*34?", SamplingParams()):
        ...     print(output.outputs[0].text)
    """

    def __init__(
        self,
        llm: LLM,
        *,
        max_requests: int | None = None,
        on_step: Callable[[list[Progress]], None] | None = None,
    ):
        self.llm = llm
        self.max_requests = max_requests
        self.on_step = on_step
        self.failure: BaseException | None = None
        engine: Any = llm.engine
        self._remote: ParallelEngine | None = engine if isinstance(engine, ParallelEngine) else None
        self._commands: SimpleQueue[_Submit | RequestStream | None] = SimpleQueue()
        self._tracked: dict[str, _Tracked] = {}
        self._num_unfinished = 0
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._accepting = True
        self._stopped = False
        self._stats = llm.engine.stats()
        self._thread = threading.Thread(target=self._run, name="lightthinker-engine", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether the engine can still run requests."""
        return not self._is_dead and self._thread.is_alive()

    @property
    def _is_dead(self) -> bool:
        """Whether the engine has failed, seen by a step or not."""
        return self.failure is not None or not (self._remote is None or self._remote.is_alive())

    @property
    def is_accepting(self) -> bool:
        """Whether new requests are taken: healthy and not draining."""
        return self._accepting and self.is_healthy

    @property
    def num_unfinished(self) -> int:
        """Requests submitted and not finished."""
        return self._num_unfinished

    def stats(self) -> EngineStats:
        """Return the engine's state after its last step."""
        return self._stats

    async def add_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        stream: bool = True,
        wake: asyncio.Event | None = None,
    ) -> RequestStream:
        """Submit a request and wait until the engine has taken it.

        Args:
            prompt: Text or token ids.
            sampling_params: How to sample.
            request_id: Its name, unique among unfinished requests; by default numbered.
            stream: Whether the states before the last are wanted.
            wake: Set whenever there is something to `take`; share one to read several streams.

        Raises:
            EngineBusyError: `max_requests` are unfinished.
            EngineStoppedError: The engine is draining or shut down.
            EngineDeadError: The engine has failed.
            RequestError: The request cannot be served.
        """
        if not self.is_accepting:
            raise self._refusal()
        loop = asyncio.get_running_loop()
        name = request_id if request_id is not None else f"async-{next(self._ids)}"
        with self._lock:
            if self.max_requests is not None and self._num_unfinished >= self.max_requests:
                raise EngineBusyError(
                    f"{self._num_unfinished} requests are waiting or running, as many as this "
                    "server takes; try again later."
                )
            self._num_unfinished += 1
        new = RequestStream(name, loop, self._command, wake or asyncio.Event())
        tracked = _Tracked(new, loop, 0, time.monotonic())
        self._command(_Submit(tracked, prompt, sampling_params or SamplingParams(), stream))
        if self._stopped:
            self._refuse_submissions()
        try:
            await new.accepted
        except asyncio.CancelledError:
            new.abort()
            raise
        return new

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yield the request's newest state until it is finished.

        Closing or cancelling the iterator aborts the request. Raises what `add_request` does, and
        `EngineDeadError` if the engine fails meanwhile.
        """
        stream = await self.add_request(prompt, sampling_params, request_id)
        try:
            async for output in stream:
                yield output
        finally:
            stream.abort()

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests and wait for the unfinished ones; abort those left at the time-out.

        Returns:
            Whether all finished by themselves.
        """
        self._accepting = False
        deadline = time.monotonic() + timeout_s
        while self._num_unfinished and self.is_healthy and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if not self._num_unfinished:
            return True
        self._command(None)
        while self._num_unfinished and self._thread.is_alive():
            await asyncio.sleep(0.02)
        return False

    def shutdown(self, timeout_s: float = 10.0) -> None:
        """Abort what runs and end the engine's thread."""
        self._accepting = False
        self._command(None)
        self._thread.join(timeout_s)

    def _command(self, command: _Submit | RequestStream | None) -> None:
        """Ask the engine's thread for something: a request, its end, or the end of all."""
        self._commands.put(command)
        if self._remote is not None:
            self._remote.wake()

    def _run(self) -> None:
        try:
            if self._remote is None and self.llm.device.type == "cuda":
                torch.cuda.set_device(self.llm.device)  # Each thread has a current device.
            while self._apply_commands():
                self._step()
        except BaseException as error:
            logger.exception("the engine failed")
            self.failure = error
            self._fail_all(_dead(error))
        self._accepting = False
        self._stopped = True
        self._refuse_submissions()

    def _apply_commands(self) -> bool:
        """Apply what was asked since the last step; wait while there is nothing to run."""
        while True:
            engine, remote = self.llm.engine, self._remote
            idle = not engine.has_unfinished_requests() if remote is None else remote.is_quiet()
            try:
                command = self._commands.get(block=idle)
            except Empty:
                return True
            if command is None:
                for name in list(self._tracked):
                    self.llm.engine.abort_request(name)
                self._fail_all(
                    RequestAbortedError("The server is shutting down; the request was aborted.")
                )
                self._stats = self.llm.engine.stats()
                return False
            if isinstance(command, RequestStream):
                self._abort(command)
            else:
                self._submit(command)

    def _submit(self, command: _Submit) -> None:
        tracked, engine = command.tracked, self.llm.engine
        stream = tracked.stream
        if stream.finished:
            self._forget()
            return
        submit = self._remote.submit_request if self._remote else engine.add_request
        try:
            submit(stream.request_id, command.prompt, command.params, stream=command.stream)
        except Exception as error:
            self._forget()
            if isinstance(error, WorkerError):
                self._post(tracked.loop, stream.fail, _dead(error))
                raise
            self._post(tracked.loop, stream.fail, error)
            return
        self._tracked[stream.request_id] = tracked
        if self._remote is None:
            num_tokens = engine.num_prompt_tokens(stream.request_id)
            self._take_answer(Answer(stream.request_id, num_tokens))

    def _take_answer(self, answer: Answer) -> None:
        tracked = self._tracked[answer.request_id]
        if answer.error is None:
            tracked.num_prompt_tokens = answer.num_prompt_tokens
            self._post(tracked.loop, tracked.stream.accept)
            return
        del self._tracked[answer.request_id]
        self._forget()
        self._post(tracked.loop, tracked.stream.fail, answer.error)

    def _abort(self, stream: RequestStream) -> None:
        tracked = self._tracked.get(stream.request_id)
        if tracked is None or tracked.stream is not stream:
            return
        del self._tracked[stream.request_id]
        self.llm.engine.abort_request(stream.request_id)
        self._forget()
        self._stats = self.llm.engine.stats()

    def _step(self) -> None:
        engine, begin = self.llm.engine, time.monotonic()
        outputs = engine.step()
        for answer in self._remote.take_answers() if self._remote else ():
            self._take_answer(answer)
        progress = []
        num_sampled_by_name = engine.num_sampled_tokens()
        final = {o.request_id: o for o in outputs if o.finished}
        for name, tracked in self._tracked.items():
            if not tracked.num_prompt_tokens:
                continue
            output = final.get(name)
            if output is not None:
                num_sampled = sum(len(c.token_ids) for c in output.outputs)
            else:
                num_sampled = num_sampled_by_name[name]
            if tracked.scheduled is None and (output or engine.is_scheduled(name)):
                tracked.scheduled = begin
            progress.append(
                Progress(
                    name, tracked.num_prompt_tokens, tracked.arrived, tracked.scheduled,
                    num_sampled, output,
                )
            )  # fmt: skip
        self._stats = engine.stats()
        self._deliver(outputs)
        if self.on_step:
            try:
                self.on_step(progress)
            except Exception:
                logger.exception("the observer of steps failed")

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestStream, RequestOutput]]] = {}
        for output in outputs:
            tracked = self._tracked[output.request_id]
            by_loop.setdefault(tracked.loop, []).append((tracked.stream, output))
            if output.finished:
                del self._tracked[output.request_id]
                self._forget()
        for loop, deliveries in by_loop.items():
            self._post(loop, _deliver_all, deliveries)

    def _forget(self) -> None:
        with self._lock:
            self._num_unfinished -= 1

    def _fail_all(self, error: BaseException) -> None:
        for tracked in self._tracked.values():
            self._forget()
            self._post(tracked.loop, tracked.stream.fail, error)
        self._tracked.clear()

    def _refuse_submissions(self) -> None:
        """Answer what was submitted while the thread was ending."""
        while True:
            try:
                command = self._commands.get(block=False)
            except Empty:
                return
            if isinstance(command, _Submit):
                self._forget()
                tracked = command.tracked
                self._post(tracked.loop, tracked.stream.fail, self._refusal())

    def _refusal(self) -> Exception:
        if self._is_dead:
            return EngineDeadError("The engine has failed; the server has to be restarted.")
        return EngineStoppedError("The engine is shutting down and takes no new requests.")

    @staticmethod
    def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("a reader's event loop is closed")


def _dead(error: BaseException) -> EngineDeadError:
    dead = EngineDeadError("The engine failed while this request was running.")
    dead.__cause__ = error
    return dead


def _deliver_all(deliveries: list[tuple[RequestStream, RequestOutput]]) -> None:
    for stream, output in deliveries:
        stream.deliver(output)
