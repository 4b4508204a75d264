"""What runs in one process of a `ParallelEngine`: an engine, and the commands that drive it.

Invariant: commands are taken off the pipe at all times, by a thread of their own. So the process
that asks can always write, whatever outputs wait for it to read, and the two never wait for each
other with both directions full.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from lightthinker.engine.interpreter import exempt_what_stays
from lightthinker.engine.output_deltas import DeltaEncoder, RequestDelta
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.reporting import EngineStats
from lightthinker.errors import LightThinkerError

if TYPE_CHECKING:
    from lightthinker.engine.engine import LLMEngine


@dataclass(frozen=True)
class Loading:
    """What the replica is doing before it is ready, in words."""

    words: str


@dataclass(frozen=True)
class Ready:
    """The replica has loaded its model."""

    kv_bytes_per_token: int
    max_model_len: int
    vocab_size: int
    stats: EngineStats


@dataclass(frozen=True)
class Failed:
    """The replica has ended; `error` is what the user can act on, if it was such an error."""

    reason: str
    error: LightThinkerError | None = None


@dataclass(frozen=True)
class Added:
    """A request was taken."""

    key: str
    num_prompt_tokens: int


@dataclass(frozen=True)
class Refused:
    """A request was refused."""

    key: str
    error: Exception


@dataclass(frozen=True)
class Answered:
    """What became of the requests that were asked for since the last step."""

    answers: list[Added | Refused]


@dataclass(frozen=True)
class Stepped:
    """What a step gave, or aborts without one.

    Attributes:
        deltas: What the engine reports, as additions to earlier reports.
        num_sampled: Tokens sampled so far, by unfinished request that ran in the step; it says
            nothing of those that wait, who may be many.
        scheduled: Requests of which a first token was forwarded in this step.
        aborted: Requests that have been aborted.
        stats: The engine's, after it.
    """

    deltas: list[RequestDelta]
    num_sampled: dict[str, int]
    scheduled: list[str]
    aborted: list[str]
    stats: EngineStats


def run_process(*args: Any) -> None:
    """`serve`, as the main function of a process.

    Ctrl-C goes to all processes of a terminal: the one that asks decides what it means, and closes
    the pipe when this one is to end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(*args, on_ready=exempt_what_stays)


