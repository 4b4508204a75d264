"""Steps through static buffers, as CUDA graphs run them, in the interpreter and not captured."""

from __future__ import annotations

import pytest
import torch

from lightthinker.attention import rows_metadata, triton_backend
from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.graphs import GraphRunner, graph_sizes
from lightthinker.engine.runner import ModelRunner
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


def make_engine(**config):
    model, tokenizer = tiny_model("qwen2", num_hidden_layers=1), byte_tokenizer()
    compression = add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
    settings = {"page_size": 4, "num_kv_tokens": 256, "poison_freed_pages": True} | config
    return LLMEngine(model, tokenizer, compression, config=EngineConfig(**settings))


SHORT = (range(20, 29), range(70, 73))


def run(engine, params, prompts):
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), list(prompt), params, stream=False)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {o.request_id: o.outputs for o in engine.step() if o.finished}
        engine.scheduler.check_integrity()
    return {
        name: [(o.token_ids, o.finish_reason, o.stats.peak_tokens) for o in samples]
        for name, samples in outputs.items()
    }


@pytest.fixture
def counted(monkeypatch):
    """Counts the steps that ran through static buffers."""
    sizes = []
    original = GraphRunner._compute

    def compute(self, size):
        sizes.append(size)
        original(self, size)

    monkeypatch.setattr(GraphRunner, "_compute", compute)
    return sizes


def test_greedy_output_equals_the_torch_backends(counted):
    params = SamplingParams(max_tokens=6, ignore_eos=True, max_thought_tokens=3)
    expected = run(make_engine(attention_backend="torch"), params, prompts=SHORT)
    assert not counted
    config = {"attention_backend": "triton", "max_num_seqs": 4, "async_scheduling": True}
    assert run(make_engine(**config), params, prompts=SHORT) == expected
    assert set(counted) == {2, 7, 64}, "rows alone, two groups of gists and two prompts together"


def test_seeds_give_the_same_with_and_without_graphs_and_whatever_else_runs(counted):
    params = SamplingParams(
        max_tokens=5, temperature=1.0, seed=5, max_thought_tokens=3, ignore_eos=True
    )
    config = {"attention_backend": "triton", "max_num_seqs": 4, "async_scheduling": True}
    together = run(make_engine(**config), params, SHORT)
    assert counted
    eager = run(make_engine(enforce_eager=True, **config), params, SHORT)
    alone = run(make_engine(**config), params, prompts=[range(20, 29)])
    assert together == eager
    assert together["0"] == alone["0"]


def test_requests_that_need_the_host_take_the_other_way(counted):
    config = {"attention_backend": "triton", "max_num_seqs": 4}
    for settings in ({"logprobs": 2}, {"frequency_penalty": 1.0}):
        params = SamplingParams(max_tokens=2, ignore_eos=True, **settings)
        assert run(make_engine(**config), params, prompts=[range(20, 24)])
    assert not counted


def test_long_sequences_run_without_a_graph(counted):
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    config = {"attention_backend": "triton", "max_num_seqs": 4, "max_graph_live_tokens": 16}
    run(make_engine(**config), params, prompts=[range(20, 45)])
    assert not counted
    run(make_engine(**config), params, prompts=[range(20, 30)])
    assert counted


def test_warming_up_runs_the_kernels_of_a_long_prompt_and_leaves_nothing(counted, monkeypatch):
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    config = {"attention_backend": "triton", "max_num_seqs": 4, "max_num_batched_tokens": 64}
    expected = run(make_engine(**config), params, SHORT)
    counted.clear()
    engine, tiles = make_engine(**config), []
    tiled = triton_backend.tiled_attention
    monkeypatch.setattr(
        triton_backend,
        "tiled_attention",
        lambda query, *args, **kwargs: tiles.append(len(query)) or tiled(query, *args, **kwargs),
    )
    engine.graphs.run_without()
    others = [1, engine.graphs.max_samples]
    assert tiles == [68 + count for count in others], "more rows than the largest graph has"
    assert engine.pool.allocator.num_used == 0
    assert not counted
    assert run(engine, params, SHORT) == expected
    assert engine.pool.allocator.num_used == 0


def test_prompts_run_in_graphs_unless_their_rows_would_read_too_much(counted, monkeypatch):
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    prompts = [range(20, 60), range(70, 73)]
    expected = run(make_engine(attention_backend="torch"), params, prompts)
    config = {"attention_backend": "triton", "max_num_seqs": 4}
    assert run(make_engine(**config), params, prompts) == expected
    assert 64 in counted
    counted.clear()
    monkeypatch.setattr(rows_metadata, "MAX_ROW_KEYS", 40 * 40 - 1)
    assert run(make_engine(**config), params, prompts) == expected
    assert set(counted) == {2}


def test_a_long_step_of_a_few_samples_reads_the_logits_of_those_alone(counted, monkeypatch):
    shapes = []
    forward = ModelRunner.forward
    monkeypatch.setattr(
        ModelRunner,
        "forward",
        lambda self, *args, **kwargs: (
            shapes.append((len(args[1]), len(args[3]))) or forward(self, *args, **kwargs)
        ),
    )
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    engine = make_engine(attention_backend="triton", max_num_seqs=4)
    run(engine, params, [range(20, 60)])
    assert counted == [64]
    assert shapes[-1] == (64, engine.graphs.max_samples)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_only_the_request_whose_logits_are_not_finite_fails(backend):
    engine = make_engine(attention_backend=backend, max_num_seqs=4, async_scheduling=True)
    embedding = engine.runner.model.get_input_embeddings().weight
    embedding.data[99] = float("nan")
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    outputs = run(engine, params, prompts=[[30, 99, 31], [30, 32, 31]])
    assert [o[:2] for o in outputs["0"]] == [([], "error")]
    assert outputs["1"][0][1] == "length"
    assert engine.pool.allocator.num_used == 0


def test_graph_sizes_reach_what_was_asked_for():
    assert graph_sizes(1, 1) == [2]
    assert graph_sizes(20, 20) == [2, 4, 8, 16, 20]
    assert graph_sizes(20, 100) == [2, 4, 8, 16, 20, 64, 100]
    assert graph_sizes(300, 512)[-6:] == [288, 300, 320, 384, 448, 512]
    assert graph_sizes(1200, 1200)[-3:] == [1088, 1152, 1200]
