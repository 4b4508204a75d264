"""One evaluation from settings to results: the library's side of `lightthinker eval`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.evals.benchmarks import ALL_FAMILIES, GSM8K, EvalProblem, load_benchmark
from lightthinker.evals.controls import gists_swapped
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.results import EvalResults, RunInfo, weights_sha256
from lightthinker.evals.runner import device_name, find_methods, run_methods

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is asked of a model.

    Attributes:
        tasks: Benchmark names.
        methods: Method names; empty: full CoT, and LightThinker if the checkpoint compresses.
        num_problems: Problems of each task; None: 1000 generated ones, or the whole file.
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
        find_methods(self.methods)

    @property
    def sampling(self) -> SamplingParams:
        """How samples are drawn; the compression switch is the method's."""
        seed = self.seed if self.temperature else None
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)

    def problems(self) -> list[EvalProblem]:
        """Load every task's problems."""
        return [
            problem
            for name in self.tasks
            for problem in load_benchmark(
                name, num_problems=self.num_problems, seed=self.seed, difficulty=self.difficulty,
                path=self.data if name == GSM8K else None,
            )
        ]  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return the benchmark's name and settings for the record."""
        generated = any(name != GSM8K for name in self.tasks)
        return {
            "name": ",".join(self.tasks),
            **({"difficulty": self.difficulty} if generated else {}),
        }


def evaluate(
    open_llm: Callable[[], LLM],
    settings: EvalSettings,
    *,
    model: str | Path,
    command: str,
    console: Console | None = None,
) -> tuple[EvalResults, list[SampleRecord]]:
    """Run an evaluation.

    Args:
        open_llm: Loads the model; called once the problems are there, so that bad settings fail
            first.
        settings: What to run.
        model: The model's folder or hub name, for the record.
        command: The command line, for the record.
        console: For progress.

    Returns:
        The aggregates and the per-sample records.

    Raises:
        ConfigError: Settings that do not fit together, or the model.
        DataError: A benchmark's data cannot be read.
    """
    problems = settings.problems()
    llm = open_llm()
    methods = find_methods(settings.methods or _default_methods(llm))
    records = run_methods(llm, problems, methods, settings.sampling, console=console)
    controls = {}
    if settings.swap_gists:
        controls["gists_swapped"] = gists_swapped(llm, problems, settings.sampling)
    info = RunInfo(
        benchmark=settings.describe(),
        model={"name": Path(model).name, "sha256": weights_sha256(model)},
        device=device_name(llm), seed=settings.seed, command=command,
        sampling={"max_tokens": settings.max_tokens, "temperature": settings.temperature},
    )  # fmt: skip
    return EvalResults.from_records(records, info, controls), records


def _default_methods(llm: LLM) -> tuple[str, ...]:
    compresses = llm.compression is not None and llm.compression.method != "full"
    return ("full_cot", "lightthinker") if compresses else ("full_cot",)
