"""Launching a step before the last one's tokens are known changes when things happen, not what."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.testing.oracles import ScriptedSampler
from lightthinker.tokens import add_tokens

MODEL, TOKENIZER = tiny_model("qwen2"), byte_tokenizer()
THOUGHTS = add_tokens(MODEL, TOKENIZER, CompressionConfig(num_gists=2))
SEGMENTS = dataclasses.replace(THOUGHTS, method="token", segment_tokens=4)
EOS = TOKENIZER.eos_token_id
LETTERS = TOKENIZER("abcdef", add_special_tokens=False)["input_ids"]


def make_engine(compression, *, is_async, sampler=None, **config):
    model, tokenizer = tiny_model("qwen2"), byte_tokenizer()
    resolved = add_tokens(model, tokenizer, compression)
    settings = EngineConfig(async_scheduling=is_async, poison_freed_pages=True, **config)
    return LLMEngine(model, tokenizer, resolved, config=settings, sampler=sampler)


def run(engine):
    done, steps = {}, 0
    while engine.has_unfinished_requests():
        done |= {o.request_id: o for o in engine.step() if o.finished}
        engine.scheduler.check_integrity()
        steps += 1
        assert steps < 2000
    assert engine.pool.allocator.num_used == 0
    return done, steps


def seen(output):
    """All that a user sees, but for what is still live when the last token is written."""
    return [
        dataclasses.replace(sample, stats=dataclasses.replace(sample.stats, live_tokens=0))
        for sample in output.outputs
    ]


tokens = st.sampled_from([*LETTERS, *LETTERS, -1, EOS])
requests = st.lists(
    st.tuples(
        st.integers(1, 14),
        st.lists(tokens, min_size=1, max_size=30),
        st.builds(
            SamplingParams,
            max_tokens=st.sampled_from([1, 2, 30]),
            stop=st.sampled_from([(), ("bc",), ("e", "fa")]),
            max_thought_tokens=st.sampled_from([None, 1, 5]),
            logprobs=st.sampled_from([None, 2]),
            compression=st.sampled_from([None, False]),
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(
    requests=requests,
    compression=st.sampled_from([THOUGHTS, SEGMENTS]),
    num_kv_tokens=st.sampled_from([64, 640]),
    budget=st.sampled_from([5, 64]),
)
def test_both_ways_give_the_same(requests, compression, num_kv_tokens, budget):
    outputs = []
    ends_thought = THOUGHTS.trigger_id if compression is THOUGHTS else LETTERS[0]
    for is_async in (False, True):
        scripts = {
            str(i): [ends_thought if t < 0 else t for t in script] + [EOS]
            for i, (_, script, _) in enumerate(requests)
        }
        engine = make_engine(
            compression,
            is_async=is_async,
            sampler=ScriptedSampler(scripts),
            page_size=4,
            num_kv_tokens=num_kv_tokens,
            max_num_batched_tokens=budget,
        )
        for i, (length, script, params) in enumerate(requests):
            params = dataclasses.replace(params, max_tokens=min(params.max_tokens, len(script) + 1))
            if compression is SEGMENTS:
                params = dataclasses.replace(params, max_thought_tokens=None)
            engine.add_request(str(i), [30 + i] * length, params, stream=False)
        outputs.append(run(engine)[0])
    for name, output in outputs[0].items():
        left, right = seen(output), seen(outputs[1][name])
        for a, b in zip(left, right, strict=True):
            for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
                assert (x.token_id, list(x.top)) == (y.token_id, list(y.top))
                assert x.logprob == pytest.approx(y.logprob, abs=1e-5)
            assert dataclasses.replace(a, logprobs=None) == dataclasses.replace(b, logprobs=None)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=25, ignore_eos=True, max_thought_tokens=5),
        SamplingParams(max_tokens=25, temperature=1.0, seed=4, n=2, max_thought_tokens=5),
        SamplingParams(max_tokens=25, temperature=1.0, seed=4, frequency_penalty=1.0),
    ],
)
def test_what_the_model_itself_samples_is_the_same(params):
    outputs = []
    for is_async in (False, True):
        engine = make_engine(CompressionConfig(num_gists=2), is_async=is_async, page_size=4)
        for i in range(3):
            engine.add_request(str(i), [30 + i] * (5 * i + 1), params, stream=False)
        outputs.append(run(engine)[0])
    assert outputs[0].keys() == outputs[1].keys()
    for name, output in outputs[0].items():
        assert seen(output) == seen(outputs[1][name])


def test_a_thought_costs_one_step_more_and_no_two():
    script = [*LETTERS[:3], THOUGHTS.trigger_id] * 5 + [LETTERS[0]] * 3
    steps = {}
    for is_async in (False, True):
        sampler = ScriptedSampler({"r": script})
        engine = make_engine(THOUGHTS, is_async=is_async, sampler=sampler)
        params = SamplingParams(max_tokens=len(script), ignore_eos=True)
        engine.add_request("r", [30, 31], params, stream=False)
        steps[is_async] = run(engine)[1]
    # One step at the end looks at the last sample; each of the five thoughts costs one.
    assert steps == {False: len(script), True: len(script) + 1 + 5}


def test_streams_never_show_a_token_that_is_not_known():
    engine = make_engine(THOUGHTS, is_async=True, sampler=ScriptedSampler({"r": LETTERS}))
    engine.add_request("r", [30], SamplingParams(max_tokens=len(LETTERS), ignore_eos=True))
    texts = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert min(output.outputs[0].token_ids, default=0) >= 0
            texts.append(output.outputs[0].text)
    assert texts == ["", "a", "ab", "abc", "abcd", "abcde", "abcdef"]


def test_aborts_and_failures_leave_no_page_behind():
    engine = make_engine(THOUGHTS, is_async=True)
    for name in "ab":
        engine.add_request(name, [30] * 9, SamplingParams(max_tokens=50, ignore_eos=True))
    engine.step()
    engine.step()
    engine.abort_request("a")
    engine.step()
    engine.sampler = ScriptedSampler({})
    with pytest.raises(KeyError):
        engine.step()
    engine.scheduler.check_integrity()
    assert engine.pool.allocator.num_used == 0
    assert engine.step() == []
    assert not engine.has_unfinished_requests()


def test_a_failing_step_spares_whoever_has_all_its_tokens():
    engine = make_engine(THOUGHTS, is_async=True, sampler=ScriptedSampler({"a": LETTERS}))
    engine.add_request("a", [30] * 9, SamplingParams(max_tokens=2, ignore_eos=True))
    engine.step()
    engine.step()
    assert engine.scheduler.running[0].num_forwarded == 10, "its last token is being sampled"
    engine.add_request("b", [31] * 9, SamplingParams(max_tokens=2, ignore_eos=True))
    with pytest.raises(KeyError):
        engine.step()
    (output,) = engine.step()
    assert (output.request_id, output.outputs[0].text) == ("a", "ab")
    assert not engine.has_unfinished_requests()
    assert engine.pool.allocator.num_used == 0


def test_a_sample_that_has_ended_is_left_alone_while_its_siblings_go_on():
    class EndsAtDifferentTimes:
        def sample(self, logits, sequences):
            return [EOS if len(s.sampled_ids) >= 2 + s.index else LETTERS[0] for s in sequences]

    outcomes = []
    for is_async in (False, True):
        engine = make_engine(THOUGHTS, is_async=is_async, sampler=EndsAtDifferentTimes())
        engine.add_request("r", [30, 31], SamplingParams(n=3, max_tokens=9), stream=False)
        outcomes.append([(s.text, s.finish_reason) for s in run(engine)[0]["r"].outputs])
    assert outcomes[0] == outcomes[1] == [("a" * n, "stop") for n in (2, 3, 4)]


@pytest.mark.parametrize("how", ["penalties", "time limit"])
def test_a_prompt_that_expires_late_does_so_whoever_else_runs(how):
    late = CompressionConfig(num_gists=2, prompt_chunk_tokens=6, prefill_compress=False)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    outcomes = []
    for disturbed in (False, True):
        engine = make_engine(late, is_async=True, page_size=4)
        engine.add_request("r", [30 + i for i in range(20)], params, stream=False)
        if disturbed and how == "penalties":
            other = SamplingParams(max_tokens=12, ignore_eos=True, presence_penalty=0.5)
            engine.add_request("other", [50] * 20, other, stream=False)
        if disturbed and how == "time limit":
            other = SamplingParams(max_tokens=12, ignore_eos=True)
            engine.add_request("other", [50] * 20, other, stream=False)
            engine.step()
            engine.expire_request("other")
        outcomes.append(seen(run(engine)[0]["r"]))
    assert outcomes[0] == outcomes[1]


def test_a_failing_step_spares_whoever_was_not_in_it():
    class FailsAtGists(ScriptedSampler):
        def sample(self, logits, sequences):
            if [s.request_id for s in sequences] == ["a"] and sequences[0].builder.num_thoughts:
                raise RuntimeError("broken")
            return super().sample(logits, sequences)

    scripts = {"a": [LETTERS[0], THOUGHTS.trigger_id, *LETTERS], "b": LETTERS}
    # The gists of "a" and its continue token fill a step, so "b" is written and not forwarded.
    engine = make_engine(
        THOUGHTS, is_async=True, sampler=FailsAtGists(scripts), max_num_batched_tokens=3
    )
    for name in "ab":
        engine.add_request(name, [30], SamplingParams(max_tokens=6, ignore_eos=True), stream=False)
    with pytest.raises(RuntimeError, match="broken"):
        run(engine)
    done = run(engine)[0]
    assert {name: o.outputs[0].text for name, o in done.items()} == {"b": "abcdef"}
