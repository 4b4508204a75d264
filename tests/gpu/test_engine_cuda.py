"""The engine as it runs on a GPU: graphs, asynchronous steps, sampling on the device.

What is compared is the same work done in another way: without graphs, step by step, on the CPU.
"""

from __future__ import annotations

import random

import pytest
import torch

from lightthinker import LLM, SamplingParams
from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.bundled import bundled_model_path
from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.fusion import ProjectionSlice
from lightthinker.tasks import generate, verify
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

pytestmark = pytest.mark.gpu

CLOSE = 1e-4
FAMILIES = ["qwen2", "gemma2", "mistral+window", "llama"]


def make_engine(family="qwen2", *, device="cuda", warm=True, **config):
    model, tokenizer = tiny_model(family).to(device), byte_tokenizer()
    compression = add_tokens(model, tokenizer, CompressionConfig(num_gists=3))
    settings = {"max_num_seqs": 6, "num_kv_tokens": 2048, "poison_freed_pages": True} | config
    engine = LLMEngine(model, tokenizer, compression, config=EngineConfig(**settings))
    if warm:
        engine.warm_up()
    return engine


def prompts(count=8):
    draw = random.Random(2)
    return [[draw.randrange(3, 250) for _ in range(draw.randrange(3, 60))] for _ in range(count)]


def run(engine, params, inputs):
    for i, prompt in enumerate(inputs):
        engine.add_request(str(i), prompt, params, stream=False)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {o.request_id: o.outputs for o in engine.step() if o.finished}
        engine.scheduler.check_integrity()
    assert engine.pool.allocator.num_used == 0
    return [sample for i in range(len(inputs)) for sample in outputs[str(i)]]


def assert_same(got, expected):
    """The same tokens, until the two best logits are closer than 1e-4."""
    for a, b in zip(got, expected, strict=True):
        for step, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)):
            best = sorted(b.logprobs[step].top.values(), reverse=True)
            if best[0] - best[1] < CLOSE:
                break
            assert x == y, (step, a.token_ids, b.token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_give_what_plain_steps_give(family):
    greedy = SamplingParams(max_tokens=48, ignore_eos=True, max_thought_tokens=9)
    with_logprobs = SamplingParams(max_tokens=48, ignore_eos=True, max_thought_tokens=9, logprobs=2)
    engine = make_engine(family)
    assert engine.graphs is not None
    assert engine.graphs.is_captured
    plain = make_engine(family, enforce_eager=True, async_scheduling=False)
    assert_same(run(engine, greedy, prompts()), run(plain, with_logprobs, prompts()))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "llama"])
def test_fused_projections_change_nothing(family):
    greedy = SamplingParams(max_tokens=48, ignore_eos=True, max_thought_tokens=9)
    with_logprobs = SamplingParams(max_tokens=48, ignore_eos=True, max_thought_tokens=9, logprobs=2)
    fused, unfused = make_engine(family), make_engine(family, fuse_projections=False)
    assert not any(isinstance(m, ProjectionSlice) for m in unfused.runner.model.modules())
    attention = fused.runner.model.model.layers[0].self_attn
    assert type(attention.k_proj) is ProjectionSlice
    assert attention.k_proj.is_current
    expected = prefill_logits(unfused, compiled=False)
    for engine, compiled in ((fused, False), (fused, True), (unfused, True)):
        assert (prefill_logits(engine, compiled=compiled) - expected).abs().max() < CLOSE
    plain = run(unfused, with_logprobs, prompts())
    assert_same(run(fused, greedy, prompts()), plain)
    assert_same(run(unfused, greedy, prompts()), plain)


