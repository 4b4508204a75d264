"""One evaluation from settings to results: the library's side of `lightthinker eval`.

With a journal, what is finished survives the process: the same settings go on where they stopped,
in one process or in several shards, and whoever finds nothing left to run puts the records
together. Without one, everything is in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.evals.benchmarks import ALL_FAMILIES, GSM8K, EvalProblem, load_benchmark
from lightthinker.evals.controls import gists_swapped
from lightthinker.evals.journal import (
    JournalWriter,
    check_idle,
    device_names,
    open_journal,
    read_journal,
)
from lightthinker.evals.methods import find_methods
from lightthinker.evals.provenance import (
    device_name,
    git_commit,
    model_digests,
    package_versions,
)
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.results import EvalResults, RunInfo
from lightthinker.evals.runner import OnRecord, run_methods
from lightthinker.evals.shards import Shard, merge, run_processes

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

ALONE = Shard()


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is asked of a model.

    Attributes:
        tasks: Benchmark names.
        methods: Method names; empty: full CoT, and LightThinker if the checkpoint compresses.
        num_problems: Problems of each task; None: 1000 generated ones, or the whole file.
        limit: Only the first problems of each task, for a quick look.
        num_samples: Samples of each problem, for pass@k and maj@k.
        seed: Of generated problems, and of sampling.
        difficulty: Of generated problems.
        data: Local JSONL file for GSM8K.
        swap_gists: Also run the control `gists_swapped`.
        max_tokens: Most tokens sampled per problem.
        temperature: 0 is greedy.
    """

    tasks: tuple[str, ...] = (ALL_FAMILIES,)
    methods: tuple[str, ...] = ()
    num_problems: int | None = None
    limit: int | None = None
    num_samples: int = 1
    seed: int = 0
    difficulty: str = "standard"
    data: Path | None = None
    swap_gists: bool = False
    max_tokens: int = 4096
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise ConfigError(f"tasks is {', '.join(self.tasks)!r}; name each task once.")
        if self.data is not None and GSM8K not in self.tasks:
            raise ConfigError(f"data is a file for {GSM8K}, which is not among the tasks.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; it must be at least 1.")
        if self.num_samples < 1:
            raise ConfigError(f"num_samples is {self.num_samples}; it must be at least 1.")
        if self.num_samples > 1 and not self.temperature:
            raise ConfigError(
                f"num_samples is {self.num_samples} at temperature 0, where all samples are equal; "
                "set a temperature, e.g. --temperature 0.6."
            )
        find_methods(self.methods)

    @property
    def sampling(self) -> SamplingParams:
        """How samples are drawn; the compression switch is the method's."""
        seed = self.seed if self.temperature else None
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)

    def problems(self) -> list[EvalProblem]:
        """Load every task's problems."""
        given = [count for count in (self.num_problems, self.limit) if count is not None]
        return [
            problem
            for name in self.tasks
            for problem in load_benchmark(
                name, num_problems=min(given, default=None), seed=self.seed,
                difficulty=self.difficulty, path=self.data if name == GSM8K else None,
            )
        ]  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return the benchmark's name and settings for the record."""
        generated = any(name != GSM8K for name in self.tasks)
        return {
            "name": ",".join(self.tasks),
            **({"difficulty": self.difficulty} if generated else {}),
            **({"limit": self.limit} if self.limit is not None else {}),
        }

    def describe_sampling(self) -> dict[str, Any]:
        """Return how samples are drawn for the record."""
        several = {"num_samples": self.num_samples} if self.num_samples > 1 else {}
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, **several}


