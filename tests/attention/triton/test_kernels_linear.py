"""The decode step's matmuls in Triton's interpreter against float64.

What lies beside rows, columns and pieces is NaN. Half precision's `tl.dot` is wrong in the
interpreter; the GPU tests cover it.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F
from triton.runtime import interpreter

from lightthinker.attention.triton import linear as linear_module
from lightthinker.attention.triton.linear import (
    ACTIVATIONS,
    gated_linear,
    gated_product,
    skinny_linear,
)
from lightthinker.attention.triton.linear_launch import LinearConfig

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")

TORCH = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def among_nans(*shape, seed=0):
    """Random values inside a larger tensor of NaNs, inputs adjacent."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan)
    whole[1:-1] = torch.randn(*shape, generator=generator)
    return whole[1:-1]


@pytest.fixture(autouse=True)
def poisoned_pieces(monkeypatch):
    """Whatever a kernel allocates without filling it holds NaN."""
    empty = torch.empty
    monkeypatch.setattr(
        linear_module.torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan"))
    )


def config(**changes):
    return LinearConfig(**{"block_n": 64, "block_k": 32, "splits": 2, **changes})


def relative_error(got, exact):
    assert not got.isnan().any(), "what lies outside was read, or a result is missing"
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 5, 16, 40])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 128), (100, 96), (1, 40), (130, 33)])
def test_any_shape(num_rows, num_outputs, num_inputs, bias):
    x, weight = among_nans(num_rows, num_inputs), among_nans(num_outputs, num_inputs, seed=1)
    b = among_nans(num_outputs, seed=2) if bias else None
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    got = skinny_linear(x, weight, b, config())
    assert got.shape == exact.shape
    assert relative_error(got, exact) < 1e-6


def test_padded_rows_of_a_weight_are_not_read():
    x, whole = among_nans(3, 48), torch.full((70, 64), torch.nan)
    whole[:, :48] = among_nans(70, 48, seed=1)
    exact = x.double() @ whole[:, :48].double().T
    assert relative_error(skinny_linear(x, whole[:, :48], None, config()), exact) < 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_rows", "half", "num_inputs"), [(1, 64, 64), (5, 100, 72)])
def test_gate(num_rows, half, num_inputs, activation, bias):
    x, weight = among_nans(num_rows, num_inputs), among_nans(2 * half, num_inputs, seed=1)
    b = among_nans(2 * half, seed=2) if bias else None
    y = F.linear(x.double(), weight.double(), None if b is None else b.double())
    exact = TORCH[activation](y[:, :half]) * y[:, half:]
    got = gated_linear(x, weight, b, activation, config())
    assert got.shape == exact.shape
    assert relative_error(got, exact) < 1e-6


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("num_inputs", [32, 9 * 32])
def test_any_number_of_pieces_gives_the_result_and_leaves_the_counters_at_zero(gated, num_inputs):
    """From one piece to more than there are steps: some are empty."""
    x, weight = among_nans(2, num_inputs), among_nans(3 * 64 * 2, num_inputs, seed=1)
    y = x.double() @ weight.double().T
    exact = F.silu(y[:, :192]) * y[:, 192:] if gated else y
    for splits in (1, 2, 3, 4, 9, 16):
        cut = config(splits=splits)
        got = [
            gated_linear(x, weight, None, "silu", cut)
            if gated
            else skinny_linear(x, weight, None, cut)
            for _ in range(2)
        ]
        assert relative_error(got[0], exact) < 1e-6
        assert torch.equal(*got)
        assert not linear_module._counters(x.device).any()


def test_pieces_are_added_in_their_order_whoever_is_last(monkeypatch):
    """The interpreter runs the last program last; here it runs the first one last, too."""
    x, weight = among_nans(1, 6 * 32), among_nans(64, 6 * 32, seed=1)
    expected = skinny_linear(x, weight, None, config(splits=3))
    builder = interpreter.interpreter_builder
    set_grid_idx, order = builder.set_grid_idx, []

    def reversed_grid_idx(x, y, z):
        order.append(2 - x)
        set_grid_idx(2 - x, y, z)

    monkeypatch.setattr(builder, "set_grid_idx", reversed_grid_idx)
    assert torch.equal(skinny_linear(x, weight, None, config(splits=3)), expected)
    assert order == [2, 1, 0]


def test_no_rows():
    x, weight = torch.empty(0, 32), among_nans(64, 32)
    assert skinny_linear(x, weight, None, config()).shape == (0, 64)
    assert gated_linear(x, weight, None, "silu", config()).shape == (0, 32)
    assert gated_product(torch.empty(0, 64), "silu").shape == (0, 32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_product_of_halves(activation):
    for num_rows, half in itertools.product((1, 3), (5, 1024, 1030)):
        y = among_nans(num_rows, 2 * half)
        exact = TORCH[activation](y[:, :half].double()) * y[:, half:].double()
        assert relative_error(gated_product(y, activation), exact) < 1e-6
