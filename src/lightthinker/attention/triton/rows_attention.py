"""Paged attention of single rows: decode, gist, continue and short-extend tokens alike.

A program computes one row, one KV head with all its query heads (padded to 16 for the tensor cores,
so that the group loads each key once), and one of `num_splits` pieces of the row's keys; a second
kernel combines the pieces (split-KV, as in Flash-Decoding). The number of splits depends on the
launch size alone, which lets a CUDA graph hold it.

Invariant: keys and values that a row does not see are not loaded, so whatever freed pages or unused
slots hold (NaN included) cannot reach the output. A row that sees nothing gets zeros.

Shapes: T rows, E launched rows, N slots, HQ query heads, HK KV heads, G = HQ / HK, DK key size, DV
value size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightthinker.attention.rows_metadata import RowField, RowsMetadata
from lightthinker.attention.triton.launch import (
    KernelConfig,
    next_power_of_two,
    num_multiprocessors,
    num_splits,
    rows_config,
)
from lightthinker.attention.triton.score import masked_log2_scores, slots_of, softmax_step

_SEQUENCE = tl.constexpr(int(RowField.SEQUENCE))
_LOWER = tl.constexpr(int(RowField.LOWER))
_UPPER = tl.constexpr(int(RowField.UPPER))
_EXCL_LO = tl.constexpr(int(RowField.EXCL_LO))
_EXCL_HI = tl.constexpr(int(RowField.EXCL_HI))
_TOKEN_INDEX = tl.constexpr(int(RowField.TOKEN_INDEX))
_LIVE_POSITION = tl.constexpr(int(RowField.LIVE_POSITION))
_LAUNCH = tl.constexpr(int(RowField.LAUNCH))


@triton.jit
def _rows_kernel(
    query,
    key_pool,
    value_pool,
    token_index_pool,
    rows,
    page_table,
    out,
    partial_out,
    partial_log2_sum,
    scale,
    softcap,
    rows_stride,
    page_table_stride,
    query_stride_t,
    query_stride_h,
    query_stride_d,
    key_stride_n,
    key_stride_h,
    value_stride_n,
    value_stride_h,
    out_stride_t,
    out_stride_h,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    KEY_DIM: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    entry = tl.program_id(0) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    split = tl.program_id(1)
    row = tl.load(rows + _LAUNCH * rows_stride + entry).to(tl.int64)
    field = rows + row
    lower = tl.load(field + _LOWER * rows_stride)
    upper = tl.load(field + _UPPER * rows_stride)
    excl_lo = tl.load(field + _EXCL_LO * rows_stride)
    excl_hi = tl.load(field + _EXCL_HI * rows_stride)
    oldest = 0
    if WINDOW > 0:
        # Original indices grow at least as fast as live positions, so whatever lies WINDOW live
        # tokens back is outside; what lies nearer is decided by its index.
        oldest = tl.load(field + _TOKEN_INDEX * rows_stride) - WINDOW + 1
        lower = tl.maximum(lower, tl.load(field + _LIVE_POSITION * rows_stride) - WINDOW + 1)
    page_table_line = (
        page_table + tl.load(field + _SEQUENCE * rows_stride).to(tl.int64) * page_table_stride
    )

    chunk = tl.cdiv(tl.cdiv(tl.maximum(upper - lower, 0), NUM_SPLITS), BLOCK_N) * BLOCK_N
    begin = lower + split * chunk
    end = tl.minimum(upper, begin + chunk)

    g = tl.arange(0, BLOCK_G)
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    n = tl.arange(0, BLOCK_N)
    head = kv_head * GROUP + g
    q = tl.load(
        query
        + row * query_stride_t
        + head[:, None] * query_stride_h
        + dk[None, :] * query_stride_d,
        mask=(g < GROUP)[:, None] & (dk < KEY_DIM)[None, :],
        other=0.0,
    )
    maximum = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    accumulated = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    for start in range(begin, end, BLOCK_N):
        position = start + n
        visible = (position < end) & ((position < excl_lo) | (position >= excl_hi))
        slot = slots_of(page_table_line, position, visible, PAGE_SIZE)
        if WINDOW > 0:
            visible &= tl.load(token_index_pool + slot, mask=visible, other=-1) >= oldest
        k = tl.load(
            key_pool + slot[:, None] * key_stride_n + kv_head * key_stride_h + dk[None, :],
            mask=visible[:, None] & (dk < KEY_DIM)[None, :],
            other=0.0,
        )
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = masked_log2_scores(products, visible[None, :], scale, softcap, HAS_SOFTCAP)
        weights, earlier, maximum, total = softmax_step(scores, maximum, total)
        v = tl.load(
            value_pool + slot[:, None] * value_stride_n + kv_head * value_stride_h + dv[None, :],
            mask=visible[:, None] & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        accumulated = accumulated * earlier[:, None]
        accumulated += tl.dot(weights.to(v.dtype), v, input_precision="ieee")

    divisor = tl.where(total > 0, total, 1.0)
    result = accumulated / divisor[:, None]
    mask = (g < GROUP)[:, None] & (dv < VALUE_DIM)[None, :]
    if NUM_SPLITS == 1:
        target = out + row * out_stride_t + head[:, None] * out_stride_h + dv[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)
    else:
        piece = (entry.to(tl.int64) * NUM_KV_HEADS * GROUP + head) * NUM_SPLITS + split
        log2_sum = tl.where(total > 0, maximum + tl.log2(divisor), float("-inf"))
        tl.store(partial_log2_sum + piece, log2_sum, mask=g < GROUP)
        target = partial_out + piece[:, None] * VALUE_DIM + dv[None, :]
        # A piece that saw nothing is never read by the combining kernel.
        tl.store(target, result, mask=mask & (total > 0)[:, None])


@triton.jit
def _combine_kernel(
    partial_out,
    partial_log2_sum,
    rows,
    out,
    rows_stride,
    out_stride_t,
    out_stride_h,
    NUM_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.load(rows + _LAUNCH * rows_stride + entry).to(tl.int64)
    piece = (entry * NUM_HEADS + head) * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
    dv = tl.arange(0, BLOCK_DV)
    log2_sum = tl.load(partial_log2_sum + piece)
    saw_something = log2_sum > float("-inf")
    maximum = tl.max(log2_sum, 0)
    weights = tl.exp2(log2_sum - tl.where(maximum > float("-inf"), maximum, 0.0))
    parts = tl.load(
        partial_out + piece[:, None] * VALUE_DIM + dv[None, :],
        mask=saw_something[:, None] & (dv < VALUE_DIM)[None, :],
        other=0.0,
    )
    total = tl.sum(weights, 0)
    result = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    target = out + row * out_stride_t + head * out_stride_h + dv
    tl.store(target, result.to(out.dtype.element_ty), mask=dv < VALUE_DIM)


def rows_attention(
    query_THD: torch.Tensor,
    key_pool_NHD: torch.Tensor,
    value_pool_NHD: torch.Tensor,
    token_index_N: torch.Tensor,
    metadata: RowsMetadata,
    out_THD: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None,
    window: int | None,
    splits: int | None = None,
    config: KernelConfig | None = None,
) -> None:
    """Attend the step's launched rows; other lines of `out_THD` stay as they are.

    Args:
        query_THD: Queries [T, HQ, DK], any strides.
        key_pool_NHD: The layer's key slots [N, HK, DK]; head elements are adjacent.
        value_pool_NHD: The layer's value slots [N, HK, DV]; likewise.
        token_index_N: int64, the original token index of what each slot holds.
        metadata: The step.
        out_THD: Written: [T, HQ, DV], head elements adjacent.
        scaling: Factor of q.k.
        softcap: Scores become `softcap * tanh(score / softcap)`.
        window: Only tokens less than `window` original indices back are seen.
        splits: Pieces of each row's keys, a power of two; by default from the launch size.
        config: Launch settings; by default from the table.
    """
    num_entries = metadata.num_launch_rows
    if not num_entries:
        return
    num_heads, key_dim = query_THD.shape[1:]
    num_kv_heads, value_dim = value_pool_NHD.shape[1:]
    device = query_THD.device
    head_dim = max(key_dim, value_dim)
    config = config or rows_config(head_dim, key_pool_NHD.element_size())
    if splits is None:
        splits = num_splits(num_entries, num_kv_heads, num_multiprocessors(device))
    num_pieces = num_entries * num_heads * splits if splits > 1 else 0
    partial_out = torch.empty(num_pieces * value_dim, dtype=torch.float32, device=device)
    partial_log2_sum = torch.empty(num_pieces, dtype=torch.float32, device=device)
    _rows_kernel[(num_entries * num_kv_heads, splits)](
        query_THD,
        key_pool_NHD,
        value_pool_NHD,
        token_index_N,
        metadata.rows,
        metadata.page_table,
        out_THD,
        partial_out,
        partial_log2_sum,
        scaling,
        softcap or 0.0,
        metadata.rows.stride(0),
        metadata.page_table.stride(0),
        *query_THD.stride(),
        *key_pool_NHD.stride()[:2],
        *value_pool_NHD.stride()[:2],
        *out_THD.stride()[:2],
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        BLOCK_G=max(16, next_power_of_two(num_heads // num_kv_heads)),
        KEY_DIM=key_dim,
        BLOCK_DK=max(16, next_power_of_two(key_dim)),
        VALUE_DIM=value_dim,
        BLOCK_DV=max(16, next_power_of_two(value_dim)),
        PAGE_SIZE=metadata.page_size,
        BLOCK_N=config.block_n,
        NUM_SPLITS=splits,
        WINDOW=window or 0,
        HAS_SOFTCAP=bool(softcap),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        _combine_kernel[(num_entries, num_heads)](
            partial_out,
            partial_log2_sum,
            metadata.rows,
            out_THD,
            metadata.rows.stride(0),
            *out_THD.stride()[:2],
            NUM_HEADS=num_heads,
            VALUE_DIM=value_dim,
            BLOCK_DV=next_power_of_two(value_dim),
            NUM_SPLITS=splits,
            num_warps=2,
        )
