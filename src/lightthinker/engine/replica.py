"""One replica of a `ParallelEngine`, seen from the process that asks: its pipe and its requests.

Nothing here waits for an engine's step, except `receive`. A request has a *key* of its own between
the two processes, never used again: so what is still on its way for an aborted request is told
apart from a new one of the same name. Invariant: a request is in `unfinished` until its last output
or its refusal has come, or it is aborted; an aborted one is in `ending` until the engine has let go
of it.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

from lightthinker.engine.intake import Submission
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.parallel_worker import (
    Added,
    Answered,
    Failed,
    Loading,
    Ready,
    Refused,
    Stepped,
    run_process,
)
from lightthinker.engine.reporting import EngineStats
from lightthinker.engine.sampling_params import SamplingParams


class WorkerError(RuntimeError):
    """A process of the engine has died or failed."""


@dataclass(frozen=True)
class Answer:
    """What became of a submitted request.

    Attributes:
        request_id: Its name.
        num_prompt_tokens: Prompt length, if it was taken.
        error: Why it was refused.
    """

    request_id: str
    num_prompt_tokens: int = 0
    error: Exception | None = None


@dataclass
class RemoteRequest:
    """What is known here of an unfinished request.

    Attributes:
        request_id: Its name.
        key: Its name between the processes.
        num_prompt_tokens: Prompt length; 0 until the engine has taken it.
        num_sampled_tokens: Tokens sampled up to the newest step.
        is_scheduled: Whether any token of it has been forwarded.
        newest: Its newest output.
    """

    request_id: str
    key: str
    num_prompt_tokens: int = 0
    num_sampled_tokens: int = 0
    is_scheduled: bool = False
    newest: RequestOutput | None = None


class Replica:
    """One replica's processes, and the pipe to its rank 0.

    Args:
        number: Which replica.
        options: Arguments of `load_engine`, without device.
        devices: One per rank.
    """

    def __init__(self, number: int, options: dict[str, Any], devices: Sequence[str]):
        context = get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        port = _free_port()
        self.processes = [
            context.Process(
                target=run_process,
                args=(theirs if rank == 0 else None, rank, len(devices), port, device, options),
                daemon=True,
                name=f"lightthinker-{number}-{rank}",
            )
            for rank, device in enumerate(devices)
        ]
        for process in self.processes:
            process.start()
        theirs.close()
        self._keys = itertools.count()
        self.unfinished: dict[str, RemoteRequest] = {}
        self.ending: set[str] = set()
        self.stats: EngineStats | None = None

    @property
    def watched(self) -> list[Any]:
        """What to wait for: a message, or the death of any rank."""
        return [self.pipe, *(process.sentinel for process in self.processes)]

    @property
    def is_alive(self) -> bool:
        """Whether all ranks run."""
        return not connection.wait([process.sentinel for process in self.processes], timeout=0)

    def until_ready(self, on_phase: Callable[[str], None]) -> Ready:
        """Wait until the model is loaded.

        Args:
            on_phase: Told in words what is being done.

        Raises:
            LightThinkerError: What the engine refused to load, and why.
            WorkerError: It has died.
        """
        while True:
            message = self.receive()
            if isinstance(message, Ready):
                self.stats = message.stats
                return message
            assert isinstance(message, Loading), message
            on_phase(message.words)

    def submit(
        self, requests: Sequence[tuple[Submission, int]], *, stream: bool
    ) -> list[RemoteRequest]:
        """Ask for requests with their seeds, in one message; whether each was taken comes later."""
        asked = [RemoteRequest(name, str(next(self._keys))) for (name, *_), _ in requests]
        commands = []
        for request, ((_, prompt, params), seed) in zip(asked, requests, strict=True):
            params = params or SamplingParams()
            commands.append(("add", request.key, prompt, params, seed, stream))
        self._send(commands)
        self.unfinished |= {request.key: request for request in asked}
        return asked

    def abort(self, request: RemoteRequest) -> None:
        """Ask for an unfinished request's end; nothing more is told of it."""
        del self.unfinished[request.key]
        self.ending.add(request.key)
        self._send([("abort", request.key)])

    def receive(self) -> Any:
        """Return the next message, waiting for it.

        Raises:
            LightThinkerError: The engine could not be loaded, for this reason.
            WorkerError: There will be none.
        """
        connection.wait(self.watched)
        if not self.pipe.poll():
            # A rank has died, and the others may wait for it forever.
            for process in self.processes:
                process.terminate()
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerError(
                f"Replica {self.number} of the engine has died; the model has to be loaded anew."
            ) from error
        if isinstance(message, Failed):
            failure = WorkerError(f"Replica {self.number} of the engine failed: {message.reason}")
            raise message.error or failure
        return message

    def note(self, message: Answered | Stepped) -> tuple[list[Answer], list[RequestOutput]]:
        """Take a message; return what it says of requests that are not aborted."""
        if isinstance(message, Stepped):
            return [], self._outputs(message)
        answers = [self._answer(answer) for answer in message.answers]
        return [answer for answer in answers if answer is not None], []

    def _answer(self, answer: Added | Refused) -> Answer | None:
        request = self.unfinished.get(answer.key)
        if request is None:
            return None
        if isinstance(answer, Added):
            request.num_prompt_tokens = answer.num_prompt_tokens
            return Answer(request.request_id, answer.num_prompt_tokens)
        del self.unfinished[answer.key]
        return Answer(request.request_id, error=answer.error)

    def close(self) -> None:
        """Let the processes end, by themselves if they can."""
        self.pipe.close()

    def join(self) -> None:
        """Wait until the processes have ended."""
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()

    def _send(self, commands: list[tuple[Any, ...]]) -> None:
        try:
            self.pipe.send(commands)
        except (BrokenPipeError, ConnectionError) as error:
            raise WorkerError(f"Replica {self.number} of the engine has died.") from error

    def _outputs(self, message: Stepped) -> list[RequestOutput]:
        self.stats = message.stats
        self.ending.difference_update(message.aborted)
        for key, num_sampled in message.num_sampled.items():
            if key in self.unfinished:
                self.unfinished[key].num_sampled_tokens = num_sampled
        for key in message.scheduled:
            if key in self.unfinished:
                self.unfinished[key].is_scheduled = True
        outputs = []
        for delta in message.deltas:
            request = self.unfinished.get(delta.key)
            if request is not None:
                request.newest = delta.apply(request.request_id, request.newest)
                outputs.append(request.newest)
                if delta.finished:
                    del self.unfinished[delta.key]
        return outputs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
