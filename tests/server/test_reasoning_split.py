"""Reasoning and answer: whatever the pieces, a stream adds up to the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.engine.outputs import CompletionOutput, CompressionStats, ThoughtStats
from lightthinker.server.choices import ChoiceState
from lightthinker.server.reasoning import ReasoningSplitter, Split

SPLITTER = ReasoningSplitter("<think>\n", "</think>\n\n")


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("so\n</think>\n\nfour", "so", "four"),
        ("<think>\nso</think>four", "so", "four"),
        ("so", "so", None),
        ("so </thi", "so </thi", None),
        ("</think>\n\nfour", "", "four"),
        ("a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_a_finished_text(text, reasoning, answer):
    assert SPLITTER.split(text, finished=True) == Split(reasoning, answer)


def test_a_model_that_does_not_reason_only_answers():
    assert ReasoningSplitter("", "").split(" a</think>b", finished=False) == Split(
        "", " a</think>b"
    )


PIECES = ["<think>", "\n", "</think>", "</thi", "nk>", "<", "a", "b c", " ", "\n\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.data())
def test_what_is_shown_of_a_growing_text_only_grows(pieces, data):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    state, reasoning, answer = ChoiceState(SPLITTER), "", ""
    for cut in [*cuts, None]:
        output = CompletionOutput(0, text[:cut], [], "stop" if cut is None else None)
        for piece in state.advance(output):
            reasoning += piece.reasoning
            answer += piece.answer
    whole = SPLITTER.split(text, finished=True)
    assert (reasoning, answer) == (whole.reasoning, whole.answer or "")


def output_of(texts: list[str], num_tokens: int, current: str, *, done: bool) -> CompletionOutput:
    """Return a sample with finished thoughts `texts` and the beginning of the next one."""
    stats = CompressionStats(*(0,) * 12)
    return CompletionOutput(
        0,
        "".join(f"{t}\n\n" for t in texts) + current,
        [0] * num_tokens,
        "stop" if done else None,
        thoughts=[ThoughtStats(t, 3, 2, 3) for t in texts],
        stats=stats,
    )


def test_states_that_were_skipped_still_show_every_thought_apart():
    """A slow reader misses steps: the next state brings two thoughts, and part of a third."""
    state = ChoiceState(SPLITTER, with_events=True)
    shown = [
        (p.reasoning, [(e["type"], e["index"]) for e in p.events])
        for output in (
            output_of([], 1, "on", done=False),
            output_of(["one", "two"], 9, "thr", done=False),
            output_of(["one", "two", "three"], 12, "</think>x", done=True),
        )
        for p in state.advance(output)
    ]
    assert shown == [
        ("on", [("thought_started", 0)]),
        ("e", [("thought_compressed", 0)]),
        ("\n\ntwo", [("thought_started", 1), ("thought_compressed", 1)]),
        ("\n\nthr", [("thought_started", 2)]),
        ("ee", [("thought_compressed", 2)]),
        ("", []),
    ]


def test_a_thought_counts_as_compressed_once_its_gists_are_written():
    state = ChoiceState(SPLITTER, with_events=True)
    state.advance(output_of([], 2, "on", done=False))
    at_trigger = state.advance(output_of(["one"], 3, "", done=False))
    assert [e["type"] for p in at_trigger for e in p.events] == []
    after = state.advance(output_of(["one"], 4, "", done=False))
    assert [e["type"] for p in after for e in p.events] == ["thought_compressed"]
