"""The law of the project: training-mask logits = logits of the engine that really deleted the KV.

Random weights never emit a trigger, so a scripted sampler does; it also records the logits that
each token was read from. Freed pages are full of NaN: reading one would show at once. fp32 on CPU,
max |difference| < 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.layout import TokenLayout
from lightthinker.masks import LifetimeBatch, lifetimes
from lightthinker.testing.models import FAMILIES, byte_tokenizer, tiny_model
from lightthinker.testing.oracles import ScriptedSampler, dense_logits
from lightthinker.tokens import add_tokens

TOLERANCE = 1e-5
ORDINARY_TOKENS = st.integers(3, 250)

VARIANTS: dict[str, dict[str, Any]] = {
    "thought": {},
    "token": {"method": "token", "num_gists": 2, "segment_tokens": 5},
    "anllm": {"method": "anllm", "num_gists": 1},
    "see_current": {"see_current": True},
    "bi_directional": {"bi_directional": True},
    "diagonal": {"diagonal": True},
    "prompt compression": {"prompt_chunk_tokens": 5},
    "prompt compression after prefill": {"prompt_chunk_tokens": 5, "prefill_compress": False},
    "retention": {"retain_thoughts": 2},
    "proportional gists": {"tokens_per_gist": 4.0},
    "compact positions": {"position_mode": "compact"},
    "spread positions": {"position_mode": "spread"},
    "continue dropped": {"keep_continue": False},
    "gists blanked": {"blank_gists": True},
    "bi_directional + see_current + prompt": {
        "bi_directional": True,
        "see_current": True,
        "prompt_chunk_tokens": 4,
    },
    "retention + proportional + compact": {
        "retain_thoughts": 1,
        "tokens_per_gist": 3.0,
        "position_mode": "compact",
    },
    "full": {"method": "full"},
}


@dataclass(frozen=True)
class Subject:
    """A model under the engine, its eager twin as the oracle, and a twin for the registered
    masks.
    """

    engine_model: Any
    oracle: Any
    masked: Any
    config: CompressionConfig
    tokenizer: Any


@lru_cache(maxsize=4)
def subject(family: str, variant: str) -> Subject:
    models, config, tokenizer = [], None, None
    for implementation in ("sdpa", "eager", "lt_sdpa"):
        model = tiny_model(
            family, attn_implementation="eager" if implementation == "eager" else "sdpa"
        )
        tokenizer = byte_tokenizer()
        config = add_tokens(
            model, tokenizer, CompressionConfig(**{"num_gists": 3, **VARIANTS[variant]})
        )
        if implementation == "lt_sdpa":
            model.set_attn_implementation("lt_sdpa")
        models.append(model)
    assert config is not None
    return Subject(*models, config, tokenizer)


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """A few requests: prompt ids, and a script in which -1 stands for the trigger (or anchor)."""
    script = st.lists(
        st.one_of(ORDINARY_TOKENS, ORDINARY_TOKENS, ORDINARY_TOKENS, st.just(-1)),
        min_size=1,
        max_size=40,
    )
    prompt = st.lists(ORDINARY_TOKENS, min_size=1, max_size=18)
    return draw(st.lists(st.tuples(prompt, script), min_size=1, max_size=4))


def run_engine(
    s: Subject, workload: list[tuple[list[int], list[int]]], config: EngineConfig
) -> ScriptedSampler:
    ends_thought = s.config.gist_ids[0] if s.config.method == "anllm" else s.config.trigger_id
    scripts = {
        str(i): [t if t >= 0 else (ends_thought or 7) for t in script]
        for i, (_, script) in enumerate(workload)
    }
    sampler = ScriptedSampler(scripts)
    engine = LLMEngine(s.engine_model, s.tokenizer, s.config, config=config, sampler=sampler)
    for i, (prompt, script) in enumerate(workload):
        params = SamplingParams(max_tokens=len(script), ignore_eos=True)
        engine.add_request(str(i), prompt, params, stream=False)
    steps = 0
    while engine.has_unfinished_requests():
        engine.step()
        engine.scheduler.check_integrity()
        steps += 1
        assert steps < 5_000, "the engine does not finish"
    assert engine.pool.allocator.num_used == 0
    return sampler


def largest_difference(s: Subject, sampler: ScriptedSampler) -> float:
    worst = 0.0
    for name, sequence in sampler.sequences.items():
        layout = sequence.builder.build()
        expected = dense_logits(s.oracle, sequence.token_ids, layout)
        registered = masked_logits(s.masked, sequence.token_ids, layout)
        worst = max(worst, float((expected - registered).abs().max()))
        for index, logits in sampler.logits[name]:
            assert not logits.isnan().any(), "a freed page was read"
            worst = max(worst, float((expected[index] - logits).abs().max()))
        assert sequence.peak_live <= layout.peak_tokens()
    return worst


@torch.no_grad()
def masked_logits(model: Any, token_ids: list[int], layout: TokenLayout) -> torch.Tensor:
    assert model.config._attn_implementation == "lt_sdpa"
    ids = torch.tensor([token_ids])
    positions = torch.from_numpy(layout.position).long()[None]
    with lifetimes(LifetimeBatch.from_layouts([layout])):
        out = model(
            ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        )
    logits: torch.Tensor = out.logits[0]
    return logits


small_engines = st.builds(
    EngineConfig,
    max_num_seqs=st.integers(1, 4),
    max_num_batched_tokens=st.sampled_from([6, 17, 512]),
    page_size=st.sampled_from([1, 3, 4, 16]),
    num_kv_tokens=st.sampled_from([176, 640]),
    async_scheduling=st.booleans(),
    poison_freed_pages=st.just(True),
)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60)
@given(workload=workloads(), config=small_engines)
def test_every_variant_with_any_engine_shape(variant, workload, config):
    s = subject("qwen2", variant)
    assert largest_difference(s, run_engine(s, workload, config)) < TOLERANCE


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen2"])
@settings(max_examples=6)
@given(workload=workloads(), variant=st.sampled_from([v for v in VARIANTS if v != "full"]))
def test_every_family(family, workload, variant):
    s = subject(family, variant)
    config = EngineConfig(
        max_num_seqs=3,
        page_size=4,
        num_kv_tokens=800,
        max_num_batched_tokens=64,
        poison_freed_pages=True,
    )
    assert largest_difference(s, run_engine(s, workload, config)) < TOLERANCE


def test_the_oracle_notices_a_wrong_mask():
    s = subject("qwen2", "thought")
    workload = [([5, 6, 7], [10, 11, 12, -1, 13, 14, -1, 15, 16])]
    sampler = run_engine(s, workload, EngineConfig(page_size=4, num_kv_tokens=640))
    sequence = sampler.sequences["0"]
    layout = sequence.builder.build()
    layout.expires[3] += 1
    expected = dense_logits(s.oracle, sequence.token_ids, layout)
    worst = max(float((expected[i] - logits).abs().max()) for i, logits in sampler.logits["0"])
    assert worst > 1e-3
