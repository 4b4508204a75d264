"""Work divided over processes: problem i belongs to shard i modulo the number of shards.

Every record has a key, a place and seeds of its own, so the records of any division, in the order
of `merge`, are those of one process. A worker that finds its parent gone ends after the sample at
hand. Knows no settings and no results.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightthinker.errors import ConfigError, DataError, LightThinkerError
from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.records import SampleRecord

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One part of the work.

    Attributes:
        index: Which, from 0.
        count: Of how many.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"num_shards is {self.count}; it must be at least 1.")
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard is {self.index}; it must be from 0 to {self.count - 1}.")

    def problems(self, problems: Sequence[EvalProblem]) -> list[EvalProblem]:
        """Return this shard's problems; every family is divided evenly."""
        return list(problems[self.index :: self.count])


def merge(
    records: Iterable[SampleRecord],
    problems: Sequence[EvalProblem],
    methods: Sequence[str],
    num_samples: int,
) -> list[SampleRecord]:
    """Return the records in the order of methods, problems and samples.

    Raises:
        DataError: One is missing.
    """
    found = {record.key: record for record in records}
    keys = [(m, p.id, s) for m in methods for p in problems for s in range(num_samples)]
    missing = [key for key in keys if key not in found]
    if missing:
        raise DataError(f"{len(missing)} of {len(keys)} samples are missing, first {missing[0]}.")
    return [found[key] for key in keys]


def run_processes(
    target: Callable[..., None],
    arguments: Sequence[tuple[object, ...]],
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Run a function in fresh processes, one for each tuple of arguments, and wait for them.

    Args:
        target: A function of a module; what it raises is printed by its process.
        arguments: Picklable.
        on_wait: Called now and then while they run.

    Raises:
        DataError: A process failed. The others have been waited for, so nothing they did is lost.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_guarded, args=(target, os.getpid(), *given)) for given in arguments
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            while process.is_alive():
                process.join(SECONDS_BETWEEN_LOOKS)
                on_wait()
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    failed = [i for i, process in enumerate(processes) if process.exitcode]
    if failed:
        names = ", ".join(map(str, failed))
        raise DataError(
            f"Shard {names} of {len(processes)} failed (see above). What is finished is kept: the "
            "same command goes on from there."
        )


def _guarded(target: Callable[..., None], parent: int, *given: object) -> None:
    def check_parent() -> None:
        if os.getppid() != parent:
            sys.exit("the process that started this shard is gone")

    try:
        target(*given, check_parent)
    except LightThinkerError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
