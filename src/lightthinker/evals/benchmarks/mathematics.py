"""MATH-500 and AIME: competition mathematics."""

from __future__ import annotations

from functools import partial

from lightthinker.errors import DataError
from lightthinker.evals.benchmarks.rows import Located
from lightthinker.evals.benchmarks.spec import Benchmark, HubSource, Question, cell, text_cell
from lightthinker.evals.graders import grade, grade_expression
from lightthinker.evals.graders.expression_pool import check_math_verify

_PROBLEM = ("problem", "question")
_HIGHEST_AIME_ANSWER = 999


def expression_question(located: Located, seed: int) -> Question:
    """Read a row whose answer is LaTeX.

    Raises:
        DataError: Problem or answer is missing.
    """
    reference = str(cell(located, ("answer",), "answer")).strip()
    return Question(
        text=text_cell(located, _PROBLEM, "problem"),
        reference=reference,
        judge=partial(grade_expression, reference=reference),
        form="math",
    )


def aime_question(located: Located, seed: int) -> Question:
    """Read a row whose answer is a whole number from 0 to 999, maybe with leading zeros.

    Raises:
        DataError: Problem or answer is missing, or the answer is not such a number.
    """
    written = str(cell(located, ("answer",), "answer")).strip()
    if not (written.isascii() and written.isdigit() and int(written) <= _HIGHEST_AIME_ANSWER):
        raise DataError(f"{located.where}: the answer {written!r:.40} is not from 0 to 999.")
    return Question(
        text=text_cell(located, _PROBLEM, "problem"),
        reference=str(int(written)),
        judge=partial(grade, reference=str(int(written))),
        form="math",
    )


MATH500 = Benchmark(
    name="math500",
    title="MATH-500",
    hub=HubSource(
        name="HuggingFaceH4/MATH-500", revision="ff5b20257d8185524591543f8ff5993951537bb8"
    ),
    licence="MIT (MATH)",
    read=expression_question,
    check=check_math_verify,
)

AIME24 = Benchmark(
    name="aime24",
    title="AIME 2024",
    hub=HubSource(
        name="HuggingFaceH4/aime_2024",
        split="train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    ),
    licence="not stated (MAA competition problems)",
    read=aime_question,
)

AIME25 = Benchmark(
    name="aime25",
    title="AIME 2025",
    hub=HubSource(name="math-ai/aime25", revision="563bb8404243c5f09de6ec262f2db674fe5bce9b"),
    licence="not stated (MAA competition problems)",
    read=aime_question,
)
