"""Which matmuls of a compiled model become ours, and that the model stays what it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightthinker.attention.triton.linear_launch import MAX_ROWS, LinearConfig
from lightthinker.engine import skinny
from lightthinker.engine.fusion import fuse_projections, merge_projections
from lightthinker.engine.skinny import dependent_launch, is_half_on_cuda, use_skinny_linears
from lightthinker.testing.models import tiny_model

IDS = torch.arange(10, 30)[None]
ALWAYS = LinearConfig(block_n=64, block_k=32, splits=2)

GATES = {
    "qwen2": "silu",
    "llama": "silu",
    "gemma2": "gelu_tanh",
    "gemma3_text": "gelu_tanh",
    "phi3": "silu",  # One gate_up_proj, in chunks.
    "glm4": "silu",
    "stablelm": "silu",
    "gpt_neox": None,  # No gate.
}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.fixture
def always(monkeypatch):
    """Few rows are computed by our kernels, in the interpreter, whatever the shape."""
    monkeypatch.setattr(
        skinny, "linear_config", lambda rows, *_, **__: ALWAYS if rows < 40 else None
    )


class Traced:
    """A backend for torch.compile that rewrites, then runs the graph eagerly."""

    def __init__(self, takes=lambda weight: True):
        self.takes = takes
        self.counts = []
        self.graph = None

    def __call__(self, module, example_inputs):
        merge_projections(module)
        self.counts.append(use_skinny_linears(module, self.takes))
        module.graph.lint()
        self.graph = module.graph
        return module.forward

    def targets(self):
        return [n.target for n in self.graph.nodes if n.op in ("call_function", "call_method")]


def compiled(function, *inputs, takes=lambda weight: True):
    traced = Traced(takes)
    with torch.no_grad():
        result = torch.compile(function, fullgraph=True, backend=traced)(*inputs)
    return result, traced


@pytest.mark.parametrize("family", GATES)
def test_a_models_matmuls_are_ours(family, always):
    model = tiny_model(family, num_hidden_layers=2).eval()
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
    fuse_projections(model)
    got, traced = compiled(lambda ids: model(ids, use_cache=False).logits, IDS)
    activation = GATES[family]
    gated = [
        n for n in traced.graph.nodes if n.target is torch.ops.lightthinker.gated_linear.default
    ]
    assert [n.args[3] for n in gated] == ([activation] * 2 if activation else [])
    assert traced.counts == [(traced.counts[0][0], len(gated))]
    assert traced.counts[0][0] >= 2 * 3 + 1  # Attention's two, the MLP's last; the head.
    assert F.linear not in traced.targets()
    assert F.silu not in traced.targets()
    assert (got - expected).abs().max() < 1e-5


def test_many_rows_are_left_to_torch(always):
    model = tiny_model("qwen2", num_hidden_layers=1).eval()
    ids = torch.arange(10, 60)[None]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    fuse_projections(model)
    got, traced = compiled(lambda i: model(i, use_cache=False).logits, ids)
    assert traced.counts == [(4, 1)]
    assert (got - expected).abs().max() < 1e-5


class Gate(nn.Module):
    """A gate and another projection of one weight, used as a test wants."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.both = nn.Linear(32, 128)
        self.down = nn.Linear(64, 32)
        self._use = use

    def forward(self, x):
        return self._use(self, x)


