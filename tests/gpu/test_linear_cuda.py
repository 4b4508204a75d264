"""The decode step's matmuls on a GPU: float64 by error band, replay = eager, dependent launch.

Run by hand: `pytest tests/gpu -m gpu`. What lies beside a tensor is NaN. The band is twice what
torch's own matmul in the same dtype errs, rounding included.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightthinker.attention.triton.linear_launch import NUM_ROWS, LinearConfig, linear_config
from lightthinker.engine.fusion import compile_merged, fuse_projections
from lightthinker.engine.skinny import _ACTIVATIONS as TORCH

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16]
ROWS = [1, 2, 8, 16, 17, 32, 64, 100, 128, 256]
CONFIGS = [
    LinearConfig(),
    LinearConfig(splits=5, pdl=True, prefetched=128),
    LinearConfig(block_n=128, block_k=64, num_stages=3, splits=2),
    LinearConfig(block_k=64, num_warps=8, num_stages=3, splits=16, pdl=True),
]


def among_nans(*shape, dtype, scale=1.0):
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, device="cuda", dtype=dtype)
    whole[1:-1] = torch.randn(*shape, device="cuda", dtype=dtype) * scale
    return whole[1:-1]


def case(num_rows, num_outputs, num_inputs, dtype, bias=True):
    torch.manual_seed(num_rows)
    x = among_nans(num_rows, num_inputs, dtype=dtype)
    weight = among_nans(num_outputs, num_inputs, dtype=dtype, scale=num_inputs**-0.5)
    b = among_nans(num_outputs, dtype=dtype) if bias else None
    return x, weight, b


def exact_linear(x, weight, bias):
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def check(got, reference, exact):
    assert not got.isnan().any()
    rounding = torch.finfo(exact.to(got.dtype).dtype).eps * exact.abs().max()
    band = 2 * ((reference.double() - exact).abs().max() + rounding)
    assert (got.double() - exact).abs().max() < band


def product_of_halves(y, activation):
    gate, up = y.chunk(2, dim=-1)
    return TORCH[activation](gate) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_linear(num_rows, config, dtype):
    from lightthinker.attention.triton.linear import _counters, skinny_linear

    if num_rows > 128 and config.block_n * config.block_k > 4096 and config.num_warps < 8:
        config = replace(config, block_k=32, num_warps=8)  # The other needs too much memory.
    for num_outputs, num_inputs, bias in ((4608, 3584, True), (1000, 1040, False), (70, 96, True)):
        tensors = case(num_rows, num_outputs, num_inputs, dtype, bias)
        got = skinny_linear(*tensors, config)
        check(got, F.linear(*tensors), exact_linear(*tensors))
        assert torch.equal(got, skinny_linear(*tensors, config))
        assert not _counters(got.device).any()


@pytest.mark.parametrize("activation", sorted(TORCH))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_gated(num_rows, dtype, activation):
    from lightthinker.attention.triton.linear import gated_linear, gated_product

    config = LinearConfig(block_k=64, num_warps=8, num_stages=3, splits=2)
    for half, num_inputs, bias in ((8960, 1536, False), (500, 1040, True)):
        x, weight, b = case(num_rows, 2 * half, num_inputs, dtype, bias)
        exact = product_of_halves(exact_linear(x, weight, b), activation)
        plain = product_of_halves(F.linear(x, weight, b), activation)
        check(gated_linear(x, weight, b, activation, config), plain, exact)
        check(gated_product(F.linear(x, weight, b), activation), plain, exact)


@pytest.mark.parametrize("pdl", [False, True])
def test_a_chain_replays_what_it_computes_eagerly(pdl):
    """Each reads what the one before wrote, in one graph: without a wait it would be stale."""
    from lightthinker.attention.triton.linear import gated_linear, skinny_linear

    config = LinearConfig(block_k=64, num_stages=3, splits=3, pdl=pdl, prefetched=128)
    layers = [
        (
            torch.randn(2 * 2048, 1024, device="cuda", dtype=torch.bfloat16) / 32,
            torch.randn(1024, 2048, device="cuda", dtype=torch.bfloat16) / 32,
        )
        for _ in range(12)
    ]

    def forward(x):
        for both, down in layers:
            x = x + skinny_linear(gated_linear(x, both, None, "silu", config), down, None, config)
            x = F.rms_norm(x, x.shape[-1:])
        return x

    x = torch.zeros(8, 1024, device="cuda", dtype=torch.bfloat16)
    forward(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = forward(x)
    plain = replace(config, pdl=False)
    for seed in range(20):
        torch.manual_seed(seed)
        x.copy_(torch.randn(8, 1024, device="cuda"))
        graph.replay()
        got = result.clone()
        expected = x.clone()
        for both, down in layers:
            expected = expected + skinny_linear(
                gated_linear(expected, both, None, "silu", plain), down, None, plain
            )
            torch.cuda.synchronize()
            expected = F.rms_norm(expected, expected.shape[-1:])
        assert torch.equal(got, expected)


class Layer(nn.Module):
    """Attention's projections and an MLP, as transformers' models have them."""

    def __init__(self, hidden, intermediate):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x):
        x = x + self.o_proj(self.q_proj(F.rms_norm(x, x.shape[-1:])))
        y = F.rms_norm(x, x.shape[-1:])
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


@pytest.mark.parametrize("shape", [(1536, 8960), (3584, 18_944)], ids=str)
@torch.no_grad()
def test_compiled_layers_with_our_matmuls_are_right_for_any_number_of_rows(shape):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layers = nn.Sequential(*(Layer(*shape) for _ in range(3))).cuda().bfloat16()
    exact = nn.Sequential(*(Layer(*shape) for _ in range(3))).cuda()
    exact.load_state_dict(layers.state_dict())
    fuse_projections(layers)
    function = torch.compile(layers, fullgraph=True, backend=compile_merged, dynamic=True)
    for num_rows in (2, 8, 32, 128, 256, 257, 700):
        x = torch.randn(1, num_rows, shape[0], device="cuda", dtype=torch.bfloat16)
        function(x)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = function(x)
        graph.replay()
        check(result, layers(x), exact(x.float()).double())


def test_every_setting_of_the_table_runs():
    from lightthinker.attention.triton.linear import gated_linear, skinny_linear

    for num_rows in (1, *NUM_ROWS):
        for rows, inputs, gated in (
            (37_888, 3584, True),
            (4608, 3584, False),
            (3584, 3584, False),
            (3584, 18_944, False),
            (152_064, 3584, False),
            (17_920, 1536, True),
            (2048, 1536, False),
            (1536, 1536, False),
            (1536, 8960, False),
            (151_936, 1536, False),
        ):
            config = linear_config(num_rows, rows, inputs, gated=gated)
            if config is None:
                continue
            x, weight, bias = case(num_rows, rows, inputs, torch.bfloat16)
            y = F.linear(x, weight, bias)
            if gated:
                got = gated_linear(x, weight, bias, "silu", config)
                expected = product_of_halves(y, "silu")
            else:
                got, expected = skinny_linear(x, weight, bias, config), y
            assert (got - expected).abs().max() < 0.02 * expected.abs().max()
