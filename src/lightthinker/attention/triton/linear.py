"""Matmuls of a decode step: few rows, so that reading the weights is all that takes time.

A program computes one tile: `BLOCK_N` rows of the weight with all rows of the step, the weight as
the left operand, since Hopper's tensor cores want 64 rows there and take any number on the right.
Tiles are small, so that the GPU's scheduler keeps all multiprocessors reading until the end. Where
there are too few, each is cut along K into pieces: the program of a tile that arrives last adds
them in their order, so the result does not depend on who was last, and sets the tile's counter to
zero for the next launch or replay of a CUDA graph.

With a gate, a tile is half gate and half up, and the result `act(gate) * up`. Sums are float32;
results are rounded where torch rounds them: after each matmul with its bias, after the activation,
after the product.

Invariant: nothing that another kernel writes is touched before `gdc_wait` (weights never change),
and dependents are launched only after it: Inductor's kernels read what was written before the
kernel ahead of them without waiting. Launches that overlap otherwise, on two streams of one device,
would share counters: there must be none.

Shapes: T rows, K inputs, N outputs.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from lightthinker.attention.triton.launch import (
    next_power_of_two,
    pdl_options,
    pdl_supported,
)
from lightthinker.attention.triton.linear_launch import MAX_TILES, LinearConfig

FIRST_WAVE = tl.constexpr(256)
"""Programs that may start before the kernel ahead has ended."""

PRODUCT_BLOCK = 1024

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


@triton.jit
def _prefetch(rows, start, K, AMOUNT: tl.constexpr):
    """Ask for a few hundred bytes of each row to be brought into the L2 cache."""
    num_bytes = tl.minimum(K - start, AMOUNT) * 2
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [rows + start, tl.zeros_like(rows.to(tl.int64)).to(tl.int32) + num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        result = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh z) / 2 = sigmoid(2 z)
        result = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return result


@triton.jit(do_not_specialize=["T"])
def _linear_kernel(
    x,
    weight,
    bias,
    out,
    pieces,
    counters,
    T,
    N,
    K,
    weight_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPLITS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PDL: tl.constexpr,
    PREFETCHED: tl.constexpr,
):
    tile = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    num_steps = tl.cdiv(K, BLOCK_K)
    first = split * num_steps // SPLITS
    last = (split + 1) * num_steps // SPLITS

    n = tl.arange(0, BLOCK_N)
    t = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    # Beyond the last output that one is computed again: loads need no mask, and no one stores it.
    if GATED:
        HALF: tl.constexpr = BLOCK_N // 2
        output = tile * HALF + tl.arange(0, HALF)
        row = tl.minimum(tile * HALF + n % HALF, N - 1) + n // HALF * N
    else:
        output = tile * BLOCK_N + n
        row = tl.minimum(output, N - 1)
    weight_rows = weight + row.to(tl.int64) * weight_stride
    if PDL:
        if PREFETCHED > 0:  # noqa: SIM102
            if tl.program_id(0) < FIRST_WAVE:
                _prefetch(weight_rows, first * BLOCK_K, K, PREFETCHED)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    x_rows = x + t[:, None] * K
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(first, last):
        column = step * BLOCK_K + k
        if EVEN_K:
            a = tl.load(x_rows + column[None, :], mask=(t < T)[:, None], other=0.0)
            w = tl.load(weight_rows[:, None] + column[None, :])
        else:
            inside = (column < K)[None, :]
            a = tl.load(x_rows + column[None, :], mask=(t < T)[:, None] & inside, other=0.0)
            w = tl.load(weight_rows[:, None] + column[None, :], mask=inside, other=0.0)
        acc = tl.dot(w, tl.trans(a), acc, input_precision="ieee")

    is_last = True
    if SPLITS > 1:
        real = (t < T)[None, :] & (n < BLOCK_N)[:, None]
        piece = pieces + (tile * SPLITS * T + t[None, :]).to(tl.int64) * BLOCK_N + n[:, None]
        tl.store(piece + split * T * BLOCK_N, acc, mask=real)
        tl.debug_barrier()  # All threads' pieces are written before one of them says so.
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
        is_last = arrived == SPLITS - 1
        if is_last:
            acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
            for other in tl.static_range(SPLITS):
                acc += tl.load(
                    piece + other * T * BLOCK_N, mask=real, other=0.0, cache_modifier=".cg"
                )
            tl.store(counters + tile, 0)

    if is_last:
        dtype = out.dtype.element_ty
        if HAS_BIAS:
            acc += tl.load(bias + row).to(tl.float32)[:, None]
        result = acc.to(dtype)
        if GATED:
            gate, up = tl.split(tl.permute(tl.reshape(result, [2, HALF, BLOCK_T]), [1, 2, 0]))
            activated = _activate(gate.to(tl.float32), ACTIVATION).to(dtype)
            result = (activated.to(tl.float32) * up.to(tl.float32)).to(dtype)
        target = out + t[None, :].to(tl.int64) * N + output[:, None]
        tl.store(target, result, mask=(output < N)[:, None] & (t < T)[None, :])


@triton.jit
def _product_kernel(
    y, out, num_outputs, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_outputs
    gate = tl.load(y + 2 * row * num_outputs + column, mask=inside)
    up = tl.load(y + (2 * row + 1) * num_outputs + column, mask=inside)
    activated = _activate(gate.to(tl.float32), ACTIVATION).to(gate.dtype)
    product = (activated.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
    tl.store(out + row * num_outputs + column, product, mask=inside)


def gated_product(y_TN: torch.Tensor, activation: str) -> torch.Tensor:
    """Return `act(gate) * up` [T, N / 2] of two halves, in one kernel.

    Args:
        y_TN: The gate's outputs, then the other projection's; contiguous.
        activation: One of `ACTIVATIONS`.
    """
    assert y_TN.is_contiguous()
    num_rows, num_outputs = y_TN.shape[0], y_TN.shape[1] // 2
    out = y_TN.new_empty(num_rows, num_outputs)
    if not num_rows:
        return out
    pdl = pdl_supported(y_TN.device)
    _product_kernel[(triton.cdiv(num_outputs, PRODUCT_BLOCK), num_rows)](
        y_TN,
        out,
        num_outputs,
        ACTIVATION=activation,
        BLOCK=PRODUCT_BLOCK,
        PDL=pdl,
        num_warps=4,
        **pdl_options(pdl),
    )
    return out


@cache
def _counters(device: torch.device) -> torch.Tensor:
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


def skinny_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    config: LinearConfig,
) -> torch.Tensor:
    """Return `x @ weight.T + bias`, as `F.linear` does, in x's dtype [T, N].

    The first call on a device makes its counters, so it must not be captured in a CUDA graph.

    Args:
        x_TK: Few rows, contiguous.
        weight_NK: Of the same dtype; inputs are adjacent.
        bias_N: Likewise, or None.
        config: How to launch.
    """
    return _launch(x_TK, weight_NK, bias_N, config, activation=None)


def gated_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    activation: str,
    config: LinearConfig,
) -> torch.Tensor:
    """Return `act(gate) * up` [T, N / 2] of a linear's two halves, the gate's rows first.

    Args:
        x_TK: As for `skinny_linear`.
        weight_NK: The gate's rows, then as many of the other projection's.
        bias_N: Likewise, or None.
        activation: One of `ACTIVATIONS`: torch's silu, and gelu with and without tanh.
        config: How to launch.
    """
    assert activation in ACTIVATIONS, activation
    return _launch(x_TK, weight_NK, bias_N, config, activation=activation)


def _launch(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    config: LinearConfig,
    *,
    activation: str | None,
) -> torch.Tensor:
    num_rows, num_inputs = x_TK.shape
    gated = activation is not None
    num_outputs = weight_NK.shape[0] // (2 if gated else 1)
    device = x_TK.device
    assert x_TK.is_contiguous()
    assert weight_NK.stride(1) == 1
    out = x_TK.new_empty(num_rows, num_outputs)
    if not num_rows:
        return out
    num_tiles = triton.cdiv(num_outputs * (2 if gated else 1), config.block_n)
    assert num_tiles <= MAX_TILES
    num_pieces = num_tiles * config.splits if config.splits > 1 else 0
    pieces = torch.empty(num_pieces * num_rows * config.block_n, dtype=torch.float32, device=device)
    pdl = config.pdl and pdl_supported(device)
    _linear_kernel[(num_tiles * config.splits,)](
        x_TK,
        weight_NK,
        bias_N,
        out,
        pieces,
        _counters(device),
        num_rows,
        num_outputs,
        num_inputs,
        weight_NK.stride(0),
        BLOCK_T=max(16, next_power_of_two(num_rows)),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        EVEN_K=num_inputs % config.block_k == 0,
        SPLITS=config.splits,
        GATED=gated,
        HAS_BIAS=bias_N is not None,
        ACTIVATION=activation,
        PDL=pdl,
        PREFETCHED=config.prefetched,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **pdl_options(pdl),
    )
    return out
