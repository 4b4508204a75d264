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

from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.controls import gists_swapped
from lightthinker.evals.journal import (
    JournalFollower,
    JournalWriter,
    check_idle,
    device_names,
    open_journal,
    read_journal,
)
from lightthinker.evals.methods import (
    Method,
    Targets,
    find_methods,
    targets_from_records,
    targets_from_results,
)
from lightthinker.evals.progress import EvalProgress
from lightthinker.evals.provenance import (
    device_name,
    device_unit,
    git_commit,
    model_digests,
    package_versions,
)
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.results import EvalResults, RunInfo, read_results
from lightthinker.evals.runner import OnRecord, run_methods
from lightthinker.evals.settings import EvalSettings
from lightthinker.evals.shards import Shard, merge, run_processes
from lightthinker.evals.summaries import is_lightthinker

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

ALONE = Shard()


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
        """The model, loaded when first needed, its kernels compiled before any clock runs."""
        llm = self.open_llm()
        llm.engine.warm_up()
        return llm

    def close(self) -> None:
        """Give back the memory of the model, if it was loaded: another one may be next."""
        llm = self.__dict__.pop("llm", None)
        if llm is not None:
            llm.shutdown()

    @cached_property
    def digests(self) -> dict[str, str]:
        """The checkpoint's digests."""
        return model_digests(self.model)

    @cached_property
    def _methods(self) -> list[Method]:
        """What runs; read once, so that results tell of what ran though a file has changed."""
        return list(find_methods(self._names()))

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the records; a journal belongs to one identity."""
        settings = dataclasses.asdict(self.settings)
        resolved = [method.resolved for method in find_methods(self.settings.methods)]
        own = {m.name: m.file_sha256 for m in resolved if m.file_sha256 is not None}
        return {
            **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
            "model": self.digests["sha256"] or str(self.model),
            "problems_sha256": problems_sha256(self.problems),
            "dtype": self.dtype,
            "versions": package_versions(),
            **({"policies": own} if own else {}),
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
            if not self.num_missing(shard, done):
                return done

            console = self.console or Console(stderr=True)
            if done:
                console.print(f"Resuming: {len(done):,} samples are done.", highlight=False)

            def keep(record: SampleRecord) -> None:
                journal.write(record)
                check()

            journal.note_device(device_name(self.llm), device_unit(self.llm))
            return self._run_missing(problems, done, keep)

    def num_missing(self, shard: Shard, records: Iterable[SampleRecord]) -> int:
        """Return how many of a shard's samples wait for what other shards have yet to run."""
        found = {record.key for record in records}
        names = [method.name for method in self._methods]
        problems, samples = shard.problems(self.problems), range(self.settings.num_samples)
        keys = ((m, p.id, s) for m in names for p in problems for s in samples)
        return sum(key not in found for key in keys)

    def run_on(self, devices: Sequence[str], options: Mapping[str, Any]) -> None:
        """Run everything, one process per device.

        Args:
            devices: Torch devices, one shard each.
            options: Keyword arguments of `LLM` but for the device.

        Raises:
            DataError: A process failed.
        """
        assert self.journal is not None, "shards meet in the journal"
        jobs = [
            (
                str(self.model), {**options, "device": device}, self.settings, self.journal,
                Shard(index=index, count=len(devices)),
            )
            for index, device in enumerate(devices)
        ]  # fmt: skip
        methods = self._methods
        matched = self.settings.match_to is None and any(m.match for m in methods)
        with EvalProgress(self.console) as progress:
            for method in methods:
                progress.start(method.name, len(self.problems) * self.settings.num_samples)
            follower = JournalFollower(self.journal)

            def look() -> None:
                for record in follower.new_records():
                    progress.advance(record)

            # Matched budgets are known once every shard has run LightThinker.
            for _ in range(1 + matched):
                run_processes(shard_worker, jobs, on_wait=look)

    def results(self, records: Iterable[SampleRecord]) -> tuple[EvalResults, list[SampleRecord]]:
        """Put the records together and run the controls.

        Raises:
            DataError: Records are missing.
        """
        methods = self._methods
        ordered = merge(
            records, self.problems, [method.name for method in methods], self.settings.num_samples
        )
        controls = {}
        if self.settings.swap_gists:
            controls["gists_swapped"] = gists_swapped(
                self.llm, self.problems, self.settings.sampling
            )
        info = RunInfo(
            benchmark={**self.settings.describe(), **self._prompts()},
            model={"name": Path(self.model).name, **self.digests},
            device=self._device(), seed=self.settings.seed, command=self.command,
            sampling=self.settings.describe_sampling(),
            method_settings={method.name: method.describe() for method in methods},
            git_commit=git_commit(),
        )  # fmt: skip
        return EvalResults.from_records(ordered, info, controls), ordered

    def _run_missing(
        self,
        problems: Sequence[EvalProblem],
        done: Sequence[SampleRecord],
        on_record: OnRecord,
    ) -> list[SampleRecord]:
        methods = self._methods
        plain = [method for method in methods if method.match is None]
        matched = [method for method in methods if method.match is not None]
        records = self._run_methods(problems, plain, done, on_record, {})
        if not matched:
            return records
        targets = self._targets(records)
        if targets is None:
            return records
        return records + self._run_methods(problems, matched, done, on_record, targets)

    def _run_methods(
        self,
        problems: Sequence[EvalProblem],
        methods: Sequence[Method],
        done: Sequence[SampleRecord],
        on_record: OnRecord,
        targets: Targets,
    ) -> list[SampleRecord]:
        return run_methods(
            self.llm, problems, methods, self.settings.sampling,
            num_samples=self.settings.num_samples, targets=targets,
            done={r.key: r for r in done}, on_record=on_record, console=self.console,
        )  # fmt: skip

    def _targets(self, records: Sequence[SampleRecord]) -> Targets | None:
        """Return what LightThinker held on all problems; None while other shards are at it."""
        if self.settings.match_to is not None:
            return targets_from_results(read_results(self.settings.match_to))
        everyone = records if self.journal is None else read_journal(self.journal)
        light = next(name for name in self._names() if is_lightthinker(name))
        found = [record for record in everyone if record.method == light]
        if len(found) < len(self.problems) * self.settings.num_samples:
            return None
        return targets_from_records(found)

    def _names(self) -> tuple[str, ...]:
        return self.settings.methods or default_methods(self.llm)

    def _prompts(self) -> dict[str, Any]:
        prompts = dict.fromkeys(p.prompt for p in self.problems if p.prompt)
        return {"prompts": list(prompts)} if prompts else {}

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
    import torch
    from transformers.utils import logging

    from lightthinker.engine.llm import LLM

    # Processes that each use all cores mostly wait for one another.
    torch.set_num_threads(max(1, torch.get_num_threads() // shard.count))
    logging.disable_progress_bar()
    evaluation = Evaluation(
        open_llm=lambda: LLM(model, **options), settings=settings, model=model, command="",
        dtype=options["dtype"], journal=journal, console=Console(quiet=True),
    )  # fmt: skip
    evaluation.prepare()
    evaluation.run(shard, check=check_parent)
