"""A batch over several engines: Ray actors answer, one driver writes.

Actors hold no state that matters: a dead one is replaced and its rows are given to another. The
driver alone writes the journal, which drops repeats; this, and not Ray, makes output exactly-once.
Rows that were with workers that died `MAX_DEATHS` times become errors, so one bad row cannot loop.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import count
from typing import Any

from lightthinker.errors import ConfigError
from lightthinker.scale.batch import BatchSettings, OnResult, answer_rows, failure
from lightthinker.scale.rows import BatchRow

MAX_DEATHS = 3
Job = tuple[tuple[int, BatchRow], ...]


class BatchWorker:
    """One engine in a process of its own."""

    def __init__(self, settings: BatchSettings, options: dict[str, Any]):
        from lightthinker.demo.loading import open_llm

        self.settings = settings
        self.llm = open_llm(settings.model, **options)

    def answer(self, job: Job) -> list[dict[str, Any]]:
        """Answer the rows of a job."""
        results: list[dict[str, Any]] = []
        answer_rows(self.llm, job, self.settings, results.extend)
        return results


def run_on_ray(
    rows: Sequence[tuple[int, BatchRow]],
    settings: BatchSettings,
    on_results: OnResult,
    *,
    num_replicas: int,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    rows_per_job: int = 32,
    options: dict[str, Any] | None = None,
) -> None:
    """Answer rows on Ray actors.

    Args:
        rows: Places in the input and rows.
        settings: How to answer.
        on_results: Called in this process with each job's results.
        num_replicas: Engines.
        num_cpus: CPUs reserved for each.
        num_gpus: GPUs reserved for each.
        rows_per_job: Rows that travel together; what is lost when a worker dies is done again.
        options: Keyword arguments of each `LLM`.
    """
    try:
        import ray
        from ray.exceptions import RayActorError
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Several replicas need Ray; install it with `pip install 'lightthinker[ray]'`."
        ) from error
    if num_replicas < 1 or rows_per_job < 1:
        raise ConfigError("num_replicas and rows_per_job must be at least 1.")
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    worker_class = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(BatchWorker)
    numbers = count()

    def hire() -> Any:
        named = worker_class.options(name=f"batch-worker-{next(numbers)}")
        return named.remote(settings, options or {})

    jobs: deque[Job] = deque(
        tuple(rows[i : i + rows_per_job]) for i in range(0, len(rows), rows_per_job)
    )
    deaths: Counter[str] = Counter()
    running: dict[Any, tuple[Any, Job]] = {}
    idle = [hire() for _ in range(num_replicas)]
    while jobs or running:
        while jobs and idle:
            worker, job = idle.pop(), jobs.popleft()
            running[worker.answer.remote(job)] = (worker, job)
        finished, _ = ray.wait(list(running), num_returns=1)
        worker, job = running.pop(finished[0])
        try:
            results = ray.get(finished[0])
        except RayActorError as error:
            retry, given_up = _after_death(job, deaths)
            jobs.extendleft(retry)
            if given_up:
                on_results([failure(row, f"its worker died: {error}") for _, row in given_up])
            worker = hire()
        else:
            on_results(results)
        idle.append(worker)
    for worker in idle:
        ray.kill(worker)


def _after_death(job: Job, deaths: Counter[str]) -> tuple[list[Job], Job]:
    """Return the jobs to try again and the rows to give up; a job is split, to isolate a row."""
    deaths.update(row.id for _, row in job)
    given_up = tuple(pair for pair in job if deaths[pair[1].id] >= MAX_DEATHS and len(job) == 1)
    left = tuple(pair for pair in job if pair not in given_up)
    middle = (len(left) + 1) // 2
    return [half for half in (left[:middle], left[middle:]) if half], given_up