def _chunk(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down(F.silu(gate) * up)


def _chunk_positional(m, x):
    gate, up = m.both(x).chunk(2, -1)
    return m.down(up * F.gelu(gate))


def _slices(m, x):
    y = m.both(x)
    return m.down(F.gelu(y[..., 0:64], approximate="tanh") * y[..., 64:128])


def _up_first(m, x):
    up, gate = m.both(x).chunk(2, dim=-1)
    return m.down(F.silu(gate) * up)


def _gate_used_twice(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down(F.silu(gate) * up) + m.down(gate)


def _activated_used_twice(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    activated = F.silu(gate)
    return m.down(activated * up + activated)


def _product_with_another(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down(F.silu(gate) * up.sin())


def _product_without_the_gate(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down(up * 3) + F.silu(gate).sum()


def _squared(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    activated = F.silu(gate)
    return m.down(activated * activated) + m.down(up)


def _relu(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down(F.relu(gate) * up)


def _other_dimension(m, x):
    gate, up = m.both(x).chunk(2, dim=0)
    return m.down((F.silu(gate) * up)[..., :64])


def _whole_used_too(m, x):
    y = m.both(x)
    gate, up = y.chunk(2, dim=-1)
    return m.down(F.silu(gate) * up) + y.sum()


def _unequal_slices(m, x):
    y = m.both(x)
    return m.down(F.silu(y[..., 0:64]) * y[..., 60:124])


def _input_written_after(m, x):
    x = x.clone()
    y = m.both(x)
    x.add_(1)
    gate, up = y.chunk(2, dim=-1)
    return m.down(F.silu(gate) * up) + x


@pytest.mark.parametrize(
    ("use", "counts"),
    [
        (_chunk, (1, 1)),
        (_chunk_positional, (1, 1)),
        (_slices, (1, 1)),
        (_input_written_after, (1, 1)),
        (_up_first, (2, 0)),
        (_gate_used_twice, (3, 0)),
        (_activated_used_twice, (2, 0)),
        (_product_with_another, (2, 0)),
        (_squared, (3, 0)),
        (_product_without_the_gate, (2, 0)),
        (_relu, (2, 0)),
        (_other_dimension, (2, 0)),
        (_whole_used_too, (2, 0)),
        (_unequal_slices, (2, 0)),
    ],
)
def test_only_a_gate_and_its_product_become_one(use, counts, always):
    module, x = Gate(use), torch.randn(2, 3, 32)
    with torch.no_grad():
        expected = module(x)
    got, traced = compiled(module, x)
    assert traced.counts == [counts]
    assert F.linear not in traced.targets()
    assert (got - expected).abs().max() < 1e-5


class Adapted(nn.Module):
    """A LoRA: what is added to a plain matmul."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(32, 64)
        self.a, self.b = nn.Linear(32, 4, bias=False), nn.Linear(4, 64, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x)) * 2


def test_adapters_are_matmuls_of_their_own(always):
    module, x = Adapted(), torch.randn(5, 32)
    got, traced = compiled(module, x)
    assert traced.counts == [(3, 0)]
    assert (got - module(x)).abs().max() < 1e-5


def test_computed_and_shared_weights(always):
    """A computed weight stays with torch; a weight that two matmuls share is read by both."""
    linear = nn.Linear(32, 32)

    def forward(x):
        scaled = F.linear(x, linear.weight * 2)
        return F.linear(x, linear.weight[:16]), linear(scaled), F.linear(x, weight=linear.weight)

    x = torch.randn(5, 32)
    got, traced = compiled(forward, x)
    assert traced.counts == [(1, 0)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, forward(x), strict=True))


def test_a_tied_head_reads_the_embedding(always):
    model = tiny_model("qwen2", num_hidden_layers=1, tie_word_embeddings=True).eval()
    expected = model(IDS, use_cache=False).logits
    got, traced = compiled(lambda ids: model(ids, use_cache=False).logits, IDS)
    assert F.linear not in traced.targets()
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_and_float32_are_left_alone(dtype, always):
    module, x = Gate(_chunk).to(dtype), torch.randn(5, 32, dtype=dtype)
    got, traced = compiled(module, x, takes=is_half_on_cuda)
    assert traced.counts == [(0, 0)]
    assert torch.equal(got, module(x))
    assert not is_half_on_cuda(torch.empty(1, dtype=dtype))
    assert is_half_on_cuda(torch.empty(1, device="meta").to(torch.float16)) is False


def test_a_layer_that_no_number_of_rows_takes_is_left_to_inductor():
    """Sizes of a test model: too small to be worth a kernel of our own."""
    _, traced = compiled(Gate(_chunk), torch.randn(5, 32))
    assert traced.counts == [(0, 0)]


def test_what_is_traced_for_one_number_of_rows_is_right_for_others(always):
    module, traced = Gate(_chunk), Traced()
    function = torch.compile(module, fullgraph=True, backend=traced, dynamic=True)
    with torch.no_grad():
        for num_rows in (3, 39, 40, MAX_ROWS + 1):
            x = torch.randn(num_rows, 32)
            assert (function(x) - module(x)).abs().max() < 1e-5
    assert traced.counts == [(1, 1)]


@pytest.mark.slow
def test_inductor_compiles_the_operators(always):
    module = Gate(_chunk)

    def backend(graph, inputs):
        assert use_skinny_linears(graph, lambda weight: True) == (1, 1)
        with dependent_launch():
            return torch._inductor.compile(graph, inputs)

    function = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for num_rows in (3, 50):
            x = torch.randn(num_rows, 32)
            assert (function(x) - module(x)).abs().max() < 1e-5
