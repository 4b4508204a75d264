"""What an evaluation asks: tasks, methods, how many problems and samples, how they are drawn.

Checked before any work. Knows no model and no files but those it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.evals.benchmarks import (
    ALL_FAMILIES,
    BENCHMARKS,
    GSM8K,
    EvalProblem,
    load_benchmark,
)
from lightthinker.evals.benchmarks.naming import BenchmarkName
from lightthinker.evals.methods import find_methods
from lightthinker.evals.summaries import is_lightthinker


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is asked of a model.

    Attributes:
        tasks: Benchmark names; of several `gsm8k` styles, each reads `data`.
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
        match_to: Results file whose LightThinker sets matched budgets; None: this run's.
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
    match_to: Path | None = None

    def __post_init__(self) -> None:
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise ConfigError(f"tasks is {', '.join(self.tasks)!r}; name each task once.")
        names = [BenchmarkName.parse(task).name for task in self.tasks]
        if self.data is not None and GSM8K not in names:
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
        methods = find_methods(self.methods)
        light = any(is_lightthinker(method.name) for method in methods)
        if any(method.match for method in methods) and not light and self.match_to is None:
            raise ConfigError(
                "match needs lightthinker among the methods, or its results by --match-to."
            )

    @property
    def sampling(self) -> SamplingParams:
        """How samples are drawn; the compression switch is the method's."""
        seed = self.seed if self.temperature else None
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)

    def problems(self) -> list[EvalProblem]:
        """Load every task's problems."""
        given = [count for count in (self.num_problems, self.limit) if count is not None]
        with_data = [t for t in self.tasks if BenchmarkName.parse(t).name == GSM8K]
        return [
            problem
            for name in self.tasks
            for problem in load_benchmark(
                name, num_problems=min(given, default=None), seed=self.seed,
                difficulty=self.difficulty, path=self.data if name in with_data else None,
            )
        ]  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return the benchmark's name and settings for the record."""
        names = [BenchmarkName.parse(task).name for task in self.tasks]
        generated = any(name not in BENCHMARKS for name in names)
        return {
            "name": ",".join(self.tasks),
            **({"difficulty": self.difficulty} if generated else {}),
            **({"limit": self.limit} if self.limit is not None else {}),
        }

    def describe_sampling(self) -> dict[str, Any]:
        """Return how samples are drawn for the record."""
        several = {"num_samples": self.num_samples} if self.num_samples > 1 else {}
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, **several}
