"""The families by name, and problems drawn from them by seed."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from random import Random
from typing import Any

from lightthinker.tasks import (
    entity_tracking,
    multiplication,
    programs,
    register_machine,
    word_problems,
)
from lightthinker.tasks.problem import Problem, TaskFamily, check_known

FAMILIES: dict[str, TaskFamily[Any]] = {
    family.name: family
    for family in (
        programs.FAMILY,
        word_problems.FAMILY,
        entity_tracking.FAMILY,
        multiplication.FAMILY,
        register_machine.FAMILY,
    )
}

DIFFICULTIES = ("tiny", "demo", "standard", "long", "mixed")
"""The names that every family knows.

Those that can grow without new words also know `4k` and `8k`, named after the tokens of their
traces (`long` has about 2k): all but word problems, which run out of people.
"""


def generate(family: str, *, seed: int, difficulty: str = "standard") -> Problem:
    """Generate one problem, the same for the same arguments on every machine and Python version.

    Args:
        family: Key of `FAMILIES`.
        seed: Any integer.
        difficulty: One of `DIFFICULTIES`; `mixed` ranges from `tiny` to a little beyond `standard`.

    Returns:
        The problem.

    Raises:
        ValueError: If the family or the difficulty is unknown.
    """
    check_known("family", family, FAMILIES)
    return FAMILIES[family].generate(Random(f"{family}/{difficulty}/{seed}"), difficulty)


def stream(
    families: Iterable[str] | Mapping[str, float] | None = None,
    *,
    seed: int,
    difficulty: str = "standard",
) -> Iterator[Problem]:
    """Generate an endless mixture of problems, the same for the same arguments everywhere.

    Args:
        families: Family names, equally likely, or a mapping from name to weight; None means all.
        seed: Any integer; give each worker its own.
        difficulty: As in `generate`.

    Returns:
        An iterator that never ends.

    Raises:
        ValueError: If a family or the difficulty is unknown, or no weight is positive.
    """
    weights = _weights(families)
    for name in weights:
        check_known("family", name, FAMILIES)
        check_known("difficulty", difficulty, FAMILIES[name].difficulties)
    if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"families={families!r}: expected weights >= 0 with a positive sum.")
    return _endless(weights, Random(f"stream/{difficulty}/{seed}"), difficulty)


def _weights(families: Iterable[str] | Mapping[str, float] | None) -> dict[str, float]:
    if isinstance(families, Mapping):
        return dict(families)
    return dict.fromkeys(FAMILIES if families is None else families, 1.0)


def _endless(weights: Mapping[str, float], rng: Random, difficulty: str) -> Iterator[Problem]:
    chosen = [FAMILIES[name] for name in weights]
    bounds = list(accumulate(weights.values()))
    while True:
        point = rng.random() * bounds[-1]
        index = next(index for index, bound in enumerate(bounds) if point < bound)
        yield chosen[index].generate(rng, difficulty)


def solve(problem: Problem) -> str:
    """Answer a problem from its question alone, independently of its trace.

    Args:
        problem: The problem; only `family` and `question` are read.

    Returns:
        The canonical answer value.
    """
    return FAMILIES[problem.family].solve(problem.question)
