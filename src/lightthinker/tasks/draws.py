"""Random draws that repeat everywhere, and the ranges they are drawn from.

Python promises that a seeded `Random.random()` gives the same numbers in every version; it promises
nothing about `choice`, `sample` or `shuffle`. So everything here is built on `random()` alone.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

Range = tuple[int, int]
"""Lowest and highest value, both included."""


def below(rng: Random, bound: int) -> int:
    """Draw an integer from 0 to `bound - 1`."""
    return int(rng.random() * bound)


def between(rng: Random, limits: Range) -> int:
    """Draw an integer from an inclusive range."""
    low, high = limits
    return low + below(rng, high - low + 1)


def happens(rng: Random, probability: float) -> bool:
    """Draw whether an event of this probability happens."""
    return rng.random() < probability


def pick(rng: Random, options: Sequence[T]) -> T:
    """Draw one of the options."""
    return options[below(rng, len(options))]


def sample(rng: Random, population: Sequence[T], count: int) -> list[T]:
    """Draw `count` different elements, in random order."""
    pool = list(population)
    assert count <= len(pool)
    for index in range(count):
        other = index + below(rng, len(pool) - index)
        pool[index], pool[other] = pool[other], pool[index]
    return pool[:count]


def check_range(field: str, limits: Range, *, at_least: int, at_most: int | None = None) -> None:
    """Refuse a range of a size dataclass that is empty or out of bounds.

    Args:
        field: Name of the field, for the message.
        limits: The range given.
        at_least: Smallest value allowed.
        at_most: Largest value allowed, if there is one.

    Raises:
        ValueError: Names the field, the range and what is allowed.
    """
    low, high = limits
    if at_least <= low <= high and (at_most is None or high <= at_most):
        return
    bound = f"from {at_least}" + ("" if at_most is None else f" to {at_most}")
    raise ValueError(f"{field}={limits}: expected (low, high) with low <= high, {bound}.")


def check_choices(field: str, choices: tuple[int, ...], *, at_least: int) -> None:
    """Refuse choices of a size dataclass that are none or too small.

    Args:
        field: Name of the field, for the message.
        choices: The choices given.
        at_least: Smallest value allowed.

    Raises:
        ValueError: Names the field, the choices and what is allowed.
    """
    if not choices or min(choices) < at_least:
        raise ValueError(f"{field}={choices}: expected values of {at_least} or more.")
