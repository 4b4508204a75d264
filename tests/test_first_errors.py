"""What scripts/first_errors.py calls the first error of a trace."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lightthinker.tasks import generate

FILE = Path(__file__).resolve().parents[1] / "scripts" / "first_errors.py"
SPEC = importlib.util.spec_from_file_location("first_errors", FILE)
first_errors = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(first_errors)

PROBLEM = generate("programs", seed=1, difficulty="demo")
TRACE = "\n\n".join(PROBLEM.thoughts) + "\n\n</think>\nThe answer is 652."


def test_the_problem_is_the_one_that_the_cases_change():
    assert PROBLEM.thoughts[3] == "U=O*7-R;O=174;R=98:174*7=1218,1218-98=1120;U=120"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("U=O*7-R;O=174;R=98", "U=O*7-R;O=175;R=98", ("value", 1)),
        ("b=U*8+J;U=120;J=198", "b=U*8+J;U=120;J=692", ("mixed_up", 4)),
        ("b=U*8+J;U=120;J=198", "b=U*8+J;U=120", ("value", 4)),
        ("print(O+T+J);O=174;T=280;J=198", "print(O+T+J);O=174;T=280;J=120", ("mixed_up", 6)),
        ("U=O*7-R;O", "U=O*7-J;O", ("statement", None)),
        ("=1120;U=120", "=1120;U=121", ("arithmetic", None)),
        ("The answer is 652", "The answer is 9", ("ending", None)),
    ],
)
def test_a_trace_with_one_change(old, new, expected):
    assert TRACE.count(old) == 1
    assert first_errors.first_error(PROBLEM.question, TRACE.replace(old, new)) == expected


def test_a_trace_that_stops_early():
    text = "\n\n".join(PROBLEM.thoughts[:3]) + "\n\n</think>\nThe answer is 1."
    assert first_errors.first_error(PROBLEM.question, text) == ("ending", None)
