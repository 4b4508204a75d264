"""MMLU (the paper's seven subjects) and GPQA-diamond: one letter out of four.

The paper's MMLU has one question fewer per subject than the public test files (99 of 100, 172 of
173, ...), as if the first line of each headerless CSV had been taken for its header. Which question
is missing is not published; we leave out the first.
"""

from __future__ import annotations

from functools import partial

from lightthinker.errors import DataError
from lightthinker.evals.benchmarks.rows import Located
from lightthinker.evals.benchmarks.spec import (
    Benchmark,
    HubSource,
    Question,
    cell,
    shuffled,
    text_cell,
    with_options,
)
from lightthinker.evals.graders import grade_letter

LETTERS = "ABCD"
PAPER_SUBJECTS = (
    "abstract_algebra",
    "college_chemistry",
    "college_computer_science",
    "college_medicine",
    "formal_logic",
    "professional_medicine",
    "logical_fallacies",
)
_OTHER_SUBJECTS = """
    anatomy astronomy business_ethics clinical_knowledge college_biology college_mathematics
    college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law
    jurisprudence machine_learning management marketing medical_genetics miscellaneous
    moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
    professional_law professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions"""
OTHER_SUBJECTS = tuple(_OTHER_SUBJECTS.split())


def mmlu_question(located: Located, seed: int) -> Question:
    """Read a row of the hub set (`question`, `choices`, `answer`), or of the authors' CSV files.

    Raises:
        DataError: A column is missing, or the answer names none of four options.
    """
    if "0" in located.row:
        text, *options, answer = (str(located.row[str(i)]).strip() for i in range(6))
    else:
        text = text_cell(located, ("question",), "question")
        choices = cell(located, ("choices",), "choices")
        options = [str(choice).strip() for choice in choices] if isinstance(choices, list) else []
        answer = _letter(cell(located, ("answer",), "answer"))
    if len(options) != len(LETTERS) or answer not in LETTERS or not answer or not text:
        raise DataError(
            f"{located.where} is not an MMLU row with an answer: it needs a question, four "
            f"choices, and one of the letters A to D (or 0 to 3); the answer is {answer!r:.40}."
        )
    return _choice(text, options, answer)


def gpqa_question(located: Located, seed: int) -> Question:
    """Read a row of the hub set or the authors' CSV, and shuffle its options by the seed.

    The order depends on the seed and the question's text only, so that a subset or another order
    of rows leaves it alone.

    Raises:
        DataError: A column is missing.
    """
    text = text_cell(located, ("Question",), "question")
    right = text_cell(located, ("Correct Answer",), "answer")
    wrong = [text_cell(located, (f"Incorrect Answer {i}",), "options") for i in (1, 2, 3)]
    options = [right, *wrong]
    order = shuffled(len(options), f"gpqa/{seed}/{text}")
    return _choice(text, [options[i] for i in order], LETTERS[order.index(0)])


def _letter(value: object) -> str:
    if isinstance(value, int) and 0 <= value < len(LETTERS):
        return LETTERS[value]
    return str(value).strip()


def _choice(text: str, options: list[str], answer: str) -> Question:
    return Question(
        text=with_options(text, options),
        reference=answer,
        judge=partial(grade_letter, reference=answer, options=tuple(options)),
        form="letter",
    )


def _subject(located: Located) -> str:
    return str(located.row.get("subject") or located.group.removesuffix("_test"))


def all_but_first(num_rows: int, seed: int) -> list[int]:
    """Choose the paper's number of questions of an MMLU subject."""
    return list(range(1, num_rows))


MMLU = Benchmark(
    name="mmlu",
    title="MMLU, the paper's seven subjects",
    hub=HubSource(name="cais/mmlu", revision="c30699e8356da336a370243923dbaf21066bb9fe"),
    licence="MIT",
    read=mmlu_question,
    subsets=PAPER_SUBJECTS,
    other_subsets=OTHER_SUBJECTS,
    subset_of=_subject,
    choose=dict.fromkeys(PAPER_SUBJECTS, all_but_first),
)

GPQA = Benchmark(
    name="gpqa",
    title="GPQA-diamond",
    hub=HubSource(
        name="Idavidrein/gpqa",
        config="gpqa_diamond",
        split="train",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        gated=(
            "GPQA is gated, so that it does not end up in training data. Accept its terms at "
            "https://huggingface.co/datasets/Idavidrein/gpqa and log in with `hf auth login`; or "
            "unpack dataset.zip from https://github.com/idavidrein/gpqa (the password is in its "
            "README) and name the file: gpqa=path/to/gpqa_diamond.csv."
        ),
    ),
    licence="CC-BY-4.0",
    read=gpqa_question,
)
