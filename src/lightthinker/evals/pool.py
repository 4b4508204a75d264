"""Shards of several evaluations in one pool of processes: no GPU waits while another has work.

A process serves one device and keeps its model between jobs, so that loading and compiling happen
once. Jobs of an evaluation meet in its journal; when the last is done, one process writes results
and samples, and what waits for them may begin. A job that fails takes nothing else with it, and
when time is up what is finished stays in the journals. Knows no tables.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightthinker.errors import LightThinkerError
from lightthinker.evals.evaluate import Evaluation
from lightthinker.evals.journal import journal_path
from lightthinker.evals.records import samples_path, write_samples
from lightthinker.evals.results import write_results
from lightthinker.evals.settings import EvalSettings
from lightthinker.evals.shards import Shard

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """One evaluation for the pool.

    Attributes:
        path: Its results file; the journal and the samples lie beside it.
        model: Checkpoint folder.
        settings: What to run.
        options: Keyword arguments of `LLM` but for the device.
        command: The command line, for the record.
        num_shards: Into how many jobs it is divided.
        after: Results file that must be there first (its LightThinker sets budgets).
    """

    path: Path
    model: str
    settings: EvalSettings
    options: Mapping[str, Any]
    command: str
    num_shards: int = 1
    after: Path | None = None

    def evaluation(self, open_llm: Callable[[], LLM]) -> Evaluation:
        """Return it as an evaluation that gets its model from `open_llm`."""
        return Evaluation(
            open_llm=open_llm, settings=self.settings, model=self.model, command=self.command,
            dtype=self.options["dtype"], journal=journal_path(self.path),
            console=Console(quiet=True),
        )  # fmt: skip


@dataclass(frozen=True)
class _Job:
    work: Work
    shard: Shard | None
    """None: write the results."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: _Job | None = None


def run_pool(
    works: Sequence[Work],
    devices: Sequence[str],
    *,
    seconds: float | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> dict[Path, str]:
    """Run evaluations whose journals are there, in the order given.

    Args:
        works: What to run; those with results are not to be given.
        devices: One process for each; a device may be named several times.
        seconds: Stop after that long; what is finished is kept in the journals.
        say: Told in words what is done.

    Returns:
        Why an evaluation has no results, by its path; empty if all have.
    """
    pool = _Pool(works, devices, say)
    try:
        return pool.run(None if seconds is None else time.monotonic() + seconds)
    finally:
        pool.end()


class _Pool:
    def __init__(self, works: Sequence[Work], devices: Sequence[str], say: Callable[[str], None]):
        self.say, self.started = say, time.monotonic()
        self.waiting = list(works)
        self.ready: list[_Job] = []
        self.order = {work.path: place for place, work in enumerate(works)}
        self.missing = {work.path: work.num_shards for work in works}
        self.reasons: dict[Path, str] = {}
        self.orphans: list[_Job] = []
        context = multiprocessing.get_context("spawn")
        self.workers = []
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, device, len(devices)))
            process.start()
            theirs.close()
            self.workers.append(_Worker(process, ours))

    def run(self, deadline: float | None) -> dict[Path, str]:
        while True:
            self._hand_out()
            busy = [worker for worker in self.workers if worker.job is not None]
            if not busy:
                break
            if deadline is not None and time.monotonic() > deadline:
                break
            for pipe in wait([worker.pipe for worker in busy], timeout=SECONDS_BETWEEN_LOOKS):
                self._hear(next(worker for worker in busy if worker.pipe is pipe))
        for path, left in self.missing.items():
            if left >= 0:
                reason = "not finished when time was up" if self.workers else "no process was left"
                self.reasons.setdefault(path, reason)
        return self.reasons

    def end(self) -> None:
        for worker in self.workers:
            if worker.job is not None:
                worker.process.terminate()
            worker.pipe.close()  # Whoever waits for a job ends.
        for worker in self.workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()

    def _hand_out(self) -> None:
        for work in list(self.waiting):
            if work.after is not None and self.missing.get(work.after, -1) >= 0:
                continue
            self.waiting.remove(work)
            if work.after is not None and work.after in self.reasons:
                self._fail(work, f"{work.after.stem} has no results")
                continue
            shards = [Shard(index=i, count=work.num_shards) for i in range(work.num_shards)]
            self.ready += [_Job(work, shard) for shard in shards]
        for worker in self.workers:
            if worker.job is None and self.ready:
                worker.job = self._next()
                with suppress(OSError):  # A dead one is noticed when it is heard.
                    worker.pipe.send(worker.job)

    def _next(self) -> _Job:
        """Return results first, others wait for them; then in the order given."""
        job = min(self.ready, key=lambda job: (job.shard is not None, self.order[job.work.path]))
        self.ready.remove(job)
        return job

    def _hear(self, worker: _Worker) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        try:
            failure: str | None = worker.pipe.recv()
        except (EOFError, OSError):  # Reset, if it had not read all that it was sent.
            worker.process.join()
            self.workers.remove(worker)
            failure = f"its process ended with exit code {worker.process.exitcode}"
            if job not in self.orphans:  # Once more, by another process.
                self.orphans.append(job)
                self.ready.append(job)
                self.say(f"{job.work.path.stem}: {failure}; another takes its job")
                return
        path = job.work.path
        part = "results" if job.shard is None else f"part {job.shard.index + 1}/{job.shard.count}"
        seconds = time.monotonic() - self.started
        self.say(f"{seconds:6.0f} s  {path.parent.name}/{path.stem}: {part} {failure or 'done'}")
        if failure is not None:
            self._fail(job.work, failure)
        elif path not in self.reasons:
            self.missing[path] -= 1
            if self.missing[path] == 0:
                self.ready.append(_Job(job.work, None))

    def _fail(self, work: Work, reason: str) -> None:
        self.reasons.setdefault(work.path, reason)
        self.missing[work.path] = -1
        self.ready = [job for job in self.ready if job.work.path != work.path]


def _serve(pipe: Connection, device: str, num_processes: int) -> None:
    """Do jobs until the pipe is closed; see `run_pool`."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends its processes.
    # Processes that each use all cores mostly wait for one another.
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    parent, models = os.getppid(), _OneModel(device)

    def check_parent() -> None:
        if os.getppid() != parent:
            sys.exit("the process that started this one is gone")

    while True:
        try:
            job: _Job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            _do(job, models, check_parent)
            failure = None
        except LightThinkerError as error:
            failure = f"failed: {error}"
        except Exception as error:
            traceback.print_exc()
            models.close()  # Who knows what state it is in.
            failure = f"failed: {type(error).__name__}: {error}"
        pipe.send(failure)


def _do(job: _Job, models: _OneModel, check_parent: Callable[[], None]) -> None:
    evaluation = job.work.evaluation(lambda: models.get(job.work))
    if job.shard is not None:
        evaluation.run(job.shard, check=check_parent)
        return
    results, records = evaluation.results(evaluation.run())
    write_samples(records, samples_path(job.work.path), overwrite=True)
    write_results(results, job.work.path, overwrite=True)
    shutil.rmtree(journal_path(job.work.path))


class _OneModel:
    """The model of the last job, kept for the next."""

    def __init__(self, device: str):
        self.device = device
        self._key: tuple[object, ...] = ()
        self._llm: LLM | None = None

    def get(self, work: Work) -> LLM:
        from lightthinker.engine.llm import LLM

        key = (work.model, *sorted(dict(work.options).items()))
        if self._llm is None or key != self._key:
            self.close()
            self._llm = LLM(work.model, **{**work.options, "device": self.device})
            self._key = key
        return self._llm

    def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()
