"""Engines in processes of their own behind one engine's interface: data and tensor parallel.

Each *replica* holds the whole model and serves its own requests (data parallel); its *ranks* hold a
slice of every layer each (tensor parallel, transformers' own plan). Rank 0 talks to this process;
before each step it tells the other ranks what was asked of it, so all ranks of a replica add, abort
and step alike and stay in the same state without another word. What could make them differ, random
seeds and the clock, is decided before it is told.

Processes are spawned: a script that uses this needs the usual `if __name__ == "__main__":`.
"""

from __future__ import annotations

import dataclasses
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.parallel_worker import Added, Failed, Ready, Refused, Stepped, serve
from lightthinker.engine.reporting import EngineStats
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import RequestError

WAIT_S = 0.02
"""How long a step waits before it returns with nothing, so that callers can do something else."""


class WorkerError(RuntimeError):
    """A process of the engine has died or failed."""


@dataclass
class _Progress:
    """What is known here of an unfinished request."""

    num_prompt_tokens: int = 0
    num_sampled_tokens: int = 0


class _Replica:
    """One replica's processes, and the pipe to its rank 0."""

    def __init__(self, number: int, options: dict[str, Any], devices: Sequence[str]):
        context = get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        port = _free_port()
        self.processes = [
            context.Process(
                target=serve,
                args=(theirs if rank == 0 else None, rank, len(devices), port, device, options),
                daemon=True,
                name=f"lightthinker-{number}-{rank}",
            )
            for rank, device in enumerate(devices)
        ]
        for process in self.processes:
            process.start()
        theirs.close()
        self.unfinished: dict[str, _Progress] = {}
        self.stats: EngineStats | None = None

    @property
    def watched(self) -> list[Any]:
        """What to wait for: a message, or the death of any rank."""
        return [self.pipe, *(process.sentinel for process in self.processes)]

    def receive(self) -> Any:
        """Return the next message; raises WorkerError if there will be none."""
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
            raise WorkerError(f"Replica {self.number} of the engine failed: {message.reason}")
        return message

    def send(self, command: Any) -> None:
        try:
            self.pipe.send(command)
        except (BrokenPipeError, ConnectionError) as error:
            raise WorkerError(f"Replica {self.number} of the engine has died.") from error