@dataclass(kw_only=True)
class Evaluation:
    """One run of the settings on a model.

    Attributes:
        open_llm: Loads the model; called only when something is left to run, and once the problems
            are there, so that bad settings fail first.
        settings: What to run.
        model: The model's folder or hub name, for the record.
        command: The command line, for the record.
        dtype: As the model is to be loaded, for the record.
        journal: Folder that keeps what is finished until the results are written.
        overwrite: Throw away a journal with other settings.
        console: For progress.
    """

    open_llm: Callable[[], LLM]
    settings: EvalSettings
    model: str | Path
    command: str
    dtype: str = "auto"
    journal: Path | None = None
    overwrite: bool = False
    console: Console | None = None

    @cached_property
    def problems(self) -> list[EvalProblem]:
        """All problems, of all shards."""
        return self.settings.problems()

    @cached_property
    def llm(self) -> LLM:
        """The model, loaded when first needed."""
        return self.open_llm()

    @cached_property
    def digests(self) -> dict[str, str]:
        """The checkpoint's digests."""
        return model_digests(self.model)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the records; a journal belongs to one identity."""
        settings = dataclasses.asdict(self.settings)
        return {
            **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
            "model": self.digests["sha256"] or str(self.model),
            "problems_sha256": problems_sha256(self.problems),
            "dtype": self.dtype,
            "versions": package_versions(),
        }

    def prepare(self) -> None:
        """Load the problems, and begin or find the journal.

        Raises:
            ConfigError: Settings that do not fit together, or a journal with others.
            DataError: A benchmark's data cannot be read.
        """
        assert self.problems
        if self.journal is not None:
            open_journal(self.journal, self.identity(), overwrite=self.overwrite)

    def run(
        self, shard: Shard = ALONE, *, check: Callable[[], None] = lambda: None
    ) -> list[SampleRecord]:
        """Run what is left of a shard; alone, the shard is everything.

        Args:
            shard: Which part of the problems.
            check: Called after every sample, when it is on disk; may end the process.

        Returns:
            The records of this shard's problems.
        """
        problems = shard.problems(self.problems)
        if self.journal is None:
            return self._run_missing(problems, [], lambda _: check())
        check_idle(self.journal, num_shards=shard.count)
        with JournalWriter(self.journal, shard=shard.index, num_shards=shard.count) as journal:
            done = read_journal(self.journal)
            if self._is_complete(problems, done):
                return done

            def keep(record: SampleRecord) -> None:
                journal.write(record)
                check()

            journal.note_device(device_name(self.llm))
            return self._run_missing(problems, done, keep)

    def run_on(self, devices: Sequence[str], options: Mapping[str, Any]) -> None:
        """Run everything, one process per device.

        Args:
            devices: Torch devices, one shard each.
            options: Keyword arguments of `LLM` but for the device.

        Raises:
            DataError: A process failed.
        """
        assert self.journal is not None, "shards meet in the journal"
        run_processes(
            shard_worker,
            [
                (
                    str(self.model), {**options, "device": device}, self.settings, self.journal,
                    Shard(index=index, count=len(devices)),
                )
                for index, device in enumerate(devices)
            ],
        )  # fmt: skip

    def results(self, records: Iterable[SampleRecord]) -> tuple[EvalResults, list[SampleRecord]]:
        """Put the records together and run the controls.

        Raises:
            DataError: Records are missing.
        """
        found = list(records)
        names = self._method_names(found)
        ordered = merge(found, self.problems, names, self.settings.num_samples)
        controls = {}
        if self.settings.swap_gists:
            controls["gists_swapped"] = gists_swapped(
                self.llm, self.problems, self.settings.sampling
            )
        info = RunInfo(
            benchmark=self.settings.describe(),
            model={"name": Path(self.model).name, **self.digests},
            device=self._device(), seed=self.settings.seed, command=self.command,
            sampling=self.settings.describe_sampling(), git_commit=git_commit(),
        )  # fmt: skip
        return EvalResults.from_records(ordered, info, controls), ordered

    def _run_missing(
        self,
        problems: Sequence[EvalProblem],
        done: Sequence[SampleRecord],
        on_record: OnRecord,
    ) -> list[SampleRecord]:
        methods = find_methods(self.settings.methods or default_methods(self.llm))
        return run_methods(
            self.llm, problems, methods, self.settings.sampling,
            num_samples=self.settings.num_samples, done={r.key: r for r in done},
            on_record=on_record, console=self.console,
        )  # fmt: skip

    def _is_complete(
        self, problems: Sequence[EvalProblem], records: Sequence[SampleRecord]
    ) -> bool:
        found = {record.key for record in records}
        names = self._method_names(records)
        samples = range(self.settings.num_samples)
        return bool(names) and all(
            (name, problem.id, sample) in found
            for name in names for problem in problems for sample in samples
        )  # fmt: skip

    def _method_names(self, records: Sequence[SampleRecord]) -> list[str]:
        if self.settings.methods:
            return [method.name for method in find_methods(self.settings.methods)]
        return list(default_methods(self.llm))

    def _device(self) -> str:
        names = device_names(self.journal) if self.journal else []
        return "; ".join(names) or device_name(self.llm)


def evaluate(
    open_llm: Callable[[], LLM],
    settings: EvalSettings,
    *,
    model: str | Path,
    command: str,
    console: Console | None = None,
    journal: Path | None = None,
) -> tuple[EvalResults, list[SampleRecord]]:
    """Run an evaluation in this process.

    Args:
        open_llm: Loads the model.
        settings: What to run.
        model: The model's folder or hub name, for the record.
        command: The command line, for the record.
        console: For progress.
        journal: Folder that keeps what is finished; begun, or gone on with.

    Returns:
        The aggregates and the per-sample records.

    Raises:
        ConfigError: Settings that do not fit together, or the model, or the journal.
        DataError: A benchmark's data cannot be read.
    """
    evaluation = Evaluation(
        open_llm=open_llm, settings=settings, model=model, command=command, console=console,
        journal=journal,
    )  # fmt: skip
    evaluation.prepare()
    return evaluation.results(evaluation.run())


def problems_sha256(problems: Sequence[EvalProblem]) -> str:
    """Return a digest of ids, conversations and references."""
    digest = hashlib.sha256()
    for p in problems:
        messages = [dict(message) for message in p.messages]
        digest.update(json.dumps([p.id, messages, p.reference]).encode())
    return digest.hexdigest()


def default_methods(llm: LLM) -> tuple[str, ...]:
    """Return full CoT, and LightThinker if the checkpoint compresses."""
    compresses = llm.compression is not None and llm.compression.method != "full"
    return ("full_cot", "lightthinker") if compresses else ("full_cot",)


def shard_worker(
    model: str,
    options: Mapping[str, Any],
    settings: EvalSettings,
    journal: Path,
    shard: Shard,
    check_parent: Callable[[], None],
) -> None:
    """Run one shard in a process of its own; see `shards.run_processes`."""
    from transformers.utils import logging

    from lightthinker.engine.llm import LLM

    logging.disable_progress_bar()
    evaluation = Evaluation(
        open_llm=lambda: LLM(model, **options), settings=settings, model=model, command="",
        dtype=options["dtype"], journal=journal,
    )  # fmt: skip
    evaluation.prepare()
    evaluation.run(shard, check=check_parent)
