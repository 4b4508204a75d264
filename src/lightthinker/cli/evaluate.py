"""`lightthinker eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from lightthinker.evals.records import SampleRecord
    from lightthinker.evals.results import EvalResults


def evaluate(
    model: str,
    /,
    *,
    tasks: str = "tasks",
    methods: str | None = None,
    num_problems: int | None = None,
    limit: int | None = None,
    num_samples: int = 1,
    seed: int = 0,
    difficulty: str = "standard",
    data: Path | None = None,
    swap_gists: bool = False,
    max_tokens: int = 4096,
    temperature: float = 0.0,
    match_to: Path | None = None,
    output: Path | None = None,
    samples: bool = False,
    report: bool = False,
    card: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    devices: Annotated[str | None, Parameter(group="Shards")] = None,
    num_shards: Annotated[int, Parameter(group="Shards")] = 1,
    shard: Annotated[int | None, Parameter(group="Shards")] = None,
    max_num_seqs: Annotated[int, Parameter(group="Engine")] = 256,
    num_kv_tokens: Annotated[int | None, Parameter(group="Engine")] = None,
) -> None:
    """Measure accuracy and cost, with and without compression, in one engine.

    With --output, every finished sample is kept: the same command goes on after a crash.

    Args:
        model: Checkpoint folder or hub name; `demo` is the bundled model.
        tasks: Comma-separated: a task family, `tasks` for all of them evenly, or a benchmark
            (docs/benchmarks.md), e.g. gsm8k, mmlu, gpqa, bbh, math500, gsm8k:plain=test.jsonl.
        methods: Comma-separated, with options after a colon: full_cot, lightthinker,
            h2o:budget=256, random:match=mean, my_policy.py:budget=256, ... (match: the budget is
            LightThinker's mean or peak live tokens on the same task). By default full_cot, and
            lightthinker if the checkpoint compresses.
        num_problems: Problems of each task; by default 1000 generated ones or the whole file.
        limit: Only the first problems of each task, for a quick look.
        num_samples: Samples of each problem, for pass@k and maj@k; needs a temperature.
        seed: Chooses generated problems (never those of training) and seeds sampling.
        difficulty: Of generated problems: tiny, demo, standard, mixed, long (traces of 2k
            tokens), 4k or 8k.
        data: A local JSONL file for gsm8k, instead of the hub.
        swap_gists: Also run the control that replaces each problem's gists by another's.
        max_tokens: Most tokens to sample per problem.
        temperature: 0 is greedy.
        match_to: Results file whose LightThinker sets matched budgets, in place of this run's.
        output: JSON file for the results; without it they are only printed.
        samples: Also write every sample, as JSON lines beside the results.
        report: Also write samples and the HTML report beside the results.
        card: Also put the results into the model card of a checkpoint that `train` made.
        overwrite: Replace existing files, and a journal that was begun with other settings.
        device: cpu, cuda, cuda:1, ...; by default CUDA if there is one.
        dtype: auto, float32, bfloat16 or float16.
        devices: Comma-separated: one process on each, dividing the problems; e.g. cuda:0,cuda:1.
        num_shards: Divide the problems into this many parts, to run each by a command of its own;
            the same command without it writes the results.
        shard: Which part this command runs, from 0.
        max_num_seqs: Most sequences running at once.
        num_kv_tokens: Tokens that the KV pool holds.
    """
    from rich.console import Console
    from rich.text import Text

    from lightthinker.bundled import model_path
    from lightthinker.cli.app import command_line
    from lightthinker.demo.loading import open_llm
    from lightthinker.errors import ConfigError
    from lightthinker.evals import tables
    from lightthinker.evals.evaluate import Evaluation
    from lightthinker.evals.settings import EvalSettings
    from lightthinker.evals.shards import Shard
    from lightthinker.policies.methods import split_methods

    settings = EvalSettings(
        tasks=_names(tasks), methods=tuple(split_methods(methods or "")),
        num_problems=num_problems, limit=limit,
        num_samples=num_samples, seed=seed, difficulty=difficulty, data=data,
        swap_gists=swap_gists, max_tokens=max_tokens, temperature=temperature,
        match_to=match_to,
    )  # fmt: skip
    part = Shard(index=shard or 0, count=num_shards)
    if (shard is not None or devices is not None or num_shards > 1) and output is None:
        raise ConfigError("Shards meet in the journal beside the results; give --output.")
    if (shard is None) != (num_shards == 1):
        raise ConfigError("Give --num-shards and --shard together, or neither.")
    if devices is not None and (device is not None or shard is not None):
        raise ConfigError("--devices starts its own shards; leave --device and --shard out.")
    files = _Files.planned(output, samples=samples, report=report, overwrite=overwrite)
    path = model_path(model)
    options = {
        "device": device, "dtype": dtype, "max_num_seqs": max_num_seqs,
        "num_kv_tokens": num_kv_tokens,
    }  # fmt: skip
    evaluation = Evaluation(
        open_llm=lambda: open_llm(path, **options), settings=settings, model=path,
        command=command_line(), dtype=dtype, journal=files.journal, overwrite=overwrite,
    )  # fmt: skip
    evaluation.prepare()
    try:
        if devices is not None:
            evaluation.run_on(_names(devices), options)
        records = evaluation.run(part)
    except KeyboardInterrupt:
        if files.journal is None:
            raise
        raise KeyboardInterrupt(
            f"Interrupted. Finished samples are kept in {files.journal}: the same command goes on "
            "from there."
        ) from None
    if shard is not None:
        missing = evaluation.num_missing(part, records)
        end = (
            "is done; the same command without --num-shards and --shard writes the results."
            if not missing
            else f"has {missing} samples whose budgets wait for LightThinker on the other shards; "
            "run the same command again when those are done."
        )
        print(f"Shard {shard} of {num_shards} {end}")
        return
    results, records = evaluation.results(records)
    console = Console()
    console.print(tables.terminal_table(results.overall, narrow=console.width < 76))
    for sentence in (tables.verdict(results.overall), tables.unfinished(results.overall)):
        if sentence:
            console.print(Text(f"{sentence}."))
    for name, control in results.controls.items():
        console.print(Text(f"{tables.control(name, control)}."))
    files.write(results, records)
    if card:
        from lightthinker.train.card import update_card

        update_card(Path(path), results.to_dict())
        print(f"Card: {Path(path) / 'README.md'}")


@dataclass(frozen=True, kw_only=True)
class _Files:
    results: Path | None
    samples: Path | None
    report: Path | None
    overwrite: bool

    @classmethod
    def planned(
        cls, output: Path | None, *, samples: bool, report: bool, overwrite: bool
    ) -> _Files:
        """Decide what to write, and refuse what exists before any work is done."""
        from lightthinker.errors import ConfigError
        from lightthinker.evals.records import check_absent, samples_path

        if output is None:
            if samples or report:
                raise ConfigError("--samples and --report write beside the results; give --output.")
            return cls(results=None, samples=None, report=None, overwrite=overwrite)
        files = cls(
            results=output,
            samples=samples_path(output) if samples or report else None,
            report=output.with_suffix(".html") if report else None,
            overwrite=overwrite,
        )
        wanted = [p for p in (files.results, files.samples, files.report) if p is not None]
        check_absent(*wanted, overwrite=overwrite)
        return files

    @property
    def journal(self) -> Path | None:
        """Where finished samples are kept until the results are written."""
        from lightthinker.evals.journal import journal_path

        return None if self.results is None else journal_path(self.results)

    def write(self, results: EvalResults, records: list[SampleRecord]) -> None:
        import shutil

        from lightthinker.evals.records import write_samples
        from lightthinker.evals.report import write_report
        from lightthinker.evals.results import write_results

        if self.results is None:
            return
        write_results(results, self.results, overwrite=self.overwrite)
        print(f"Results: {self.results}")
        if self.samples is not None:
            write_samples(records, self.samples, overwrite=self.overwrite)
            print(f"Samples: {self.samples}")
        if self.report is not None:
            write_report(self.results, self.report, overwrite=self.overwrite)
            print(f"Report: {self.report}")
        if self.journal is not None:
            shutil.rmtree(self.journal)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
