"""`lightthinker demo`: a model that compresses its own reasoning, shown, measured and written up.

First a problem or two with compression on, as they are solved; then full chain-of-thought
beside LightThinker over fresh problems; last the HTML report. Same checkpoint, same engine,
compression off and on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lightthinker.bundled import BUNDLED, model_path
from lightthinker.demo.loading import open_llm
from lightthinker.demo.meter import printable
from lightthinker.demo.view import show, verdict, write
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import CheckpointError
from lightthinker.evals import tables
from lightthinker.evals.benchmarks import ALL_FAMILIES, EvalProblem, load_benchmark
from lightthinker.evals.methods import find_methods
from lightthinker.evals.provenance import device_name, model_digests
from lightthinker.evals.records import SampleRecord, samples_path, write_samples
from lightthinker.evals.report import write_report
from lightthinker.evals.results import EvalResults, RunInfo, write_results
from lightthinker.evals.runner import run_methods

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

DIFFICULTY = "demo"
METHODS = ("full_cot", "lightthinker")
NUM_SHOWN = 2
SECONDS_PER_TOKEN = 0.02


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demonstration runs.

    Attributes:
        num_problems: Problems in the table.
        seed: Of the problems.
        family: One task family, or `tasks` for all evenly.
        output: Folder for report and results; numbered if it exists.
        model: Checkpoint trained on the task families; by default the bundled one.
        max_tokens: Most tokens per problem.
    """

    num_problems: int = 100
    seed: int = 0
    family: str = ALL_FAMILIES
    output: Path = Path("runs/demo")
    model: str | Path = BUNDLED
    max_tokens: int = 1024


def run_demo(
    settings: DemoSettings, console: Console, *, command: str = "lightthinker demo"
) -> Path:
    """Run the demonstration.

    Args:
        settings: What to run.
        console: Where to show it.
        command: The command line, for the record.

    Returns:
        Path of the HTML report.
    """
    model = model_path(settings.model)
    problems = load_benchmark(
        settings.family, num_problems=settings.num_problems, seed=settings.seed,
        difficulty=DIFFICULTY,
    )  # fmt: skip
    started = time.perf_counter()
    llm = _load(model, console)
    sampling = SamplingParams(max_tokens=settings.max_tokens)
    for problem in _to_show(problems):
        show_problem(llm, problem, sampling, console)
    console.rule(f"{len(problems)} fresh problems, with and without compression")
    records = run_methods(llm, problems, find_methods(METHODS), sampling, console=console)
    info = RunInfo(
        benchmark={"name": settings.family, "difficulty": DIFFICULTY},
        model={"name": Path(model).name, **model_digests(model)},
        device=device_name(llm), seed=settings.seed, command=command,
    )  # fmt: skip
    results = EvalResults.from_records(records, info)
    console.print(tables.terminal_table(results.overall, narrow=console.width < 76))
    write(console, Text(f"{tables.verdict(results.overall)}."))
    report = _save(results, records, _free_folder(settings.output))
    minutes = tables.duration(time.perf_counter() - started)
    console.print(Text(f"\nReport: {report}  ({minutes} in all)"), soft_wrap=True)
    return report


def show_problem(
    llm: LLM, problem: EvalProblem, sampling: SamplingParams, console: Console
) -> None:
    """Solve one problem with compression on, visibly, and check the answer."""
    console.rule(problem.family.replace("_", " "))
    write(console, Text(printable(problem.question), style="bold"))
    console.print()
    compression = llm.compression
    markers = (compression.reasoning_begin, compression.reasoning_end) if compression else ()
    stream = llm.stream(list(problem.messages), sampling)
    completion = show(stream, console, hidden=markers, pace_s=SECONDS_PER_TOKEN)
    verdict(console, correct=problem.grade(completion.text), reference=problem.reference)
    console.print()


def _load(model: str, console: Console) -> LLM:
    started = time.perf_counter()
    with console.status("Loading the model"):
        llm = open_llm(model)
    if llm.compression is None or llm.compression.method == "full":
        raise CheckpointError(
            f"{model} was not trained with LightThinker; the demo needs a model that compresses."
        )
    parameters = sum(p.numel() for p in llm.engine.runner.model.parameters())
    seconds = time.perf_counter() - started
    console.print(
        Text(
            f"{Path(model).name}: {parameters / 1e6:.1f}M parameters on {device_name(llm)}, "
            f"loaded in {seconds:.1f} s"
        ),
        style="dim",
    )
    return llm


def _to_show(problems: list[EvalProblem]) -> list[EvalProblem]:
    """Return the first problem of the first families."""
    first = {problem.family: problem for problem in reversed(problems)}
    chosen = [p for p in problems if first[p.family] is p] if len(first) > 1 else problems
    return chosen[:NUM_SHOWN]


def _free_folder(wanted: Path) -> Path:
    """Return the folder, or the first numbered one that does not exist yet."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _save(results: EvalResults, records: list[SampleRecord], folder: Path) -> Path:
    path = folder / "results.json"
    write_results(results, path)
    write_samples(records, samples_path(path))
    return write_report(path, folder / "report.html")
