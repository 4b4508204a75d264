"""Outputs sent as what is new are rebuilt as they were, in every field."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightthinker import LLM, SamplingParams
from lightthinker.engine.output_deltas import DeltaEncoder
from lightthinker.engine.outputs import (
    CompletionOutput,
    CompressionStats,
    RequestOutput,
    ThoughtStats,
    TokenLogprob,
)
from lightthinker.testing.models import tiny_checkpoint


class Wire:
    """The way of outputs to another process."""

    def __init__(self):
        self.encoder = DeltaEncoder()
        self.newest = {}
        self.num_bytes = 0

    def carry(self, output):
        data = pickle.dumps(self.encoder.encode(output))
        self.num_bytes += len(data)
        delta = pickle.loads(data)
        name = output.request_id
        self.newest[name] = delta.apply(name, self.newest.get(name))
        return self.newest[name]


GROWTH = st.tuples(
    st.integers(0, 4),  # tokens
    st.one_of(st.text("ab\n", max_size=3), st.none()),  # text; None: the text is cut
    st.integers(0, 1),  # thoughts
    st.sampled_from([None, "stop", "length"]),
)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.lists(GROWTH, min_size=2, max_size=2), min_size=1, max_size=8),
    with_logprobs=st.booleans(),
    prompt=st.sampled_from([None, "a question"]),
)
def test_any_growing_output_is_rebuilt(steps, with_logprobs, prompt):
    wire, ids, texts, thoughts = Wire(), [[], []], ["", ""], [[], []]
    sent, rebuilt = [], []
    for number, step in enumerate(steps):
        samples = []
        for i, (count, more, num_thoughts, reason) in enumerate(step):
            ids[i] = [*ids[i], *range(count)]
            texts[i] = texts[i][: len(texts[i]) // 2] if more is None else texts[i] + more
            thoughts[i] = [*thoughts[i], *[ThoughtStats(texts[i], 3, 1, 2)] * num_thoughts]
            logprobs = [TokenLogprob(t, -0.5, {t: -0.5}) for t in ids[i]] if with_logprobs else None
            stats = CompressionStats(*range(number, number + 12)) if number % 3 else None
            samples.append(
                CompletionOutput(
                    i, texts[i], ids[i], reason, reason and number, thoughts[i], logprobs, stats
                )
            )
        is_last = number == len(steps) - 1
        sent.append(RequestOutput("r", prompt, [1, 2], samples, is_last, number))
        rebuilt.append(wire.carry(sent[-1]))
    assert rebuilt == sent  # Earlier ones too: nothing of them was written to.
    assert not wire.encoder._told


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM(tiny_checkpoint(tmp_path_factory.mktemp("deltas")), device="cpu", num_kv_tokens=8192)


def test_the_outputs_of_an_engine_are_rebuilt_at_every_step(llm):
    kinds = [
        SamplingParams(max_tokens=60, temperature=1.0, seed=1, n=3, max_thought_tokens=6),
        SamplingParams(max_tokens=40, temperature=1.0, seed=2, logprobs=2, n=2),
        SamplingParams(max_tokens=80, temperature=1.5, seed=3, stop=["e", "ab", "\n"]),
        SamplingParams(max_tokens=80, temperature=1.5, seed=4, stop=["zzzzzz"], ignore_eos=True),
        SamplingParams(max_tokens=50, thinking_token_budget=20, max_thought_tokens=8),
    ]
    for number, params in enumerate(kinds * 3):
        if params.seed is not None:
            params = SamplingParams(**{**vars(params), "seed": params.seed + number})
        llm.engine.add_request(f"r{number}", f"prompt {number}", params, stream=number % 4 > 0)
    wire, num_reports = Wire(), 0
    while llm.engine.has_unfinished_requests():
        for output in llm.engine.step():
            assert wire.carry(output) == output
            num_reports += 1
    assert len(wire.newest) == 3 * len(kinds)
    assert num_reports > 100


def test_a_report_costs_what_is_new_and_not_what_there_is(llm):
    params = SamplingParams(max_tokens=500, ignore_eos=True)
    llm.engine.add_request("long", "x", params)
    wire, sizes = Wire(), []
    while llm.engine.has_unfinished_requests():
        for output in llm.engine.step():
            before = wire.num_bytes
            wire.carry(output)
            sizes.append(wire.num_bytes - before)
    assert max(sizes[400:]) < 2 * max(sizes[5:50])
