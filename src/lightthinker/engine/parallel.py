"""Engines in processes of their own behind one engine's interface: data and tensor parallel.

Each *replica* holds the whole model and serves its own requests (data parallel); its *ranks* hold a
slice of every layer each (tensor parallel, transformers' own plan). Rank 0 talks to this process;
before each step it tells the other ranks what was asked of it, so all ranks of a replica add, abort
and step alike and stay in the same state without another word. What could make them differ, random
seeds and the clock, is decided before it is told. One replica of one rank keeps the engine's Python
out of the way of this process's, as a server wants it.

An engine looks at what is asked of it between steps, so asking for requests one by one costs a step
each: those that come together are sent together, one message to each replica.

Processes are spawned: a script that uses this needs the usual `if __name__ == "__main__":`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

import torch

from lightthinker.engine.intake import Submission
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.parallel_worker import Stepped
from lightthinker.engine.replica import Answer, RemoteRequest, Replica, WorkerError
from lightthinker.engine.reporting import EngineStats
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import RequestError

__all__ = ["Answer", "ParallelEngine", "WorkerError"]

WAIT_S = 0.02
"""How long a step waits before it returns with nothing, so that callers can do something else."""


class ParallelEngine:
    """`LLMEngine`'s interface over several processes.

    Args:
        model: Folder or hub name.
        options: Arguments of `load_engine` that all processes share.
        device: On CUDA, rank r of replica d takes the GPU that is `d * ranks + r` after this one.
        tensor_parallel_size: Ranks per replica.
        data_parallel_size: Replicas.
        on_phase: Told in words what the first replica does before it is ready.

    Raises:
        RequestError: There are fewer GPUs than processes.
        LightThinkerError: What the engine cannot load, and why.
        WorkerError: A process could not start.
    """

    def __init__(
        self,
        model: str | Path,
        options: dict[str, Any],
        *,
        device: torch.device,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        on_phase: Callable[[str], None] = lambda words: None,
    ):
        first_gpu = device.index or 0
        _check_devices(device, first_gpu + tensor_parallel_size * data_parallel_size)
        self._replicas: list[Replica] = []
        self._requests: dict[str, tuple[Replica, RemoteRequest]] = {}
        self._early: list[RequestOutput] = []
        self._answers: list[Answer] = []
        self._alarm, self._bell = Pipe(duplex=False)
        self._is_rung = False
        try:
            for number in range(data_parallel_size):
                first = first_gpu + number * tensor_parallel_size
                devices = [
                    f"cuda:{first + rank}" if device.type == "cuda" else "cpu"
                    for rank in range(tensor_parallel_size)
                ]
                shared = {"model": str(model), **options}
                self._replicas.append(Replica(number, shared, devices))
            ready = [replica.until_ready(on_phase) for replica in self._replicas]
        except BaseException:
            self.shutdown()
            raise
        self.kv_bytes_per_token: int = ready[0].kv_bytes_per_token
        self.max_model_len: int = ready[0].max_model_len
        self.vocab_size: int = ready[0].vocab_size

    def submit_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
    ) -> None:
        """Send a request to the replica with the fewest, without waiting for its answer.

        What the engine answers is told by `take_answers`, before the request's first output.
        """
        self._submit([(request_id, prompt, params)], stream=stream)

    def _submit(self, requests: Sequence[Submission], *, stream: bool) -> None:
        """Send requests, each to the replica that then has the fewest; see `submit_request`."""
        names: set[str] = set()
        for name, *_ in requests:
            if name in self._requests or name in names:
                raise RequestError(f"Request id {name!r} is in use.")
            names.add(name)
        shares: list[list[tuple[Submission, int]]] = [[] for _ in self._replicas]
        loads = [len(replica.unfinished) for replica in self._replicas]
        for request in requests:
            least = loads.index(min(loads))
            given = request[2].seed if request[2] is not None else None
            seed = random.getrandbits(62) if given is None else given  # In order, as one engine.
            shares[least].append((request, seed))
            loads[least] += 1
        for replica, share in zip(self._replicas, shares, strict=True):
            if share:
                for asked in replica.submit(share, stream=stream):
                    self._requests[asked.request_id] = (replica, asked)

    def take_answers(self) -> list[Answer]:
        """Return what has become of submitted requests since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
    ) -> None:
        """Submit a request and wait for the answer; see `LLMEngine.add_request`."""
        self.add_requests([(request_id, prompt, params)], stream=stream)

    def add_requests(self, requests: Sequence[Submission], *, stream: bool = True) -> None:
        """Submit requests together and wait for all answers; see `LLMEngine.add_requests`."""
        self._submit(requests, stream=stream)
        waiting = {request_id for request_id, *_ in requests}
        errors: dict[str, Exception] = {}
        while waiting:
            replica = self._requests[next(iter(waiting))][0]
            self._early += self._take(replica)[1]
            others = []
            for answer in self._answers:
                if answer.request_id not in waiting:
                    others.append(answer)
                    continue
                waiting.remove(answer.request_id)
                if answer.error is not None:
                    errors[answer.request_id] = answer.error
            self._answers = others
        for request_id, *_ in requests:
            if request_id in errors:
                raise errors[request_id]

    def abort_request(self, request_id: str) -> None:
        """End a request and free what it holds; unknown ids are ignored."""
        self._early = [o for o in self._early if o.request_id != request_id]
        self._answers = [a for a in self._answers if a.request_id != request_id]
        if request_id in self._requests:
            replica, request = self._requests.pop(request_id)
            replica.abort(request)

    def has_unfinished_requests(self) -> bool:
        """Whether a request still waits or runs, or has an output that nobody took."""
        return bool(self._early or self._requests)

    def is_quiet(self) -> bool:
        """Whether nothing is unfinished and the engines have let go of all that was aborted."""
        busy = self.has_unfinished_requests() or self._answers
        return not busy and not any(replica.ending for replica in self._replicas)

    def is_alive(self) -> bool:
        """Whether all processes run."""
        return all(replica.is_alive for replica in self._replicas)

    def num_prompt_tokens(self, request_id: str) -> int:
        """Return the prompt length of an unfinished request."""
        return self._requests[request_id][1].num_prompt_tokens

    def num_sampled_tokens(self) -> dict[str, int]:
        """Return how many tokens each unfinished request has sampled, over its samples."""
        requests = self._requests.items()
        return {name: request.num_sampled_tokens for name, (_, request) in requests}

    def is_scheduled(self, request_id: str) -> bool:
        """Whether any token of an unfinished request has been forwarded."""
        return self._requests[request_id][1].is_scheduled

    def wake(self) -> None:
        """Let a `step` that waits, or the next one, return at once; from any thread."""
        if not self._is_rung:
            self._is_rung = True
            self._bell.send_bytes(b"!")

    def step(self) -> list[RequestOutput]:
        """Wait a moment for any replica's step, or until `wake` is called.

        Returns the requests that changed and stream, or finished.

        Raises:
            WorkerError: A process died; its requests are lost.
        """
        outputs, self._early = self._early, []
        busy = [r for r in self._replicas if r.unfinished or r.ending]
        watched = [one for r in busy for one in r.watched]
        ready = set(connection.wait([self._alarm, *watched], timeout=0 if outputs else WAIT_S))
        if self._alarm in ready:
            self._alarm.recv_bytes()
            self._is_rung = False
        for replica in (r for r in busy if ready.intersection(r.watched)):
            has_stepped = False
            while not has_stepped:  # Answers before a step do not wait for the next call.
                has_stepped, new = self._take(replica)
                outputs += new
                has_stepped = has_stepped or not replica.pipe.poll()
        return outputs

    def stats(self) -> EngineStats:
        """Return what all replicas hold and have done, as of their newest steps."""
        parts = [dataclasses.asdict(r.stats) for r in self._replicas if r.stats]
        return EngineStats(**{name: sum(part[name] for part in parts) for name in parts[0]})

    def shutdown(self) -> None:
        """End all processes."""
        for replica in self._replicas:
            replica.close()
        for replica in self._replicas:
            replica.join()
        self._replicas = []

    def _take(self, replica: Replica) -> tuple[bool, list[RequestOutput]]:
        """Take a replica's next message; return whether it was a step's, and its outputs."""
        message = replica.receive()
        answers, outputs = replica.note(message)
        self._answers += answers
        refused = [answer.request_id for answer in answers if answer.error is not None]
        for name in refused + [output.request_id for output in outputs if output.finished]:
            del self._requests[name]
        return isinstance(message, Stepped), outputs


def _check_devices(device: torch.device, count: int) -> None:
    if device.type != "cuda":
        return
    available = torch.cuda.device_count()
    if available < count:
        raise RequestError(
            f"{count} GPUs are asked for (tensor_parallel_size x data_parallel_size, from "
            f"{device} on), {available} are there."
        )
