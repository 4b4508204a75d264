"""Matmuls of a decode step: few rows, so that reading the weights is all that takes time.

A tile is `BLOCK_N` outputs of all rows, a step `BLOCK_K` inputs of a tile. All steps of all tiles,
in order, are cut into one equal run for each program (stream-K, Osama et al. 2023), which gives
every multiprocessor the same number of bytes to read whatever the shape. A tile that is cut has
pieces: each program writes its own, and the one that arrives last adds them in their order, so the
result does not depend on who was last. The tile's counter is zero again afterwards, for the next
launch or replay of a CUDA graph.

With a gate, a program computes both halves of a tile, and `act(gate) * up` of it. Sums are float32;
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
from triton.tools.tensor_descriptor import TensorDescriptor

from lightthinker.attention.triton.launch import (
    next_power_of_two,
    num_multiprocessors,
    pdl_options,
    pdl_supported,
)
from lightthinker.attention.triton.linear_launch import MAX_TILES, LinearConfig

PREFETCHED = 512
"""Inputs of each of a program's first weight rows that are asked for before `gdc_wait`."""

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
    weight_blocks,
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
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TMA: tl.constexpr,
    PDL: tl.constexpr,
    PREFETCHED: tl.constexpr,
):
    HALVES: tl.constexpr = 2 if GATED else 1
    PIECE: tl.constexpr = BLOCK_N * BLOCK_T
    program = tl.program_id(0)
    num_programs = tl.num_programs(0)
    num_steps = tl.cdiv(K, BLOCK_K)
    total = tl.cdiv(N, BLOCK_N) * num_steps
    own_begin = program * total // num_programs
    end = (program + 1) * total // num_programs

    n = tl.arange(0, BLOCK_N)
    t = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    dtype = out.dtype.element_ty
    if PDL:
        row = tl.minimum(own_begin // num_steps * BLOCK_N + n, N - 1).to(tl.int64)
        start = own_begin % num_steps * BLOCK_K
        _prefetch(weight + row * weight_stride, start, K, PREFETCHED)
        if GATED:
            _prefetch(weight + (row + N) * weight_stride, start, K, PREFETCHED)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    begin = own_begin
    while begin < end:
        tile = begin // num_steps
        first = begin % num_steps
        last = tl.minimum(num_steps, first + end - begin)
        output = tile * BLOCK_N + n
        # Beyond the last row that one is read again: loads need no mask, and no one stores it.
        row = tl.minimum(output, N - 1).to(tl.int64)
        weight_rows = weight + row[:, None] * weight_stride
        up_rows = weight_rows + N.to(tl.int64) * weight_stride
        x_rows = x + t[:, None] * K
        acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        acc_up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        for step in range(first, last):
            column = step * BLOCK_K + k
            if TMA:
                inside = (column < K)[None, :]
                a = tl.load(x_rows + column[None, :], mask=(t < T)[:, None] & inside, other=0.0)
                w = weight_blocks.load([tile * BLOCK_N, step * BLOCK_K])
            elif EVEN_K:
                a = tl.load(x_rows + column[None, :], mask=(t < T)[:, None], other=0.0)
                w = tl.load(weight_rows + column[None, :], eviction_policy="evict_first")
            else:
                inside = (column < K)[None, :]
                a = tl.load(x_rows + column[None, :], mask=(t < T)[:, None] & inside, other=0.0)
                w = tl.load(
                    weight_rows + column[None, :],
                    mask=inside,
                    other=0.0,
                    eviction_policy="evict_first",
                )
            acc = tl.dot(w, tl.trans(a), acc, input_precision="ieee")
            if GATED:
                if TMA:
                    w_up = weight_blocks.load([N + tile * BLOCK_N, step * BLOCK_K])
                elif EVEN_K:
                    w_up = tl.load(up_rows + column[None, :], eviction_policy="evict_first")
                else:
                    w_up = tl.load(
                        up_rows + column[None, :],
                        mask=(column < K)[None, :],
                        other=0.0,
                        eviction_policy="evict_first",
                    )
                acc_up = tl.dot(w_up, tl.trans(a), acc_up, input_precision="ieee")

        is_last = True
        if last - first < num_steps:
            # The programs that hold the tile's first and last step.
            first_program = ((tile * num_steps + 1) * num_programs - 1) // total
            last_program = ((tile + 1) * num_steps * num_programs - 1) // total
            place = n[:, None] * BLOCK_T + t[None, :]
            # A program has two pieces at most, of its first and of its last tile.
            slot = 2 * program + (begin > own_begin).to(tl.int32)
            piece = pieces + slot.to(tl.int64) * (HALVES * PIECE) + place
            tl.store(piece, acc)
            if GATED:
                tl.store(piece + PIECE, acc_up)
            tl.debug_barrier()  # All threads' pieces are written before one of them says so.
            arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
            is_last = arrived == last_program - first_program
            if is_last:
                acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
                acc_up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
                for other in range(first_program, last_program + 1):
                    is_second = (other * total // num_programs) // num_steps < tile
                    slot = 2 * other + is_second.to(tl.int32)
                    piece = pieces + slot.to(tl.int64) * (HALVES * PIECE) + place
                    acc += tl.load(piece, cache_modifier=".cg")
                    if GATED:
                        acc_up += tl.load(piece + PIECE, cache_modifier=".cg")
                tl.store(counters + tile, 0)

        if is_last:
            if HAS_BIAS:
                acc += tl.load(bias + row).to(tl.float32)[:, None]
            if GATED:
                if HAS_BIAS:
                    acc_up += tl.load(bias + N + row).to(tl.float32)[:, None]
                gate = acc.to(dtype).to(tl.float32)
                activated = _activate(gate, ACTIVATION).to(dtype).to(tl.float32)
                result = (activated * acc_up.to(dtype).to(tl.float32)).to(dtype)
            else:
                result = acc.to(dtype)
            target = out + t[None, :].to(tl.int64) * N + output[:, None]
            tl.store(target, result, mask=(output < N)[:, None] & (t < T)[None, :])
        begin += last - first


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
        x_TK: At most 256 rows, contiguous.
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
        config: How to launch; outputs are counted after the gate.
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
    halves = 1 if activation is None else 2
    num_outputs = weight_NK.shape[0] // halves
    device = x_TK.device
    assert x_TK.is_contiguous()
    assert weight_NK.stride(1) == 1
    out = x_TK.new_empty(num_rows, num_outputs)
    if not num_rows:
        return out
    block_t = max(16, next_power_of_two(num_rows))
    num_tiles = -(-num_outputs // config.block_n)
    num_programs = config.programs(num_outputs, num_inputs, num_multiprocessors(device))
    num_steps = -(-num_inputs // config.block_k)
    assert num_tiles <= MAX_TILES
    assert num_tiles * num_steps * (num_programs + 1) < 2**31
    pieces = torch.empty(
        2 * num_programs * halves * config.block_n * block_t if num_programs != num_tiles else 0,
        dtype=torch.float32,
        device=device,
    )
    pdl = config.pdl and pdl_supported(device)
    _linear_kernel[(num_programs,)](
        x_TK,
        weight_NK,
        TensorDescriptor.from_tensor(weight_NK, [config.block_n, config.block_k])
        if config.tma
        else None,
        bias_N,
        out,
        pieces,
        _counters(device),
        num_rows,
        num_outputs,
        num_inputs,
        weight_NK.stride(0),
        BLOCK_T=block_t,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        EVEN_K=num_inputs % config.block_k == 0,
        GATED=activation is not None,
        HAS_BIAS=bias_N is not None,
        ACTIVATION=activation,
        TMA=config.tma,
        PDL=pdl,
        PREFETCHED=PREFETCHED,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **pdl_options(pdl),
    )
    return out
