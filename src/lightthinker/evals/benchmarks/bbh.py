"""BIG-Bench Hard: the paper's nine tasks, 55 questions each, and the other tasks by name.

Which 55 the paper took is not published: ours are the first 55 of `shuffled(rows,
"bbh/<task>/<seed>")`, in the file's order. Answers take one of a few forms,
found from the reference: an option's letter, one of two words, a number, a list of words, brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from lightthinker.evals.benchmarks.rows import Located
from lightthinker.evals.benchmarks.spec import (
    Benchmark,
    Chooser,
    HubSource,
    Question,
    shuffled,
    text_cell,
)
from lightthinker.evals.graders import (
    Grade,
    grade,
    grade_choice_word,
    grade_exact,
    grade_letter,
    grade_symbols,
    grade_word_list,
)

NUM_PER_TASK = 55
PAPER_TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "formal_fallacies",
    "logical_deduction_seven_objects",
    "multistep_arithmetic_two",
    "navigate",
    "ruin_names",
    "temporal_sequences",
    "web_of_lies",
)
_OTHER_TASKS = """date_understanding disambiguation_qa dyck_languages geometric_shapes hyperbaton
    logical_deduction_five_objects logical_deduction_three_objects movie_recommendation
    object_counting penguins_in_a_table reasoning_about_colored_objects
    salient_translation_error_detection snarks sports_understanding
    tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects
    tracking_shuffled_objects_three_objects word_sorting"""
OTHER_TASKS = tuple(_OTHER_TASKS.split())
_WORDS = (("Yes", "No"), ("True", "False"), ("valid", "invalid"))
_OPTION = re.compile(r"^\(([A-Z])\)[ \t]*(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def bbh_question(located: Located, seed: int) -> Question:
    """Read a row with `input` and `target`.

    Raises:
        DataError: One of them is missing.
    """
    text = text_cell(located, ("input",), "question")
    target = text_cell(located, ("target", "answer"), "answer")
    form, allowed, judge = _form(text, target)
    reference = target.strip("()") if form == "letter" else target
    return Question(
        text=text,
        reference=reference,
        judge=partial(judge, reference=reference),
        form=form,
        allowed=allowed,
    )


def _form(text: str, target: str) -> tuple[str, tuple[str, ...], Callable[..., Grade]]:
    options = dict(_OPTION.findall(text))
    if target.strip("()") in options and target.startswith("("):
        return "letter", (), partial(grade_letter, options=tuple(options.values()))
    if options:
        # Two rows of ruin_names have a target that is none of their (broken) options.
        return "letter", (), grade_exact
    for words in _WORDS:
        if target.casefold() in (word.casefold() for word in words):
            return "words", words, partial(grade_choice_word, allowed=words)
    if _NUMBER.fullmatch(target):
        return "number", (), grade
    if not any(character.isalnum() for character in target):
        return "symbols", (), grade_symbols
    return "list", (), grade_word_list


def draw(task: str) -> Chooser:
    """Return the function that draws a task's `NUM_PER_TASK` rows by seed."""

    def choose(num_rows: int, seed: int) -> list[int]:
        return sorted(shuffled(num_rows, f"bbh/{task}/{seed}")[:NUM_PER_TASK])

    return choose


BBH = Benchmark(
    name="bbh",
    title="BIG-Bench Hard, the paper's nine tasks",
    hub=HubSource(name="SaylorTwift/bbh", revision="b5306be6f827cfafbb545ff5a51f96916029b0fd"),
    licence="MIT",
    read=bbh_question,
    subsets=PAPER_TASKS,
    other_subsets=OTHER_TASKS,
    subset_of=lambda located: located.group,
    choose={task: draw(task) for task in PAPER_TASKS},
)
