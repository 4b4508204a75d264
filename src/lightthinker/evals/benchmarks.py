"""Benchmarks: named sets of problems, each with its own grader.

Task families (or `tasks`, all families evenly) are generated; their seeds live in a namespace
of their own: evaluation problem i of `--seed s` is `generate(family, seed=2**40 + s * 2**20 +
i)`, and no training recipe may use seeds from 2**40 on. Training rows (`train.datasets.TaskRows`)
are seeded by another string altogether. GSM8K comes from a local
JSONL file or from the hub. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightthinker.data.rows import HubOptions, open_rows
from lightthinker.data.trace import DropReason, TraceError
from lightthinker.errors import ConfigError, DataError, suggestion
from lightthinker.evals.graders import grade
from lightthinker.tasks import FAMILIES, Problem, generate, verify

HELD_OUT_SEEDS = 2**40
"""First seed of the problems that are kept for evaluation."""

SEED_STRIDE = 2**20
"""Problems of one family that one evaluation seed can have."""

ALL_FAMILIES = "tasks"
GSM8K = "gsm8k"
GSM8K_HUB_NAME = "openai/gsm8k"

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class EvalProblem:
    """A question with a grader.

    Attributes:
        id: Unique in its benchmark.
        family: Task family, or the benchmark's name.
        messages: The conversation to answer.
        reference: The expected answer.
        grade: Judges everything the model wrote.
        num_thoughts: Thoughts of the reference trace, if there is one.
        chance: Accuracy of the best constant guess, if known.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    reference: str
    grade: Callable[[str], bool]
    num_thoughts: int | None = None
    chance: float | None = None

    @property
    def question(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


def benchmark_names() -> tuple[str, ...]:
    """Return the names that `load_benchmark` accepts."""
    return (ALL_FAMILIES, *FAMILIES, GSM8K)


def load_benchmark(
    name: str,
    *,
    num_problems: int | None = None,
    seed: int = 0,
    difficulty: str = "standard",
    path: str | Path | None = None,
) -> list[EvalProblem]:
    """Return a benchmark's problems.

    Args:
        name: A task family, `tasks` for all of them evenly, or `gsm8k`.
        num_problems: How many; by default 1000 generated ones, or the whole file.
        seed: Chooses the generated problems; other seeds share none of them.
        difficulty: Of generated problems.
        path: A local JSONL file in GSM8K's format, instead of the hub.

    Raises:
        ConfigError: Unknown name, or settings that do not go together.
        DataError: The data cannot be read.
    """
    if num_problems is not None and num_problems < 1:
        raise ConfigError(f"num_problems is {num_problems}; it must be at least 1.")
    if name == GSM8K:
        return _gsm8k(path)[:num_problems]
    if name != ALL_FAMILIES and name not in FAMILIES:
        allowed = benchmark_names()
        raise ConfigError(
            f"Unknown benchmark {name!r}; there are {', '.join(allowed)}."
            f"{suggestion(name, allowed)}"
        )
    if path is not None:
        raise ConfigError(f"path is for {GSM8K}; the problems of {name!r} are generated.")
    families = list(FAMILIES) if name == ALL_FAMILIES else [name]
    total = 1000 if num_problems is None else num_problems
    shares = [total // len(families) + (i < total % len(families)) for i in range(len(families))]
    return [
        problem
        for family, share in zip(families, shares, strict=True)
        for problem in _generated(family, share, seed, difficulty)
    ]


def _generated(family: str, num_problems: int, seed: int, difficulty: str) -> Iterator[EvalProblem]:
    if not 0 <= seed < SEED_STRIDE:
        raise ConfigError(f"seed is {seed}; it must be from 0 to {SEED_STRIDE - 1}.")
    if num_problems > SEED_STRIDE:
        raise ConfigError(f"num_problems is {num_problems}; a seed has at most {SEED_STRIDE}.")
    allowed = FAMILIES[family].difficulties
    if difficulty not in allowed:
        hint = suggestion(difficulty, allowed)
        raise ConfigError(
            f"Unknown difficulty {difficulty!r}; {family} has {', '.join(allowed)}.{hint}"
        )
    first = HELD_OUT_SEEDS + seed * SEED_STRIDE
    for index in range(num_problems):
        problem = generate(family, seed=first + index, difficulty=difficulty)
        yield EvalProblem(
            id=f"{family}/{difficulty}/{seed}/{index}",
            family=family,
            messages=({"role": "user", "content": problem.question},),
            reference=problem.value,
            grade=partial(_is_correct, problem),
            num_thoughts=len(problem.thoughts),
            chance=problem.chance,
        )


def _is_correct(problem: Problem, text: str) -> bool:
    return verify(problem, text).correct


def _gsm8k(path: str | Path | None) -> list[EvalProblem]:
    if path is None:
        try:
            return _read_gsm8k(GSM8K_HUB_NAME, HubOptions(subset="main", split="test"))
        except DataError as error:
            raise DataError(f"{error} A local file will do too: --data test.jsonl.") from error
    return _read_gsm8k(path, None)


def _read_gsm8k(source: str | Path, hub: HubOptions | None) -> list[EvalProblem]:
    name, read = open_rows(source, hub)
    problems: list[EvalProblem] = []
    for number, row in read():
        where = f"{name}, row {number}"
        if isinstance(row, TraceError):
            if row.reason is DropReason.EMPTY_LINE:
                continue
            raise DataError(f"{where}: {row}") from row
        problems.append(_gsm8k_problem(row, len(problems), where))
    if not problems:
        raise DataError(f"{name} holds no problems.")
    return problems


def _gsm8k_problem(row: Mapping[str, Any], index: int, where: str) -> EvalProblem:
    question, solution = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str) or "####" not in solution:
        raise DataError(
            f"{where}: not a GSM8K row; it needs 'question' and 'answer' ending in '#### number'."
        )
    reference = solution.rpartition("####")[2].strip()
    return EvalProblem(
        id=f"{GSM8K}/{index}",
        family=GSM8K,
        messages=({"role": "user", "content": question},),
        reference=reference,
        grade=partial(_ends_in_number, reference=reference),
    )


def _ends_in_number(text: str, reference: str) -> bool:
    """Judge as GSM8K's flexible extraction does: the last number of the text is the reference."""
    return grade(text, reference).flexible
