"""Prompts that begin alike share pages, and nobody can tell from what is generated."""

from __future__ import annotations

import time

import pytest

from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.kvcache.prompt_keys import prompt_page_keys
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

PROMPT = [40 + i % 50 for i in range(30)]
PARAMS = SamplingParams(max_tokens=20, ignore_eos=True, max_thought_tokens=5)


TWO_GISTS = CompressionConfig(num_gists=2)


def make_engine(compression=TWO_GISTS, **config):
    model, tokenizer = tiny_model("qwen2"), byte_tokenizer()
    resolved = add_tokens(model, tokenizer, compression)
    settings = EngineConfig(page_size=4, poison_freed_pages=True, **config)
    return LLMEngine(model, tokenizer, resolved, config=settings)


def run(engine):
    done = {}
    while engine.has_unfinished_requests():
        done |= {o.request_id: o for o in engine.step() if o.finished}
        engine.scheduler.check_integrity()
    assert engine.pool.allocator.num_used == 0
    return done


def ids(output):
    return [sample.token_ids for sample in output.outputs]


def alone(prompt, params=PARAMS):
    engine = make_engine(enable_prefix_caching=False)
    engine.add_request("r", prompt, params, stream=False)
    output = run(engine)["r"]
    assert output.num_cached_tokens == 0
    return ids(output)


def test_keys_name_full_pages_and_all_that_is_before_them():
    keys = prompt_page_keys(range(13), 4)
    assert len(keys) == 3
    assert prompt_page_keys(range(12), 4) == keys[:2], "the last token is always forwarded"
    assert prompt_page_keys([9, *range(1, 13)], 4)[1:] != keys[1:]
    assert not prompt_page_keys([1, 2, 3], 4)


def test_a_second_request_finds_the_first_ones_prompt():
    engine = make_engine()
    outputs = []
    for name, prompt in (("a", PROMPT), ("b", PROMPT), ("c", [*PROMPT[:17], 7, 7, 7])):
        engine.add_request(name, prompt, PARAMS, stream=False)
        outputs.append(run(engine)[name])
    assert [o.num_cached_tokens for o in outputs] == [0, 28, 16]
    assert ids(outputs[0]) == ids(outputs[1]) == alone(PROMPT)
    assert ids(outputs[2]) == alone([*PROMPT[:17], 7, 7, 7])


def test_requests_that_arrive_together_wait_for_the_one_that_reads():
    engine = make_engine()
    for name in "abc":
        engine.add_request(name, PROMPT, PARAMS, stream=False)
    engine.add_request("other", [99] * 9, PARAMS, stream=False)
    engine.step()
    assert {s.request_id for s in engine.scheduler.running} == {"a", "other"}
    outputs = run(engine)
    assert [outputs[name].num_cached_tokens for name in ("a", "b", "c", "other")] == [0, 28, 28, 0]
    assert all(ids(outputs[name]) == alone(PROMPT) for name in "abc")


def test_samples_of_a_request_share_its_prompt_while_they_run():
    params = SamplingParams(n=4, temperature=1.0, seed=3, max_tokens=12, ignore_eos=True)
    engine = make_engine()
    engine.add_request("r", PROMPT, params, stream=False)
    engine.step()
    engine.step()
    full_pages = len(PROMPT) // 4
    assert len({s.pages[i] for s in engine.scheduler.running for i in range(full_pages)}) == 7
    assert len(engine.scheduler.running) == 4
    assert ids(run(engine)["r"]) == alone(PROMPT, params)


def test_idle_prompts_give_way_when_memory_is_needed():
    engine = make_engine(num_kv_tokens=64)
    for name, first in (("a", 40), ("b", 41), ("c", 42), ("d", 43)):
        prompt = [first, *PROMPT[1:]]
        engine.add_request(name, prompt, PARAMS, stream=False)
        assert ids(run(engine)[name]) == alone(prompt)
    engine.add_request("again", [40, *PROMPT[1:]], PARAMS, stream=False)
    output = run(engine)["again"]
    assert output.num_cached_tokens < 28, "the oldest prompt should have been given up"
    assert ids(output) == alone([40, *PROMPT[1:]])


def test_preempted_sequences_with_shared_prompts_go_on_as_if_nothing_happened():
    engine = make_engine(num_kv_tokens=72, max_num_batched_tokens=16)
    params = SamplingParams(max_tokens=40, ignore_eos=True, compression=False)
    for name in "abc":
        engine.add_request(name, PROMPT, params, stream=False)
    outputs = run(engine)
    assert engine.scheduler.num_preemptions > 0
    assert all(ids(outputs[name]) == alone(PROMPT, params) for name in "abc")


def test_compressed_prompts_are_not_shared():
    engine = make_engine(CompressionConfig(num_gists=2, prompt_chunk_tokens=8))
    for name in "ab":
        engine.add_request(name, PROMPT, PARAMS, stream=False)
        assert run(engine)[name].num_cached_tokens == 0


def test_urgent_requests_join_first_and_are_swapped_out_last():
    engine = make_engine(max_num_seqs=1)
    for name, priority in (("late", 1), ("usual", 0), ("urgent", -1)):
        params = SamplingParams(max_tokens=3, ignore_eos=True, priority=priority)
        engine.add_request(name, PROMPT, params, stream=False)
    finished = []
    while engine.has_unfinished_requests():
        finished += [o.request_id for o in engine.step()]
    assert finished == ["urgent", "usual", "late"]


@pytest.mark.parametrize("running", [True, False])
def test_overdue_requests_end_and_free_what_they_hold(running):
    engine = make_engine(max_num_seqs=1)
    if not running:
        engine.add_request("first", PROMPT, SamplingParams(max_tokens=500, ignore_eos=True))
        engine.step()
    params = SamplingParams(max_tokens=500, ignore_eos=True, timeout_s=0.2)
    engine.add_request("r", PROMPT, params, stream=False)
    engine.step()
    time.sleep(0.25)
    (output,) = (o for o in engine.step() if o.request_id == "r")
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("abort", "timeout")
    engine.abort_request("first")
    engine.scheduler.check_integrity()
    assert engine.pool.allocator.num_used == 0


def test_the_end_of_an_idle_prompt_is_given_up_before_its_beginning():
    engine = make_engine(num_kv_tokens=48)
    engine.add_request("a", PROMPT, SamplingParams(max_tokens=1), stream=False)
    run(engine)
    assert engine.pool.allocator.num_idle == 7
    engine.add_request("b", [99] * 26, SamplingParams(max_tokens=1), stream=False)
    run(engine)
    found, _ = engine.pool.allocator.num_found(prompt_page_keys(PROMPT, 4))
    assert found == 5, "12 pages, 7 needed for the other prompt, 5 left for this one's beginning"
