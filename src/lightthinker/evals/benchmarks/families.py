"""Task families as benchmarks: generated problems with exact verifiers.

Their seeds live in a namespace of their own: evaluation problem i of `--seed s` is
`generate(family, seed=2**40 + s * 2**20 + i)`, and no training recipe may use seeds from 2**40 on.
Training rows (`train.datasets.TaskRows`) are seeded by another string altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lightthinker.errors import ConfigError, suggestion
from lightthinker.evals.benchmarks.problem import EvalProblem
from lightthinker.tasks import FAMILIES, Problem, generate, verify

HELD_OUT_SEEDS = 2**40
"""First seed of the problems that are kept for evaluation."""

SEED_STRIDE = 2**20
"""Problems of one family that one evaluation seed can have."""


def generated_problems(
    family: str, num_problems: int, seed: int, difficulty: str
) -> Iterator[EvalProblem]:
    """Generate one family's problems for evaluation.

    Args:
        family: Key of `lightthinker.tasks.FAMILIES`.
        num_problems: How many.
        seed: Evaluation seed; other seeds share no problem.
        difficulty: One of the family's.

    Raises:
        ConfigError: A value out of range, or an unknown difficulty.
    """
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
