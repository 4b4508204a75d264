"""Paged attention of long runs of rows of one sequence (prefill chunks), tile by tile.

A program computes up to `TILE_ROWS` consecutive rows of one sequence for one query head
(FlashAttention-2's loop); the rows share every load of keys and values, and each row's own ranges
are applied to the scores. The loop runs from the smallest `lower` to the largest `upper` of the
tile.

Invariant: only positions below some row's `upper` are loaded. Those are live tokens of the
sequence, all written by now, so freed or unused slots cannot reach the output. A row that sees
nothing gets zeros. Shapes: as in `rows_attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightthinker.attention.rows_metadata import TILE_ROWS, RowField, RowsMetadata, TileField
from lightthinker.attention.triton.launch import KernelConfig, next_power_of_two, tile_config
from lightthinker.attention.triton.score import masked_log2_scores, slots_of, softmax_step

_SEQUENCE = tl.constexpr(int(RowField.SEQUENCE))
_LOWER = tl.constexpr(int(RowField.LOWER))
_UPPER = tl.constexpr(int(RowField.UPPER))
_EXCL_LO = tl.constexpr(int(RowField.EXCL_LO))
_EXCL_HI = tl.constexpr(int(RowField.EXCL_HI))
_TOKEN_INDEX = tl.constexpr(int(RowField.TOKEN_INDEX))
_LIVE_POSITION = tl.constexpr(int(RowField.LIVE_POSITION))
_FIRST_ROW = tl.constexpr(int(TileField.FIRST_ROW))
_NUM_ROWS = tl.constexpr(int(TileField.NUM_ROWS))
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _tile_kernel(
    query,
    key_pool,
    value_pool,
    token_index_pool,
    rows,
    tiles,
    page_table,
    out,
    scale,
    softcap,
    rows_stride,
    tiles_stride,
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
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    tile = tl.program_id(0) // NUM_HEADS
    head = tl.program_id(0) % NUM_HEADS
    kv_head = head // GROUP
    first = tl.load(tiles + _FIRST_ROW * tiles_stride + tile)
    num_rows = tl.load(tiles + _NUM_ROWS * tiles_stride + tile)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    real = m < num_rows
    row = (first + m).to(tl.int64)
    field = rows + row
    lower = tl.load(field + _LOWER * rows_stride, mask=real, other=_FAR)
    upper = tl.load(field + _UPPER * rows_stride, mask=real, other=0)
    excl_lo = tl.load(field + _EXCL_LO * rows_stride, mask=real, other=0)
    excl_hi = tl.load(field + _EXCL_HI * rows_stride, mask=real, other=0)
    oldest = tl.zeros([BLOCK_M], tl.int32)
    if WINDOW > 0:
        # As in the kernel for single rows: a bound that only saves loads.
        oldest = tl.load(field + _TOKEN_INDEX * rows_stride, mask=real, other=0) - WINDOW + 1
        own_position = tl.load(field + _LIVE_POSITION * rows_stride, mask=real, other=0)
        lower = tl.where(real, tl.maximum(lower, own_position - WINDOW + 1), _FAR)
    page_table_line = (
        page_table
        + tl.load(rows + _SEQUENCE * rows_stride + first).to(tl.int64) * page_table_stride
    )
    begin = tl.min(lower, 0)
    end = tl.max(upper, 0)

    q = tl.load(
        query
        + row[:, None] * query_stride_t
        + head * query_stride_h
        + dk[None, :] * query_stride_d,
        mask=real[:, None] & (dk < KEY_DIM)[None, :],
        other=0.0,
    )
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulated = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for start in range(begin, end, BLOCK_N):
        position = start + n
        live = position < end
        slot = slots_of(page_table_line, position, live, PAGE_SIZE)
        seen_by = (position[None, :] >= lower[:, None]) & (position[None, :] < upper[:, None])
        seen_by &= (position[None, :] < excl_lo[:, None]) | (position[None, :] >= excl_hi[:, None])
        if WINDOW > 0:
            index = tl.load(token_index_pool + slot, mask=live, other=-1)
            seen_by &= index[None, :] >= oldest[:, None]
        k = tl.load(
            key_pool + slot[:, None] * key_stride_n + kv_head * key_stride_h + dk[None, :],
            mask=live[:, None] & (dk < KEY_DIM)[None, :],
            other=0.0,
        )
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = masked_log2_scores(products, seen_by, scale, softcap, HAS_SOFTCAP)
        weights, earlier, maximum, total = softmax_step(scores, maximum, total)
        v = tl.load(
            value_pool + slot[:, None] * value_stride_n + kv_head * value_stride_h + dv[None, :],
            mask=live[:, None] & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        accumulated = accumulated * earlier[:, None]
        accumulated += tl.dot(weights.to(v.dtype), v, input_precision="ieee")

    result = accumulated / tl.where(total > 0, total, 1.0)[:, None]
    target = out + row[:, None] * out_stride_t + head * out_stride_h + dv[None, :]
    mask = real[:, None] & (dv < VALUE_DIM)[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=mask)


def tiled_attention(
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
    config: KernelConfig | None = None,
) -> None:
    """Attend the rows of the step's tiles; other lines of `out_THD` stay as they are.

    Args: as in `rows_attention`, which computes the remaining rows.
    """
    if not metadata.num_tiles:
        return
    num_heads, key_dim = query_THD.shape[1:]
    num_kv_heads, value_dim = value_pool_NHD.shape[1:]
    config = config or tile_config(max(key_dim, value_dim), key_pool_NHD.element_size())
    _tile_kernel[(metadata.num_tiles * num_heads,)](
        query_THD,
        key_pool_NHD,
        value_pool_NHD,
        token_index_N,
        metadata.rows,
        metadata.tiles,
        metadata.page_table,
        out_THD,
        scaling,
        softcap or 0.0,
        metadata.rows.stride(0),
        metadata.tiles.stride(0),
        metadata.page_table.stride(0),
        *query_THD.stride(),
        *key_pool_NHD.stride()[:2],
        *value_pool_NHD.stride()[:2],
        *out_THD.stride()[:2],
        NUM_HEADS=num_heads,
        GROUP=num_heads // num_kv_heads,
        KEY_DIM=key_dim,
        BLOCK_DK=max(16, next_power_of_two(key_dim)),
        VALUE_DIM=value_dim,
        BLOCK_DV=max(16, next_power_of_two(value_dim)),
        PAGE_SIZE=metadata.page_size,
        BLOCK_M=TILE_ROWS,
        BLOCK_N=config.block_n,
        WINDOW=window or 0,
        HAS_SOFTCAP=bool(softcap),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
