"""Every cache policy equals its slow reference, whatever the batch, the pages or the preemptions.

One list of policies; every generic test runs over it. Freed pages are full of NaN.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightthinker.attention import observation
from lightthinker.compression import CompressionConfig
from lightthinker.engine import eviction
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import RequestError
from lightthinker.policies.h2o import H2O
from lightthinker.policies.methods import POLICIES, resolve_method
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.testing.oracles import ScriptedSampler
from lightthinker.testing.policy_reference import reference_run
from lightthinker.tokens import add_tokens

TOLERANCE = 1e-5
LAYERS, KV_HEADS = 2, 2
FAMILIES = {
    "qwen2": {},
    "granite": {},  # attention scaling of its own
    "gemma2": {"layer_types": ["full_attention"] * LAYERS, "attn_logit_softcapping": 5.0},
}
SHARPEN = {"granite": 30.0}
"""Random models attend evenly, which makes every choice easy: queries are made so much larger."""
CASES = (
    "streaming_llm:budget=12,sinks=2",
    "streaming_llm:ratio=0.4,buffer=3",
    "sepllm:budget=16,initial=2",
    "h2o:budget=12",
    "h2o:ratio=0.5,buffer=4,recent_fraction=0.25",
    "tova:budget=10",
    "tova:ratio=0.4",
    "snapkv:budget=17,window=4,buffer=5,kernel=3",
    "snapkv:ratio=0.5,window=3,buffer=3",
    "r_kv:budget=16,window=3,buffer=4,kernel=3,mix_lambda=0.9",
    "r_kv:ratio=0.5,window=2,buffer=2,mix_lambda=0.1",
    "random:budget=36,recent=3,buffer=4",
    "random:ratio=0.3,recent=2",
    "random:budget=12,recent=2,keep_prompt=false",
    "streaming_llm:budget=30,keep_prompt=true",
    "sepllm:budget=34,keep_prompt=true",
    "h2o:budget=32,keep_prompt=true",
    "tova:budget=32,keep_prompt=true",
    "snapkv:budget=33,window=3,buffer=4,keep_prompt=true",
    "r_kv:budget=33,window=3,buffer=4,kernel=3,keep_prompt=true",
)
TOKENIZER = byte_tokenizer()
DOT = TOKENIZER(".", add_special_tokens=False)["input_ids"][0]
PER_HEAD = [name for name, policy in POLICIES.items() if name in ("h2o", "tova", "snapkv", "r_kv")]


def policy_of(text):
    return resolve_method(text).policy


@lru_cache
def models(family):
    made = [
        tiny_model(family, num_hidden_layers=LAYERS, **FAMILIES.get(family, {})) for _ in range(2)
    ]
    for model in made:
        for name, weight in model.named_parameters():
            if "q_proj.weight" in name:
                weight.data *= SHARPEN.get(family, 100.0)
    return made


def ids(seed, count):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, 250, (count,), generator=generator).tolist()
    return tuple(DOT if i % 7 == 3 else token for i, token in enumerate(drawn))


def make_engine(family, scripts, **config):
    shape = {"page_size": 4, "num_kv_tokens": 1200, "poison_freed_pages": True} | config
    sampler = ScriptedSampler(scripts)
    return LLMEngine(
        models(family)[0], TOKENIZER, None, config=EngineConfig(**shape), sampler=sampler
    )


def run(family, jobs, check=None, **config):
    """Run (policy text, prompt, output) jobs in one engine; returns sampler and outputs by job."""
    scripts = {str(i): output for i, (_, _, output) in enumerate(jobs)}
    engine = make_engine(family, scripts, **config)
    for i, (text, prompt, output) in enumerate(jobs):
        policy = policy_of(text) if text else None
        params = SamplingParams(max_tokens=len(output), ignore_eos=True, policy=policy)
        engine.add_request(str(i), prompt, params, stream=False)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {o.request_id: o.outputs[0] for o in engine.step() if o.finished}
        engine.scheduler.check_integrity()
        if check:
            check(engine)
    assert engine.pool.allocator.num_used == 0
    return engine, outputs


@lru_cache
def reference(family, job, sample_index=0):
    text, prompt, output = job
    return reference_run(
        models(family)[1], policy_of(text), prompt, output, tokenizer=TOKENIZER,
        num_layers=LAYERS, num_kv_heads=KV_HEADS, sample_index=sample_index,
    )  # fmt: skip


def assert_equal(engine, name, expected):
    recorded = engine.sampler.logits[name]
    assert len(recorded) == len(expected.logits)
    for (_, got), wanted in zip(recorded, expected.logits):
        assert not got.isnan().any(), "a freed page was read"
        assert float((got - wanted.float()).abs().max()) < TOLERANCE


def limits_hold(engine):
    """After a step: pages are those of the live tokens, and the next token fits the limit."""
    for sequence in engine.scheduler.running:
        assert len(sequence.pages) == -(-len(sequence.live) // engine.pool.page_size)
        policy, num_prompt = sequence.params.policy, len(sequence.prompt_ids)
        if policy and sequence.num_forwarded >= num_prompt:
            assert len(sequence.live) < policy.limit(sequence.num_forwarded + 1, num_prompt)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", CASES)
def test_engine_equals_the_slow_reference(family, text):
    job = (text, ids(1, 14), ids(2, 40))
    if family != "qwen2":
        job = (text, ids(1, 24), ids(2, 16))
    engine, outputs = run(family, [job], limits_hold)
    expected = reference(family, job)
    assert_equal(engine, "0", expected)
    stats = outputs["0"].stats
    in_output = expected.live[len(job[1]) :]
    assert max(in_output) < len(job[1]) + len(job[2]), "nothing was evicted"
    assert stats.peak_tokens == max(expected.live)
    assert stats.mean_live_tokens == pytest.approx(sum(in_output) / len(in_output))
    assert stats.dep_paper == stats.dep_full == sum(in_output)
    assert stats.kv_bytes_peak == max(expected.live) * engine.pool.bytes_per_token
    assert stats.live_tokens == expected.live[-1] - 1
    assert stats.tokens_freed == stats.num_prompt_tokens + len(job[2]) - expected.live[-1]
    assert stats.num_gist_tokens == stats.num_thoughts == 0


JOBS = [(text, ids(10 + i, 3 + 5 * (i % 5)), ids(30 + i, 26)) for i, text in enumerate(CASES)]
JOBS.append((None, ids(60, 20), ids(61, 30)))


@pytest.mark.parametrize(
    "config",
    [
        {"max_num_batched_tokens": 512},
        {"max_num_batched_tokens": 9, "page_size": 3},
        {"async_scheduling": True},
        {"num_kv_tokens": 160, "max_num_seqs": 7},
    ],
    ids=["together", "prompts in chunks", "asynchronously", "swapped out and in"],
)
def test_neither_batch_nor_chunks_nor_swapping_change_anything(config):
    swapped = []

    def check(engine):
        limits_hold(engine)
        running = engine.scheduler.running
        if "num_kv_tokens" in config and running:
            victim = running[len(swapped) % len(running)]
            swapped.append(victim.params.policy.name if victim.params.policy else None)
            engine.scheduler._swap_out(victim)

    engine, outputs = run("qwen2", JOBS, check, **{"page_size": 4, **config})
    assert "num_kv_tokens" not in config or set(POLICIES) <= set(swapped)
    for i, job in enumerate(JOBS[:-1]):
        assert_equal(engine, str(i), reference("qwen2", job))
    full = outputs[str(len(JOBS) - 1)].stats
    assert full.tokens_freed == 0
    assert full.peak_tokens == 50


@st.composite
def policies(draw):
    name = draw(st.sampled_from(list(POLICIES)))
    window, buffer = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    own = {
        "streaming_llm": {"sinks": draw(st.integers(0, 4))},
        "sepllm": {"initial": window, "neighbour_fraction": draw(st.sampled_from([0.3, 0.8]))},
        "h2o": {"recent_fraction": draw(st.sampled_from([0.0, 0.5, 1.0]))},
        "snapkv": {"window": window, "buffer": window + buffer, "kernel": 3},
        "r_kv": {"window": window, "buffer": window + buffer, "kernel": 3, "mix_lambda": 0.5},
        "random": {"recent": window, "seed": buffer},
        "tova": {},
    }[name]
    keep_prompt = str(draw(st.booleans())).lower()
    settings = {"buffer": buffer, "keep_prompt": keep_prompt, **own}
    budget = draw(st.one_of(st.none(), st.integers(12, 45)))
    if budget is None or (keep_prompt == "true" and budget < 40):
        return f"{name}:ratio={draw(st.sampled_from([0.2, 0.5, 0.8]))}," + joined(settings)
    return f"{name}:budget={budget}," + joined(settings)


def joined(settings):
    return ",".join(f"{key}={value}" for key, value in settings.items())


@settings(max_examples=20, derandomize=True)
@given(
    jobs=st.lists(
        st.tuples(policies(), st.integers(1, 20), st.integers(1, 16)), min_size=1, max_size=3
    ),
    page_size=st.sampled_from([1, 3, 16]),
    budget=st.sampled_from([5, 64]),
)
def test_any_budget_in_any_engine_shape(jobs, page_size, budget):
    jobs = [(text, ids(70 + i, n), ids(80 + i, m)) for i, (text, n, m) in enumerate(jobs)]
    engine, outputs = run(
        "qwen2", jobs, limits_hold, page_size=page_size, max_num_batched_tokens=budget
    )
    for i, job in enumerate(jobs):
        expected = reference("qwen2", job)
        assert_equal(engine, str(i), expected)
        assert outputs[str(i)].stats.peak_tokens == max(expected.live)


def test_random_eviction_follows_its_seed_and_sample():
    kept = {}
    for seed in (0, 1):
        job = (f"random:budget=24,recent=2,buffer=4,seed={seed}", ids(1, 10), ids(2, 20))
        for sample in (0, 1):
            kept[seed, sample] = str(reference("qwen2", job, sample).kept)
    assert len(set(kept.values())) == 4
    text, prompt, output = job
    params = SamplingParams(n=2, max_tokens=20, ignore_eos=True, policy=policy_of(text))
    engine = make_engine("qwen2", {"0": output})
    engine.add_request("0", prompt, params)
    while engine.has_unfinished_requests():
        engine.step()
    logits = engine.sampler.logits["0"]  # of both samples in turn
    for sample in (0, 1):
        for (_, got), wanted in zip(
            logits[sample::2], reference("qwen2", job, sample).logits, strict=True
        ):
            assert float((got - wanted).abs().max()) < TOLERANCE


@pytest.mark.parametrize("text", ["streaming_llm:budget=12", "random:budget=36,recent=3"])
def test_policies_that_treat_heads_alike_run_with_sliding_windows(text):
    job = (text, ids(3, 10), ids(4, 35))
    engine, _ = run("mistral+window", [job], limits_hold)
    assert_equal(engine, "0", reference("mistral+window", job))


@pytest.mark.parametrize("name", PER_HEAD)
def test_policies_that_evict_per_head_refuse_sliding_windows(name):
    engine = make_engine("mistral+window", {})
    with pytest.raises(RequestError, match="sliding-window"):
        engine.add_request("r", [5], SamplingParams(policy=policy_of(f"{name}:budget=64")))
    assert not engine.has_unfinished_requests()


def test_policy_and_compression_exclude_each_other():
    policy = policy_of("streaming_llm:budget=8,sinks=1")
    with pytest.raises(RequestError, match="cannot be combined"):
        SamplingParams(compression=True, policy=policy)
    model, tokenizer = tiny_model("qwen2"), byte_tokenizer()
    engine = LLMEngine(model, tokenizer, add_tokens(model, tokenizer, CompressionConfig()))
    trigger = engine.compression.trigger_id
    engine.sampler = ScriptedSampler({"r": [20, trigger] * 10, "c": [20, trigger] * 10})
    shared = {"max_tokens": 20, "ignore_eos": True}
    engine.add_request("r", [5, 6], SamplingParams(policy=policy, **shared), stream=False)
    engine.add_request("c", [5, 6], SamplingParams(**shared), stream=False)
    stats = {}
    while engine.has_unfinished_requests():
        stats |= {o.request_id: o.outputs[0].stats for o in engine.step()}
    assert stats["r"].num_gist_tokens == 0
    assert stats["r"].peak_tokens == 8
    assert stats["c"].num_gist_tokens > 0


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_below_a_prompt_that_must_stay_is_refused(name):
    engine = make_engine("qwen2", {})
    policy = policy_of(f"{name}:budget=60,buffer=16,keep_prompt=true")
    room = 60 - policy.smallest_cache
    with pytest.raises(RequestError, match=f"prompt of {room + 1} tokens is kept; .* least 61"):
        engine.add_request("r", ids(1, room + 1), SamplingParams(policy=policy))
    engine.add_request("r", ids(1, room), SamplingParams(policy=policy))


def test_scores_kept_before_a_policy_came_do_not_confuse_swapping():
    """A sequence swapped out before the first score-based request comes back without scores."""
    engine = make_engine("qwen2", {"0": ids(1, 12), "1": ids(2, 12)}, num_kv_tokens=64)
    plain = SamplingParams(max_tokens=12, ignore_eos=True)
    engine.add_request("0", ids(3, 9), plain)
    engine.step()
    engine.scheduler._swap_out(engine.scheduler.running[0])
    scored = dataclasses.replace(plain, policy=policy_of("h2o:budget=8"))
    engine.add_request("1", ids(4, 9), scored)
    while engine.has_unfinished_requests():
        engine.step()
    for name, job in (
        ("0", ("streaming_llm:budget=99", ids(3, 9), ids(1, 12))),
        ("1", ("h2o:budget=8", ids(4, 9), ids(2, 12))),
    ):
        assert_equal(engine, name, reference("qwen2", job))


def test_a_prompt_whose_pages_others_hold_is_seen_whole_and_evicted_alone():
    prompt, output = ids(5, 24), ids(6, 12)
    engine = make_engine("qwen2", {"plain": output, "h2o": output, "again": output})
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    scored = dataclasses.replace(params, policy=policy_of("h2o:budget=16"))
    for name, param in (("plain", params), ("h2o", scored), ("again", params)):
        engine.add_request(name, prompt, param)
        engine.step()
    while engine.has_unfinished_requests():
        engine.step()
    for name, text in (("plain", "tova:budget=99"), ("h2o", "h2o:budget=16")):
        assert_equal(engine, name, reference("qwen2", (text, prompt, output)))
    assert_equal(engine, "again", reference("qwen2", ("tova:budget=99", prompt, output)))


def test_steps_without_observed_rows_compute_no_probabilities(monkeypatch):
    calls = []
    compute = observation._attention

    def counted(*arguments):
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(observation, "_attention", counted)
    run("qwen2", [(None, ids(1, 8), ids(2, 8)), ("streaming_llm:budget=12", ids(3, 8), ids(4, 8))])
    assert not calls
    run("qwen2", [("snapkv:budget=20,window=2,buffer=4", ids(1, 8), ids(2, 17))])
    evictions = 2  # when 19 and 23 tokens are written; the last of the 25 is never forwarded
    assert len(calls) == evictions * 2 * LAYERS


def test_slots_start_at_zero_also_in_steps_that_a_graph_could_run():
    class Graphs:
        steps = 0

        def fits(self, plan, batch, riders=None):
            assert not engine.pool.scores[:, batch.slot_mapping].any()
            self.steps += 1
            return False

    text = "snapkv:budget=20,window=2,buffer=4"
    engine = make_engine("qwen2", {"0": ids(2, 17), "1": ids(4, 17)}, num_kv_tokens=48)
    engine.graphs = Graphs()
    params = SamplingParams(max_tokens=17, ignore_eos=True, policy=policy_of(text))
    for name, prompt in (("0", ids(1, 12)), ("1", ids(3, 12))):
        engine.add_request(name, prompt, params)
        while engine.has_unfinished_requests():
            engine.step()
    assert engine.graphs.steps > 30
    assert_equal(engine, "1", reference("qwen2", (text, ids(3, 12), ids(4, 17))))


def test_the_reference_notices_a_wrong_choice():
    job = ("h2o:budget=12", ids(1, 14), ids(2, 20))
    engine, _ = run("qwen2", [job])
    other = ("h2o:budget=12,recent_fraction=0.7", *job[1:])
    with pytest.raises(AssertionError):
        assert_equal(engine, "0", reference("qwen2", other))


def test_policies_need_no_hash_to_be_asked_together():
    class Unhashable(H2O):
        __hash__ = None

    jobs = [(ids(1, 8), ids(2, 14)), (ids(3, 8), ids(4, 14))]
    engine = make_engine("qwen2", {str(i): output for i, (_, output) in enumerate(jobs)})
    params = SamplingParams(max_tokens=14, ignore_eos=True, policy=Unhashable(budget=12))
    for i, (prompt, _) in enumerate(jobs):
        engine.add_request(str(i), prompt, params, stream=False)
    while engine.has_unfinished_requests():
        engine.step()
    for i, (prompt, output) in enumerate(jobs):
        assert_equal(engine, str(i), reference("qwen2", ("h2o:budget=12", prompt, output)))


@pytest.mark.parametrize(("pairs", "sizes"), [(2**24, [5]), (300, [2, 2, 1]), (1, [1] * 5)])
def test_policies_see_as_many_sequences_together_as_their_keys_allow(monkeypatch, pairs, sizes):
    seen = []

    def watched(sequences, *rest):
        seen.append(len(sequences))
        evict_heads(sequences, *rest)

    evict_heads = eviction._evict_heads
    monkeypatch.setattr(eviction, "_evict_heads", watched)
    monkeypatch.setattr(eviction, "MAX_PAIRS_TOGETHER", pairs)
    jobs = [("r_kv:budget=12,window=2,buffer=3", ids(i, 8), ids(20 + i, 12)) for i in range(5)]
    engine, _ = run("qwen2", jobs)
    assert seen[: len(sizes)] == sizes
    for i, job in enumerate(jobs):
        assert_equal(engine, str(i), reference("qwen2", job))
