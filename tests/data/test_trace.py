from __future__ import annotations

import pytest

from lightthinker.data.tags import reasoning_start, split_reasoning, strip_solution_tags
from lightthinker.data.trace import DropReason, Message, Trace, TraceError

STRATOS = (
    "<|begin_of_thought|>\n\nLet me think.\n\nSo 4.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is 4.\n\n<|end_of_solution|>"
)

SOLUTION = "<|begin_of_solution|>4<|end_of_solution|>"


def make_trace(**fields: object) -> Trace:
    return Trace(**{"question": "2+2?", "reasoning": "Two pairs.", "answer": "4", **fields})


def test_messages_are_system_history_question() -> None:
    trace = make_trace(system="Be brief.", history=(Message(role="assistant", content="Hello."),))
    assert trace.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "2+2?"},
    ]
    assert make_trace().messages == [{"role": "user", "content": "2+2?"}]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": " "}, DropReason.NO_QUESTION),
        ({"reasoning": "\n"}, DropReason.NO_REASONING),
        ({"answer": ""}, DropReason.NO_ANSWER),
        ({"answer": 4}, DropReason.NOT_TEXT),
        ({"reference": 4}, DropReason.NOT_TEXT),
        ({"reasoning": "half a pair \ud83d"}, DropReason.NOT_TEXT),
        ({"history": (Message(role="user", content="\ud83d"),)}, DropReason.NOT_TEXT),
        ({"thoughts": ("Two ", "pear.")}, DropReason.THOUGHTS_MISMATCH),
        ({"thoughts": ()}, DropReason.THOUGHTS_MISMATCH),
    ],
)
def test_a_trace_that_is_not_fit_for_training_is_refused(
    fields: dict[str, object], reason: DropReason
) -> None:
    with pytest.raises(TraceError) as caught:
        make_trace(**fields)
    assert caught.value.reason is reason


def test_thoughts_that_add_up_are_accepted() -> None:
    assert make_trace(thoughts=("Two ", "pairs.")).thoughts == ("Two ", "pairs.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STRATOS, ("Let me think.\n\nSo 4.", "It is 4.")),
        ("<think>\nHm.\n</think>\n\nFour.", ("Hm.", "Four.")),
        ("Hm.\n</think>\n\nFour.", ("Hm.", "Four.")),
        ("  <think>Hm.</think>Four.", ("Hm.", "Four.")),
        ("<think>\n\n</think>\n\nFour.", ("", "Four.")),
        (" Four. ", ("", "Four.")),
        (SOLUTION, ("", "4")),
    ],
)
def test_split_reasoning(text: str, expected: tuple[str, str]) -> None:
    assert split_reasoning(text) == expected
    assert text[reasoning_start(text) :].startswith(expected[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>Hm. Four.", DropReason.UNCLOSED_TAG),
        ("<|begin_of_thought|>Hm.", DropReason.UNCLOSED_TAG),
        ("Hm.</think><|begin_of_solution|>Four.", DropReason.UNCLOSED_TAG),
        ("Sure! <think>Hm.</think>Four.", DropReason.MISPLACED_TAG),
        ("</think>Hm.<think>Four.", DropReason.MISPLACED_TAG),
        ("<think>a</think>b<think>c</think>d", DropReason.MISPLACED_TAG),
        ("<think>a<think>b</think>c", DropReason.MISPLACED_TAG),
        ("a</think>b</think>c", DropReason.MISPLACED_TAG),
        ("<think>a</think>b<think>c", DropReason.MISPLACED_TAG),
        (f"a</think>{SOLUTION.replace('4', '<|begin_of_solution|>')}", DropReason.MISPLACED_TAG),
        (f"Hm.</think>So {SOLUTION}", DropReason.MISPLACED_TAG),
        (f"Hm.</think>{SOLUTION}!", DropReason.MISPLACED_TAG),
        ("Hm.</think>4<|end_of_solution|>", DropReason.MISPLACED_TAG),
    ],
)
def test_broken_tags_are_told_apart(text: str, reason: DropReason) -> None:
    with pytest.raises(TraceError) as caught:
        split_reasoning(text)
    assert caught.value.reason is reason


def test_solution_tags_are_optional() -> None:
    assert strip_solution_tags("\n4 ") == "4"