def serve(
    pipe: Connection | None,
    rank: int,
    num_ranks: int,
    port: int,
    device: str,
    options: dict[str, Any],
    *,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Load the engine and run until the pipe is closed.

    Args:
        pipe: To the process that asks; rank 0 has it.
        rank: This process's rank in its replica.
        num_ranks: Ranks of the replica.
        port: Where the ranks meet, on this host.
        device: Torch device.
        options: Arguments of `load_engine`.
        on_ready: Called once the engine is warm.
    """
    try:
        engine = _load(rank, num_ranks, port, device, options)
        engine.warm_up(lambda words: pipe.send(Loading(words)) if pipe else None)
        on_ready()
        if pipe:
            sizes = engine.kv_bytes_per_token, engine.max_model_len, engine.vocab_size
            pipe.send(Ready(*sizes, engine.stats()))
        _Worker(engine, pipe, num_ranks).run()
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return
    except LightThinkerError as error:
        if pipe is None:
            raise  # Only this rank's own output can say so.
        pipe.send(Failed(str(error), error))
    except BaseException as error:
        if pipe:
            pipe.send(Failed(f"{type(error).__name__}: {error}"))
        raise


def _load(rank: int, num_ranks: int, port: int, device: str, options: dict[str, Any]) -> LLMEngine:
    import torch

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if num_ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(torch.device(device).index or 0),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        # Ranks wait for rank 0's next command as long as nobody asks anything of it.
        torch.distributed.init_process_group(backend, timeout=timedelta(days=365))
    from transformers.utils import logging

    from lightthinker.engine.loading import load_engine

    logging.disable_progress_bar()  # Several processes would draw over each other.
    return load_engine(device=device, tensor_parallel=num_ranks > 1, **options)


class _Inbox:
    """What was asked, read from the pipe as it comes: lists of commands."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._commands: SimpleQueue[list[tuple[Any, ...]] | Exception] = SimpleQueue()
        Thread(target=self._read, name="lightthinker-commands", daemon=True).start()

    def __bool__(self) -> bool:
        return not self._commands.empty()

    def get(self) -> list[tuple[Any, ...]]:
        """Return the commands sent next, waiting for them; raises what ended the reading."""
        commands = self._commands.get()
        if isinstance(commands, Exception):
            raise commands
        return commands

    def _read(self) -> None:
        try:
            while True:
                self._commands.put(self._pipe.recv())
        except Exception as error:  # the other end is gone, or what came cannot be unpickled
            self._commands.put(error)


class _Worker:
    """Applies commands and steps; ranks other than 0 follow rank 0."""

    def __init__(self, engine: LLMEngine, pipe: Connection | None, num_ranks: int):
        self.engine = engine
        self.pipe = pipe
        self.inbox = _Inbox(pipe) if pipe else None
        self.num_ranks = num_ranks
        self.deadlines: dict[str, float] = {}
        self.encoder = DeltaEncoder()
        self.unscheduled: set[str] = set()
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.answers: list[Added | Refused] = []

    def run(self) -> None:
        while True:
            commands = self._share(self._commands() if self.pipe else None)
            if commands is None:
                return
            for command in commands:
                self._apply(*command)
            if self.pipe and self.answers:  # They do not wait for a step.
                self.pipe.send(Answered(self.answers))
                self.answers = []
            is_busy = self.engine.has_unfinished_requests()
            outputs = self.engine.step() if is_busy else []
            if self.pipe and (is_busy or self.aborted):
                self.pipe.send(self._report(outputs))

    def _report(self, outputs: list[RequestOutput]) -> Stepped:
        for output in outputs:
            if output.finished:
                self._forget(output.request_id)
        # Who was preempted in this step may still have got a sample of the step before.
        ran, self.running = self.running, {s.request_id for s in self.engine.scheduler.running}
        num_sampled = self.engine.num_sampled_tokens(ran | self.running)
        new = self.unscheduled.intersection(num_sampled)
        scheduled = [key for key in new if self.engine.is_scheduled(key)]
        self.unscheduled.difference_update(scheduled)
        aborted, self.aborted = self.aborted, []
        return Stepped(
            [self.encoder.encode(output) for output in outputs],
            num_sampled,
            scheduled,
            aborted,
            self.engine.stats(),
        )

    def _commands(self) -> list[tuple[Any, ...]] | None:
        """Return what was asked since the last step; waits while there is nothing to run."""
        assert self.inbox is not None
        now = monotonic()
        overdue = [key for key, deadline in self.deadlines.items() if now >= deadline]
        commands: list[tuple[Any, ...]] = [("expire", key) for key in overdue]
        try:
            while self.inbox or not (commands or self.engine.has_unfinished_requests()):
                commands += self.inbox.get()
        except (EOFError, ConnectionError):
            return None
        return commands

    def _share(self, commands: list[tuple[Any, ...]] | None) -> list[tuple[Any, ...]] | None:
        """Tell the other ranks, or be told."""
        if self.num_ranks == 1:
            return commands
        import torch

        box = [commands]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def _apply(self, name: str, key: str, *details: Any) -> None:
        if name == "abort":
            self._forget(key)
            self.encoder.forget(key)
            if self.pipe:
                self.aborted.append(key)
            self.engine.abort_request(key)
        elif name == "expire":
            self.deadlines.pop(key, None)
            self.engine.expire_request(key)
        else:
            self._add(key, *details)

    def _add(self, key: str, prompt: Any, params: Any, seed: int, stream: bool) -> None:
        # Each rank has a clock of its own; rank 0's decides, and `expire` tells the others.
        seeded = dataclasses.replace(params, seed=seed, timeout_s=None)
        try:
            self.engine.add_request(key, prompt, seeded, stream=stream)
        except Exception as error:  # It is this request's, as it would be in one process.
            if self.pipe:
                self.answers.append(Refused(key, _portable(error)))
            return
        if self.pipe:
            self.unscheduled.add(key)
            if params.timeout_s is not None:
                self.deadlines[key] = monotonic() + params.timeout_s
            self.answers.append(Added(key, self.engine.num_prompt_tokens(key)))

    def _forget(self, key: str) -> None:
        self.deadlines.pop(key, None)
        self.unscheduled.discard(key)


def _portable(error: Exception) -> Exception:
    """Return an error that can be told to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
