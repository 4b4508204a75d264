"""Judging a generated text: is the answer right, and where did the steps go wrong?

The trace of a problem is unique, so steps are compared literally. The text may be anything at all;
special tokens must have been stripped before.
"""

import re
from dataclasses import dataclass

from lightthinker.tasks.problem import ANSWER_PREFIX, Problem

_VALUE = re.compile(r"\s*([^\s.][^.\n]*?)\s*(?:\.(?![0-9])|\n|\Z)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one generation.

    Attributes:
        correct: Whether the final answer is right, however it was reached.
        steps_correct: Thoughts equal to the expected ones, position by position.
        steps_total: Thoughts expected.
        first_wrong: Index of the first thought that differs, is missing or is too much, if any.
    """

    correct: bool
    steps_correct: int
    steps_total: int
    first_wrong: int | None


def extract_answer(text: str) -> str | None:
    """Find the value in the last answer sentence of a text.

    Args:
        text: Any text.

    Returns:
        The value with white space normalised, or None if there is no answer sentence.
    """
    _, found, tail = text.rpartition(ANSWER_PREFIX)
    match = _VALUE.match(tail) if found else None
    return " ".join(match[1].split()) if match else None


def verify(problem: Problem, text: str) -> Verdict:
    """Compare a generated text with a problem's trace and answer.

    Args:
        problem: The problem that was posed.
        text: Reasoning and answer, thoughts on lines of their own; blank lines do not matter.

    Returns:
        The verdict; for any text, garbage included.
    """
    body, found, tail = text.rpartition(ANSWER_PREFIX)
    lines = (body if found else tail).split("\n")
    steps = [line.strip() for line in lines if line.strip()]
    expected = problem.thoughts
    matches = [step == thought for step, thought in zip(steps, expected, strict=False)]
    first_wrong = next((index for index, match in enumerate(matches) if not match), None)
    if first_wrong is None and len(steps) != len(expected):
        first_wrong = len(matches)
    return Verdict(
        correct=extract_answer(text) == problem.value,
        steps_correct=sum(matches),
        steps_total=len(expected),
        first_wrong=first_wrong,
    )
