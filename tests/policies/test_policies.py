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

from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.policies.methods import POLICIES, resolve_method
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.testing.oracles import ScriptedSampler
from lightthinker.testing.policy_reference import reference_run

TOLERANCE = 1e-5
LAYERS, KV_HEADS = 2, 2
FAMILIES = {
    "qwen2": {},
    "granite": {},  # attention scaling of its own
    "gemma2": {"layer_types": ["full_attention"] * LAYERS},  # logits are soft-capped
}
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
)
TOKENIZER = byte_tokenizer()
DOT = TOKENIZER(".", add_special_tokens=False)["input_ids"][0]
PER_HEAD = [name for name, policy in POLICIES.items() if name in ("h2o", "tova", "snapkv", "r_kv")]


def policy_of(text):
    return resolve_method(text).policy


@lru_cache
def models(family):
    def model():
        made = tiny_model(family, num_hidden_layers=LAYERS, **FAMILIES.get(family, {}))
        return made

    return model(), model()


def ids(seed, count):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, 250, (count,), generator=generator).tolist()
    return [DOT if i % 7 == 3 else token for i, token in enumerate(drawn)]


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


def pages_follow_live_tokens(engine):
    for sequence in engine.scheduler.running:
        assert len(sequence.pages) == -(-len(sequence.live) // engine.pool.page_size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", CASES)
def test_engine_equals_the_slow_reference(family, text):
    job = (text, ids(1, 14), ids(2, 40))
    if family != "qwen2":
        job = (text, ids(1, 24), ids(2, 16))
    engine, outputs = run(family, [job], pages_follow_live_tokens)
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