class ParallelEngine:
    """`LLMEngine`'s interface over several processes.

    Args:
        model: Folder or hub name.
        options: Arguments of `load_engine` that all processes share.
        device_type: `cuda` or `cpu`; on CUDA, rank r of replica d takes GPU `d * ranks + r`.
        tensor_parallel_size: Ranks per replica.
        data_parallel_size: Replicas.

    Raises:
        RequestError: There are fewer GPUs than processes.
        WorkerError: A process could not start.
    """

    def __init__(
        self,
        model: str | Path,
        options: dict[str, Any],
        *,
        device_type: str,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
    ):
        count = tensor_parallel_size * data_parallel_size
        _check_devices(device_type, count)
        self._replicas: list[_Replica] = []
        self._early: list[RequestOutput] = []
        try:
            for number in range(data_parallel_size):
                first = number * tensor_parallel_size
                devices = [
                    f"cuda:{first + rank}" if device_type == "cuda" else "cpu"
                    for rank in range(tensor_parallel_size)
                ]
                shared = {"model": str(model), **options}
                self._replicas.append(_Replica(number, shared, devices))
            ready = [replica.receive() for replica in self._replicas]
        except BaseException:
            self.shutdown()
            raise
        assert all(isinstance(message, Ready) for message in ready), ready
        self.kv_bytes_per_token: int = ready[0].kv_bytes_per_token
        self.max_model_len: int = ready[0].max_model_len
        self.vocab_size: int = ready[0].vocab_size
        for replica, message in zip(self._replicas, ready, strict=True):
            replica.stats = message.stats

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
    ) -> None:
        """Queue a request at the replica with the fewest; see `LLMEngine.add_request`."""
        if self._replica_of(request_id):
            raise RequestError(f"Request id {request_id!r} is in use.")
        params = params or SamplingParams()
        if params.seed is None:
            params = dataclasses.replace(params, seed=random.getrandbits(62))
        replica = min(self._replicas, key=lambda r: len(r.unfinished))
        replica.send(("add", request_id, prompt, params, stream))
        while True:
            message = replica.receive()
            if isinstance(message, Stepped):
                self._early += self._note(replica, message)
            elif isinstance(message, Refused):
                raise message.error
            else:
                assert isinstance(message, Added), message
                replica.unfinished[request_id] = _Progress(message.num_prompt_tokens)
                return

    def abort_request(self, request_id: str) -> None:
        """End a request and free what it holds; unknown ids are ignored."""
        replica = self._replica_of(request_id)
        if replica:
            del replica.unfinished[request_id]
            replica.send(("abort", request_id))
        self._early = [o for o in self._early if o.request_id != request_id]

    def has_unfinished_requests(self) -> bool:
        """Whether a request still waits or runs, or has an output that nobody took."""
        return bool(self._early) or any(r.unfinished for r in self._replicas)

    def num_prompt_tokens(self, request_id: str) -> int:
        """Return the prompt length of an unfinished request."""
        return self._progress(request_id).num_prompt_tokens

    def num_sampled_tokens(self) -> dict[str, int]:
        """Return how many tokens each unfinished request has sampled, if it streams; else 0."""
        return {
            name: progress.num_sampled_tokens
            for replica in self._replicas
            for name, progress in replica.unfinished.items()
        }

    def is_scheduled(self, request_id: str) -> bool:
        """Whether an unfinished request that streams has sampled a token."""
        return self._progress(request_id).num_sampled_tokens > 0

    def step(self) -> list[RequestOutput]:
        """Wait a moment for any replica's step.

        Returns the requests that changed and stream, or finished.

        Raises:
            WorkerError: A process died; its requests are lost.
        """
        outputs, self._early = self._early, []
        busy = [r for r in self._replicas if r.unfinished]
        if busy:
            watched = [one for r in busy for one in r.watched]
            ready = set(connection.wait(watched, timeout=0 if outputs else WAIT_S))
            for replica in (r for r in busy if ready.intersection(r.watched)):
                outputs += self._note(replica, replica.receive())
        return outputs

    def stats(self) -> EngineStats:
        """Return what all replicas hold and have done, as of their newest steps."""
        parts = [dataclasses.asdict(r.stats) for r in self._replicas if r.stats]
        return EngineStats(**{name: sum(part[name] for part in parts) for name in parts[0]})

    def shutdown(self) -> None:
        """End all processes."""
        for replica in self._replicas:
            replica.pipe.close()
        for replica in self._replicas:
            for process in replica.processes:
                process.join(5)
                if process.is_alive():
                    process.terminate()
                    process.join()
        self._replicas = []

    def _progress(self, request_id: str) -> _Progress:
        replica = self._replica_of(request_id)
        assert replica is not None, f"{request_id} is not unfinished"
        return replica.unfinished[request_id]

    def _replica_of(self, request_id: str) -> _Replica | None:
        return next((r for r in self._replicas if request_id in r.unfinished), None)

    def _note(self, replica: _Replica, message: Stepped) -> list[RequestOutput]:
        """Take a step's outputs, without those of requests aborted meanwhile."""
        assert isinstance(message, Stepped), message
        replica.stats = message.stats
        wanted = [o for o in message.outputs if o.request_id in replica.unfinished]
        for output in wanted:
            if output.finished:
                del replica.unfinished[output.request_id]
            else:
                sampled = sum(len(sample.token_ids) for sample in output.outputs)
                replica.unfinished[output.request_id].num_sampled_tokens = sampled
        return wanted


def _check_devices(device_type: str, count: int) -> None:
    if device_type != "cuda":
        return
    import torch

    available = torch.cuda.device_count()
    if available < count:
        raise RequestError(
            f"{count} GPUs are asked for (tensor_parallel_size x data_parallel_size), "
            f"{available} are there."
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
