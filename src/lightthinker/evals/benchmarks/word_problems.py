"""GSM8K, SVAMP, MultiArith: questions in words whose answer is one number."""

from __future__ import annotations

from functools import partial

from lightthinker.errors import DataError
from lightthinker.evals.benchmarks.rows import Located
from lightthinker.evals.benchmarks.spec import Benchmark, HubSource, Question, cell, text_cell
from lightthinker.evals.graders import grade

_QUESTION = ("question_concat", "question", "problem", "input")
_ANSWER = ("answer", "final_ans", "target")
FINAL_ANSWER = "####"


def number_question(located: Located, seed: int) -> Question:
    """Read a row with a question and a number; a solution may stand before `#### number`.

    Raises:
        DataError: Question or answer is missing, or the answer is not one number.
    """
    text = text_cell(located, _QUESTION, "question")
    body = located.row.get("Body")
    if isinstance(body, str) and "question_concat" not in located.row:
        stop = "" if body.rstrip().endswith((".", ",", "?", "!")) else "."
        text = f"{body.strip()}{stop} {text}"
    value = cell(located, _ANSWER, "answer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    reference = str(value).rpartition(FINAL_ANSWER)[2].strip()
    try:
        grade("", reference)
    except DataError as error:
        raise DataError(f"{located.where} has no answer: {error}") from error
    return Question(
        text=text, reference=reference, judge=partial(grade, reference=reference), form="number"
    )


GSM8K = Benchmark(
    name="gsm8k",
    title="GSM8K",
    hub=HubSource(
        name="openai/gsm8k",
        config="main",
        revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
    ),
    licence="MIT",
    read=number_question,
)

SVAMP = Benchmark(
    name="svamp",
    title="SVAMP",
    hub=HubSource(name="ChilleD/SVAMP", split="train+test"),
    licence="MIT",
    read=number_question,
)

MULTIARITH = Benchmark(
    name="multiarith",
    title="MultiArith",
    hub=HubSource(name="ChilleD/MultiArith", split="train+test"),
    licence="not stated",
    read=number_question,
)
