import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.tasks import FAMILIES, extract_answer, generate, verify

every_family = pytest.mark.parametrize("family", FAMILIES)
TINY_PROBLEMS = [generate(family, seed=7, difficulty="tiny") for family in FAMILIES]
FRAGMENTS = ["The answer is", " ", "\n", "\n\n", ".", "7", "12.5", "tea, milk", "x=7;", "\x00", "é"]


@every_family
def test_the_exact_trace_is_right(family: str) -> None:
    for difficulty in FAMILIES[family].difficulties:
        for seed in range(10):
            problem = generate(family, seed=seed, difficulty=difficulty)
            verdict = verify(problem, problem.response)
            assert verdict.correct
            assert verdict.steps_correct == verdict.steps_total == len(problem.thoughts)
            assert verdict.first_wrong is None


@every_family
def test_every_corrupted_digit_is_found_where_it_is(family: str) -> None:
    problem = generate(family, seed=3, difficulty="demo")
    text = problem.response
    for digit in re.finditer(r"\d", text):
        position = digit.start()
        corrupted = text[:position] + str((int(digit[0]) + 1) % 10) + text[position + 1 :]
        verdict = verify(problem, corrupted)
        step = text[:position].count("\n\n")
        in_answer = step == len(problem.thoughts)
        assert verdict.first_wrong == (None if in_answer else step)
        assert verdict.steps_correct == verdict.steps_total - (not in_answer)
        assert verdict.correct == (not in_answer)


@every_family
def test_other_words_in_the_answer_are_wrong(family: str) -> None:
    problem = generate(family, seed=4, difficulty="demo")
    for wrong in ("", "tea", "0", problem.value[:-1], problem.value + "0", f"-{problem.value}"):
        assert not verify(problem, f"{problem.reasoning}\n\nThe answer is {wrong}.").correct
    assert not verify(problem, problem.reasoning).correct


@every_family
def test_missing_surplus_and_swapped_thoughts(family: str) -> None:
    problem = generate(family, seed=5, difficulty="demo")
    first, second, *rest = problem.thoughts

    def first_wrong(thoughts: list[str]) -> int | None:
        verdict = verify(problem, "\n\n".join([*thoughts, problem.answer]))
        assert verdict.correct
        return verdict.first_wrong

    assert first_wrong([]) == 0
    assert first_wrong([first]) == 1
    assert first_wrong([second, first, *rest]) == 0
    assert first_wrong([first, second, *rest, second]) == len(problem.thoughts)


def test_blank_lines_and_outer_spaces_do_not_matter() -> None:
    problem = generate("programs", seed=6, difficulty="demo")
    for separator in ("\n", "\n\n", "\n \n\n", " \n"):
        verdict = verify(problem, separator.join([*problem.thoughts, problem.answer, ""]))
        assert verdict.correct
        assert verdict.first_wrong is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 417.", "417"),
        ("The answer is 417", "417"),
        ("The answer is  417 .\n", "417"),
        ("so it goes. The answer is 3. The answer is 417. Done.", "417"),
        ("The answer is milk, tea, salt.", "milk, tea, salt"),
        ("The answer is milk,  tea,\tsalt.", "milk, tea, salt"),
        ("The answer is 4.5.", None),
        ("The answer is", None),
        ("The answer is .", None),
        ("The answer is\n\n", None),
        ("the sum is 417.", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, value: str | None) -> None:
    assert extract_answer(text) == value


@given(st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_garbage_is_judged_without_complaint(text: str) -> None:
    for problem in TINY_PROBLEMS:
        verdict = verify(problem, text)
        assert 0 <= verdict.steps_correct <= verdict.steps_total == len(problem.thoughts)
        assert verdict.first_wrong is not None
        assert verdict.correct == (extract_answer(text) == problem.value)


@given(st.text(), st.text())
def test_garbage_around_the_answer_is_ignored(before: str, after: str) -> None:
    problem = generate("programs", seed=8, difficulty="tiny")
    text = f"{before}\n{problem.answer}\n{after.replace('The answer is', '')}"
    assert verify(problem, text).correct


def test_hostile_texts_are_judged_quickly() -> None:
    problem = generate("programs", seed=9)
    for text in (
        "The answer is " * 50_000,
        " " * 500_000,
        "\n" * 500_000,
        "The answer is" + " 1" * 250_000,
    ):
        assert not verify(problem, text).correct
