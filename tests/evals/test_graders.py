from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.data.sources import read_traces
from lightthinker.errors import DataError
from lightthinker.evals.graders import grade


@pytest.mark.parametrize(
    ("prediction", "strict", "flexible", "extracted"),
    [
        ("So it is 9.\n#### 18", True, True, "18"),
        ("The answer is 18.", True, True, "18"),
        ("the final answer is: **$18.00**!", True, True, "18.00"),
        ("It is \\boxed{18}.", True, True, "18"),
        ("\\boxed{18\\text{ dollars}}", True, True, "18"),
        ("\\boxed{\\boxed{18}}", True, True, "18"),
        ("\\(x = \\boxed{x = 18\\%}\\)", True, True, "18"),
        ("So she has 18 left.", False, True, "18"),
        ("#### 18, which took 3 steps", True, False, "18"),
        ("#### 17, no: 18", False, True, "17"),
        ("#### 17\n#### 18", True, True, "18"),
        ("#### 18\n#### none", True, True, "18"),
        ("The answer is 9. Wait. The answer is 18", True, True, "18"),
        ("The answer is not 18", False, True, "18"),
        ("The answer is twice 9", False, False, "9"),
        ("\\boxed{(3, 18)}", False, True, "18"),
        ("\\boxed{18", False, True, "18"),
        ("#### -18", False, False, "-18"),
        ("6 - 18", False, True, "18"),
        ("from 20-18", False, True, "18"),
        ("f(20)-18", False, True, "18"),
        ("\\boxed{\\text{USD }18}", True, True, "18"),
        ("H2O and x18", False, False, None),
        ("#### 36/2", True, True, "36/2"),
        ("#### 17 2/2", True, True, "17 2/2"),
        ("#### 1.8e1", True, True, "1.8e1"),
        ("eighteen", False, False, None),
        ("", False, False, None),
    ],
)
def test_grade(prediction: str, strict: bool, flexible: bool, extracted: str | None) -> None:
    verdict = grade(prediction, "18")
    assert (verdict.strict, verdict.flexible, verdict.extracted) == (strict, flexible, extracted)


@pytest.mark.parametrize(
    "equal",
    [
        ("1,234", "1234", "$1,234.00", "1234.", "1{,}234", "1\\,234", "$1234$", "+1234"),
        ("0.75", ".75", "3/4", "\\frac{3}{4}", "\\dfrac{6}{8}", "0.750", "75e-2"),
        ("50%", "50", "50\\%", "$50", "£50.0"),
        ("-3", "−3", "-$3", "$-3", "-3.0", "-\\frac{6}{2}"),
        ("3.5", "3 1/2", "3\\frac{1}{2}", "7/2"),
    ],
)
def test_numbers_are_equal_however_written(equal: tuple[str, ...]) -> None:
    for reference in equal:
        for written in equal:
            assert grade(f"#### {written}", reference).strict, (written, reference)
            assert grade(f"So {written}", reference).flexible, (written, reference)


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ("12", "123"),
        ("1,2", "12"),
        ("1,2345", "12345"),
        ("1,2345", "1234"),
        ("0.333", "1/3"),
        ("50", "0.5"),
        ("3", "-3"),
    ],
)
def test_different_numbers_differ(written: str, reference: str) -> None:
    assert not grade(f"#### {written}", reference).strict


@given(st.fractions(max_denominator=10_000))
def test_any_fraction_equals_itself(number: object) -> None:
    assert grade(f"#### {number}", str(number)).strict


@given(st.text(), st.text("#0123456789.,-/$%eE{}\\ \n", max_size=60))
def test_any_text_can_be_graded(text: str, numeric: str) -> None:
    grade(text, "7")
    grade(f"#### {numeric} \\boxed{{{numeric}", "7")


@pytest.mark.parametrize(
    "unit",
    [
        "1", "1,", ",111", "1 ", "-", "$", "####", "#### ", "#### 1", "9**", "(", "{", "\\boxed{",
        "\\boxed{1", "\\frac{1}{", "the answer is ", "1/", "1e", "1.", " ", "\n",
        "٣", "１", "²", "𝟗",
    ],
)  # fmt: skip
def test_a_million_characters_are_graded_in_bounded_time(unit: str) -> None:
    start = time.perf_counter()
    grade(unit * (1_000_000 // len(unit)), "7")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "hostile",
    ["9**9**9**9", "1e999999999", "#### 1e-999999999", "5/0", "#### 5/0.0", "\\frac{5}{0}",
     "nan", "#### NaN", "inf", "__import__('os')", "9" * 5000, "1/" + "9" * 5000],
)  # fmt: skip
def test_hostile_answers_are_wrong_not_fatal(hostile: str) -> None:
    verdict = grade(hostile, "7")
    assert not verdict.strict
    assert not verdict.flexible


@pytest.mark.parametrize("reference", ["", "none", "NaN", "3 and 4", "5/0", "9" * 5000])
def test_a_reference_that_is_not_one_number_is_an_error(reference: str) -> None:
    with pytest.raises(DataError, match="is not one number"):
        grade("7", reference)


def test_gsm8k_rationales_earn_full_marks_and_other_answers_none(shared_data: Path) -> None:
    traces = list(read_traces(shared_data / "gsm8k" / "test.jsonl", strict=True))
    references = [str(trace.reference) for trace in traces]
    for trace, reference in zip(traces, references, strict=True):
        verdict = grade(f"{trace.reasoning}\n{trace.answer}", reference)
        assert verdict.strict
        assert verdict.flexible
    shifted = [*references[1:], references[0]]
    right = [grade(f"#### {own}", next_).strict for own, next_ in zip(references, shifted)]
    assert sum(right) == sum(
        float(own.replace(",", "")) == float(next_.replace(",", ""))
        for own, next_ in zip(references, shifted)
    )
