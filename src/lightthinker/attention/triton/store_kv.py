"""Write a step's keys and values (and token indices) into the KV pool's slots.

Invariant: a row with slot -1 (padding) writes nothing; no two rows of a step share a slot, so the
order of writes does not matter. Every layer's launch writes the rows' token indices too: the value
is the same each time, and it costs eight bytes a row.

Shapes: T rows, N slots, H KV heads, DK key size, DV value size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightthinker.attention.rows_metadata import RowField, RowsMetadata
from lightthinker.attention.triton.launch import next_power_of_two, pdl_options, pdl_supported

_SLOT = tl.constexpr(int(RowField.SLOT))
_TOKEN_INDEX = tl.constexpr(int(RowField.TOKEN_INDEX))


@triton.jit(do_not_specialize=["rows_stride"])
def _store_kv_kernel(
    key,
    value,
    key_pool,
    value_pool,
    token_index_pool,
    rows,
    rows_stride,
    key_stride_t,
    key_stride_h,
    key_stride_d,
    value_stride_t,
    value_stride_h,
    value_stride_d,
    key_pool_stride_n,
    key_pool_stride_h,
    value_pool_stride_n,
    value_pool_stride_h,
    NUM_HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    KEY_DIM: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows + _SLOT * rows_stride + row).to(tl.int64)
    if slot >= 0:
        head = tl.arange(0, BLOCK_H)[:, None]
        dk = tl.arange(0, BLOCK_DK)[None, :]
        mask = (head < NUM_HEADS) & (dk < KEY_DIM)
        source = key + row * key_stride_t + head * key_stride_h + dk * key_stride_d
        target = key_pool + slot * key_pool_stride_n + head * key_pool_stride_h + dk
        tl.store(target, tl.load(source, mask=mask), mask=mask)
        dv = tl.arange(0, BLOCK_DV)[None, :]
        mask = (head < NUM_HEADS) & (dv < VALUE_DIM)
        source = value + row * value_stride_t + head * value_stride_h + dv * value_stride_d
        target = value_pool + slot * value_pool_stride_n + head * value_pool_stride_h + dv
        tl.store(target, tl.load(source, mask=mask), mask=mask)
        index = tl.load(rows + _TOKEN_INDEX * rows_stride + row)
        tl.store(token_index_pool + slot, index.to(tl.int64))


def store_kv(
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    key_pool_NHD: torch.Tensor,
    value_pool_NHD: torch.Tensor,
    token_index_N: torch.Tensor,
    metadata: RowsMetadata,
    *,
    pdl: bool | None = None,
) -> None:
    """Store one layer's keys and values.

    Args:
        key_THD: Keys after RoPE, any strides.
        value_THD: Values, any strides.
        key_pool_NHD: The layer's key slots; head elements are adjacent.
        value_pool_NHD: The layer's value slots.
        token_index_N: int64, the original token index of what each slot holds.
        metadata: The step; its first T rows belong to the keys.
        pdl: Programmatic dependent launch; by default where the device can.
    """
    num_rows, num_heads, key_dim = key_THD.shape
    value_dim = value_THD.shape[2]
    assert num_rows <= metadata.capacity.max_rows, (num_rows, metadata.capacity)
    assert key_pool_NHD.stride(2) == value_pool_NHD.stride(2) == 1
    if not num_rows:
        return
    if pdl is None:
        pdl = pdl_supported(key_THD.device)
    _store_kv_kernel[(num_rows,)](
        key_THD,
        value_THD,
        key_pool_NHD,
        value_pool_NHD,
        token_index_N,
        metadata.rows,
        metadata.rows.stride(0),
        *key_THD.stride(),
        *value_THD.stride(),
        *key_pool_NHD.stride()[:2],
        *value_pool_NHD.stride()[:2],
        NUM_HEADS=num_heads,
        BLOCK_H=next_power_of_two(num_heads),
        KEY_DIM=key_dim,
        BLOCK_DK=next_power_of_two(key_dim),
        VALUE_DIM=value_dim,
        BLOCK_DV=next_power_of_two(value_dim),
        PDL=pdl,
        num_warps=4,
        **pdl_options(pdl),
    )