def test_the_fast_lane_changes_nothing():
    draw = random.Random(5)
    items = [
        (
            [draw.randrange(3, 250) for _ in range(draw.randrange(3, 60))],
            SamplingParams(
                max_tokens=draw.randrange(5, 120),
                ignore_eos=True,
                temperature=draw.choice([0.0, 1.0]),
                seed=draw.randrange(99),
                compression=draw.random() < 0.7,
                max_thought_tokens=20,
            ),
        )
        for _ in range(24)
    ]
    results = []
    for rides, num_kv_tokens in ((False, 4096), (True, 4096), (True, 512)):
        engine = make_engine(num_kv_tokens=num_kv_tokens)
        if not rides:
            engine._boarding = None
        for i, (prompt, params) in enumerate(items):
            engine.add_request(str(i), prompt, params, stream=False)
        outputs, ridden = {}, 0
        while engine.has_unfinished_requests():
            outputs |= {o.request_id: o.outputs[0] for o in engine.step()}
            engine.scheduler.check_integrity()
            ridden += len(engine._boarding.lane) if rides else 0
        assert bool(ridden) == rides
        results.append(
            {name: (o.token_ids, o.finish_reason, o.stats) for name, o in outputs.items()}
        )
    assert engine.scheduler.num_preemptions > 0
    assert results[0] == results[1] == results[2]


def prefill_logits(engine, *, compiled, num_tokens=24):
    """Logits of all tokens of one sequence that owns the pool's first pages."""
    rows = [Row(0, i + 1, 0, 0) for i in range(num_tokens)]
    places = list(range(num_tokens))
    pages = list(range(-(-num_tokens // engine.pool.page_size)))
    device = engine.runner.device
    step = SequenceRows(rows, places, pages, num_tokens)
    engine.backend.prepare(PagedBatch([step], engine.pool.page_size, device))
    positions = torch.arange(num_tokens, device=device)
    return engine.runner.forward(
        engine.backend, positions + 10, positions, positions.clone(), compiled=compiled
    )


def test_a_seed_draws_the_same_with_graphs_without_and_in_any_company():
    params = SamplingParams(
        max_tokens=30, temperature=1.0, top_p=0.9, seed=7, n=2, max_thought_tokens=9
    )
    together = run(make_engine(), params, prompts())
    plain = run(make_engine(enforce_eager=True), params, prompts())
    alone = run(make_engine(), params, prompts()[:1])
    assert [s.token_ids for s in together] == [s.token_ids for s in plain]
    assert [s.token_ids for s in together[:2]] == [s.token_ids for s in alone]


def test_swapped_sequences_go_on_as_if_nothing_had_happened():
    params = SamplingParams(max_tokens=80, ignore_eos=True, max_thought_tokens=20)
    roomy = make_engine()
    tight = make_engine(num_kv_tokens=256)
    expected = run(roomy, params, prompts())
    assert [s.token_ids for s in run(tight, params, prompts())] == [s.token_ids for s in expected]
    assert tight.scheduler.num_preemptions > 0


def test_allocated_memory_is_flat_over_many_requests():
    engine = make_engine(poison_freed_pages=False)
    params = SamplingParams(max_tokens=12, ignore_eos=True, max_thought_tokens=5)
    run(engine, params, prompts(40))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        run(engine, params, prompts(40))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_the_bundled_model_answers_as_on_a_cpu():
    problems = [
        generate(family, seed=seed, difficulty="demo")
        for family in ("programs", "multiplication")
        for seed in range(10)
    ]
    params = SamplingParams(max_tokens=1000)
    texts = {}
    for device in ("cpu", "cuda"):
        llm = LLM(bundled_model_path(), device=device, dtype="float32", num_kv_tokens=65_536)
        outputs = llm.chat([[{"role": "user", "content": p.question}] for p in problems], params)
        texts[device] = [o.outputs[0].text for o in outputs]
    right = {
        device: [verify(p, text).correct for p, text in zip(problems, answers, strict=True)]
        for device, answers in texts.items()
    }
    assert sum(a != b for a, b in zip(right["cpu"], right["cuda"], strict=True)) <= 1
    assert sum(right["cuda"]) >= 0.8 * len(problems)
