"""Projections of one input as one matmul: the same model, with less to do when compiled."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightthinker import SamplingParams
from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.attention.torch_backend import TorchBackend
from lightthinker.compression import CompressionConfig
from lightthinker.engine import runner as runner_module
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.fusion import (
    ProjectionSlice,
    compile_merged,
    fuse_projections,
    materialize_rotary,
    merge_projections,
)
from lightthinker.engine.runner import ModelRunner
from lightthinker.kvcache.pool import PagePool
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

NUM_LAYERS = 2
GROUPS_PER_LAYER = {
    "qwen2": 2,  # With biases on q, k and v.
    "qwen3": 2,
    "llama": 2,
    "mistral+window": 2,
    "gemma2": 2,
    "gemma3_text": 2,
    "olmo2": 2,
    "cohere": 2,  # All five projections have the same input.
    "stablelm": 2,
    "glm4": 1,  # gate_up_proj is one already.
    "qwen3_moe": 1,
    "deepseek_v3": 1,
    "phi3": 0,
    "gpt_neox": 0,
}
IDS = torch.arange(10, 30)[None]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


class Traced:
    """A backend for torch.compile that merges, then runs the graph eagerly."""

    def __init__(self):
        self.merged = []
        self.graphs = []

    def __call__(self, module, example_inputs):
        self.merged.append(merge_projections(module))
        module.graph.lint()
        self.graphs.append(module.graph)
        return module.forward

    def count(self, target):
        return sum(len(g.find_nodes(op="call_function", target=target)) for g in self.graphs)


class Block(nn.Module):
    """Three projections, called as a test wants."""

    def __init__(self, forward, *, num=3, bias=True):
        super().__init__()
        torch.manual_seed(0)
        for name, size in [("q_proj", 8), ("k_proj", 4), ("v_proj", 6)][:num]:
            setattr(self, name, nn.Linear(5, size, bias=bias))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def logits(runner, num_tokens, *, compiled):
    """Logits of the last and the first token of a sequence, attention included."""
    pool = PagePool(
        runner.probe(), num_pages=11, page_size=4, dtype=torch.float32, device=torch.device("cpu")
    )
    backend = TorchBackend(pool)
    rows = [Row(0, i + 1, 0, 0) for i in range(num_tokens)]
    step = SequenceRows(rows, list(range(num_tokens)), list(range(11)), num_tokens)
    backend.prepare(PagedBatch([step], pool.page_size, torch.device("cpu")))
    positions = torch.arange(num_tokens)
    wanted = torch.tensor([num_tokens - 1, 0])
    return runner.forward(backend, positions + 10, positions, wanted, compiled=compiled)


@pytest.fixture
def traced(monkeypatch):
    backend = Traced()
    monkeypatch.setattr(runner_module, "compile_merged", backend)
    return backend


@torch.no_grad()
@pytest.mark.parametrize("family", GROUPS_PER_LAYER)
def test_a_fused_model_is_the_same_model(family, tmp_path):
    model = tiny_model(family, num_hidden_layers=NUM_LAYERS)
    expected = model(IDS, use_cache=False).logits
    values = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, num_bytes = list(model.parameters()), model.get_memory_footprint()
    assert fuse_projections(model) == GROUPS_PER_LAYER[family] * NUM_LAYERS
    assert (model(IDS, use_cache=False).logits - expected).abs().max() < 1e-6
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.get_memory_footprint() == num_bytes
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in values.items())


@torch.no_grad()
@pytest.mark.parametrize("family", GROUPS_PER_LAYER)
def test_compiled_a_group_is_one_matmul_and_rope_is_computed_once(family, traced):
    runner = ModelRunner(tiny_model(family, num_hidden_layers=NUM_LAYERS))
    plain = Traced()
    expected = logits(runner, 9, compiled=False)
    unfused = tiny_model(family, num_hidden_layers=NUM_LAYERS)
    torch.compile(unfused, fullgraph=True, backend=plain)(IDS, use_cache=False)
    torch._dynamo.reset()
    runner.fuse()
    runner.compile()
    assert (logits(runner, 9, compiled=True) - expected).abs().max() < 1e-6
    num_groups = GROUPS_PER_LAYER[family] * NUM_LAYERS
    # q, k, v are a group of three, which latent attention does not have; the others are pairs.
    num_qkv = NUM_LAYERS if num_groups and family != "deepseek_v3" else 0
    assert plain.merged == [0]
    assert traced.merged == [num_groups]
    assert traced.count(F.linear) == plain.count(F.linear) - num_groups - num_qkv
    assert traced.count(torch.ops.lightthinker.materialize.default) == 2  # Cosine and sine.


@torch.no_grad()
def test_one_graph_serves_all_numbers_of_rows_and_keeps_nothing(traced):
    runner = ModelRunner(tiny_model("qwen2", num_hidden_layers=NUM_LAYERS))
    plain = ModelRunner(tiny_model("qwen2", num_hidden_layers=NUM_LAYERS))
    runner.fuse()
    runner.compile()

    logits(runner, 2, compiled=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_tokens in (3, 8, 17, 37, 40):
            expected = logits(plain, num_tokens, compiled=False)
            assert (logits(runner, num_tokens, compiled=True) - expected).abs().max() < 1e-6
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    assert not [one.shape for one in tensors if 37 in one.shape]
    counters = torch._dynamo.utils.counters
    assert sum(counters["graph_break"].values()) == 0
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_another_size_of_model_is_compiled_with_sizes_of_its_own(traced):
    for hidden_size in (64, 96):
        runner = ModelRunner(tiny_model("qwen2", num_hidden_layers=1, hidden_size=hidden_size))
        runner.fuse()
        runner.compile()
        logits(runner, 5, compiled=True)
    assert traced.merged == [2, 2]
    weights = [n for n in traced.graphs[1].nodes if n.op == "placeholder" and "fused" in n.name]
    sizes = [n.meta["example_value"].shape for n in weights]
    assert {type(size) for shape in sizes for size in shape} == {int}
    assert [tuple(shape) for shape in sizes] == [(128,), (128, 96), (192, 96)]


def _another_input(block, x):
    return block.q_proj(x), block.k_proj(x + 1), block.v_proj(x)


def _two_of_three(block, x):
    return block.k_proj(x), block.v_proj(x)


def _twice(block, x):
    return block.q_proj(x), block.k_proj(x), block.k_proj(x), block.v_proj(x)


def _written_between(block, x):
    x = x.clone()
    q = block.q_proj(x)
    x.add_(1)
    return q, block.k_proj(x), block.v_proj(x)


def _reversed(block, x):
    return block.v_proj(x), block.k_proj(x), block.q_proj(x)


def _used_after(block, x):
    x = x.clone()
    result = block.k_proj(x), block.q_proj(x), block.v_proj(x)
    x.add_(1)
    return *result, x


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("forward", "num_merged"),
    [
        (_another_input, 0),
        (_two_of_three, 0),
        (_twice, 0),
        (_written_between, 0),
        (_reversed, 1),
        (_used_after, 1),
    ],
)
def test_any_order_of_calls_is_right(forward, num_merged, bias):
    block, plain = Block(forward, bias=bias), Block(forward, bias=bias)
    assert fuse_projections(block) == 1
    x = torch.randn(7, 5)
    traced = Traced()
    compiled = torch.compile(block, fullgraph=True, backend=traced)
    for got in (block(x), compiled(x)):
        for a, b in zip(got, plain(x), strict=True):
            assert (a - b).abs().max() < 1e-6
    assert traced.merged == [num_merged]


def test_what_a_model_slices_itself_is_left_alone_or_right():
    def forward(block, x):
        weight, bias = block.q_proj.weight, block.q_proj.bias
        return (
            F.linear(x, weight),
            F.linear(x, weight[0:4], bias[4:8]),
            F.linear(x, weight[4:8], bias[0:4]),
            F.linear(x, weight[:3], bias[:3]),
            F.linear(x, weight[:, :5], None),
            F.linear(x, weight[0:4:2], None),
            F.linear(x, weight[4:8:2], None),
        )

    block, traced, x = Block(forward), Traced(), torch.randn(7, 5)
    got = torch.compile(block, fullgraph=True, backend=traced)(x)
    assert traced.merged == [0]
    assert all(torch.equal(a, b) for a, b in zip(got, forward(block, x), strict=True))


class Adapter(nn.Linear):
    """Not exactly a Linear."""


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b, "k_proj", Adapter(5, 4)),
        lambda b: setattr(b, "k_proj", nn.Linear(3, 4)),
        lambda b: setattr(b, "k_proj", nn.Linear(5, 4, bias=False)),
        lambda b: setattr(b, "k_proj", nn.Linear(5, 4).bfloat16()),
        lambda b: setattr(b, "k_proj", nn.Linear(5, 4, device="meta")),
        lambda b: delattr(b, "k_proj"),
    ],
)
def test_only_equal_plain_linears_are_fused(change):
    block = Block(_reversed)
    change(block)
    assert fuse_projections(block) == 0
    assert type(block.q_proj) is nn.Linear


@torch.no_grad()
def test_fusing_again_does_nothing_until_the_weights_have_left():
    block, x = Block(_reversed), torch.randn(7, 5)
    assert [fuse_projections(block), fuse_projections(block)] == [1, 0]

    def assert_right(model):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for linear, got in zip((model.v_proj, model.k_proj, model.q_proj), compiled(x)):
            assert (got - F.linear(x, linear.weight, linear.bias)).abs().max() < 1e-6

    block.q_proj.weight.mul_(2)  # In place: the views' tensor changes, too.
    assert_right(block)
    copied = copy.deepcopy(block)
    copied.q_proj.weight.mul_(2)
    assert fuse_projections(copied) == 1
    assert_right(copied)
    block.load_state_dict({k: v + 1 for k, v in block.state_dict().items()}, assign=True)
    assert fuse_projections(block) == 1
    assert_right(block)
    block.double().float()
    assert type(block.q_proj) is nn.Linear
    assert_right(block)
    assert fuse_projections(block) == 1
    assert_right(block)


def test_gradients_go_to_the_parameters():
    block, plain = Block(_reversed), Block(_reversed)
    fuse_projections(block)
    x = torch.randn(7, 5)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for model in (compiled, plain):
        sum((y**2).sum() for y in model(x)).backward()
    for ours, expected in zip(block.parameters(), plain.parameters(), strict=True):
        assert (ours.grad - expected.grad).abs().max() < 1e-5


def test_rotary_hooks_are_set_once():
    model = tiny_model("gemma3_text", num_hidden_layers=1)
    for _ in range(2):
        materialize_rotary(model)
    hooks = [len(m._forward_hooks) for m in model.modules() if m._forward_hooks]
    assert hooks == [1]


def generate(**config):
    model, tokenizer = tiny_model("qwen2", num_hidden_layers=1), byte_tokenizer()
    compression = add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
    fuse = config.pop("fuse", False)
    settings = EngineConfig(page_size=4, num_kv_tokens=256, max_num_seqs=4, **config)
    engine = LLMEngine(model, tokenizer, compression, config=settings)
    assert not any(isinstance(module, ProjectionSlice) for module in model.modules())
    if fuse:
        engine.runner.fuse()
        engine.runner.compile()
    params = SamplingParams(max_tokens=6, ignore_eos=True, max_thought_tokens=3)
    for i, prompt in enumerate((range(20, 29), range(70, 73))):
        engine.add_request(str(i), list(prompt), params, stream=False)
    done = {}
    while engine.has_unfinished_requests():
        done |= {o.request_id: o.outputs[0].token_ids for o in engine.step() if o.finished}
    return done


def test_an_engine_gives_the_same_tokens(traced):
    expected = generate()
    assert generate(fuse=True) == expected
    assert traced.merged == [2], "steps without graphs run what is compiled, too"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
def test_an_engines_static_steps_give_the_same_tokens_fused(traced):
    expected = generate()
    assert generate(fuse=True, attention_backend="triton") == expected
    assert traced.merged == [2]


@pytest.mark.slow
@torch.no_grad()
def test_inductor_compiles_what_is_merged():
    runner = ModelRunner(tiny_model("qwen2", num_hidden_layers=1))
    runner.fuse()
    runner.compile()
    for num_tokens in (2, 9, 40):
        expected = logits(runner, num_tokens, compiled=False)
        got = logits(runner, num_tokens, compiled=True)
        assert (got - expected).abs().max() < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_combo_kernels_are_switched_off_by_the_environment(monkeypatch):
    assert torch._inductor.config.combo_kernels is False, "Inductor has another name or default"
    options = []
    monkeypatch.setattr(torch._inductor, "compile", lambda *arguments: options.append(arguments[2]))
    monkeypatch.delenv("LIGHTTHINKER_COMBO_KERNELS", raising=False)
    compile_merged(torch.fx.symbolic_trace(torch.nn.Identity()), [])
    monkeypatch.setenv("LIGHTTHINKER_COMBO_KERNELS", "0")
    compile_merged(torch.fx.symbolic_trace(torch.nn.Identity()), [])
    assert options == [{"combo_kernels": True}, None]
