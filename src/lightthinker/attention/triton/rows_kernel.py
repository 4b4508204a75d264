"""Paged attention of single rows: decode, gist, continue and short-extend tokens alike.

A program computes one row, one KV head with all its query heads (padded to 16 for the tensor cores,
so that the group loads each key once), and one of the pieces that the row's keys are cut into; the
last program of a row and KV head to finish adds the pieces, in their order (split-KV, as in
Flash-Decoding). The largest number of pieces depends on the launch size alone, which lets a CUDA
graph hold it; a row with fewer keys has fewer. The last piece also stores the row's own key and
value, and keys of the same step are read from where they come from, not from the pool.

Invariant: keys and values that a row does not see are not loaded, so whatever freed pages or unused
slots hold (NaN included) cannot reach the output. A row that sees nothing gets zeros. The counters
of arrivals are zero between launches.

Shapes: T rows, E launched rows, N slots, HQ query heads, HK KV heads, G = HQ / HK, DK key size, DV
value size.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightthinker.attention.rows_metadata import RowField
from lightthinker.attention.triton.score import (
    block_pages,
    block_slots,
    masked_log2_scores,
    softmax_step,
)

_SEQUENCE = tl.constexpr(int(RowField.SEQUENCE))
_LOWER = tl.constexpr(int(RowField.LOWER))
_UPPER = tl.constexpr(int(RowField.UPPER))
_EXCL_LO = tl.constexpr(int(RowField.EXCL_LO))
_EXCL_HI = tl.constexpr(int(RowField.EXCL_HI))
_TOKEN_INDEX = tl.constexpr(int(RowField.TOKEN_INDEX))
_LIVE_POSITION = tl.constexpr(int(RowField.LIVE_POSITION))
_SLOT = tl.constexpr(int(RowField.SLOT))
_LAUNCH = tl.constexpr(int(RowField.LAUNCH))
_FIRST_NEW = tl.constexpr(int(RowField.FIRST_NEW))
_NEW_KEYS_TOGETHER = tl.constexpr(16)
_PIECES_TOGETHER = tl.constexpr(8)


@triton.jit(
    do_not_specialize=["num_splits", "rows_stride", "page_table_stride"],
    do_not_specialize_on_alignment=["page_table"],
)
def rows_kernel(
    query,
    key,
    value,
    key_pool,
    value_pool,
    token_index_pool,
    rows,
    page_table,
    arrivals,
    out,
    partial_out,
    partial_log2_sum,
    scale,
    softcap,
    num_splits,
    rows_stride,
    page_table_stride,
    query_stride_t,
    query_stride_h,
    query_stride_d,
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
    BY_PAGE: tl.constexpr,
    AHEAD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    STORE: tl.constexpr,
    ORDERED: tl.constexpr,
    COMBINE_G: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend one row and KV head to one piece of the keys; see above."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row_and_head = tl.program_id(0)
    split = tl.program_id(1)
    kv_head = row_and_head % NUM_KV_HEADS
    # Loads that need nothing but the row come first and together: a short step is all latency.
    row = (row_and_head // NUM_KV_HEADS).to(tl.int64)
    if ORDERED:
        row = tl.load(rows + _LAUNCH * rows_stride + row).to(tl.int64)
    field = rows + row
    lower = tl.load(field + _LOWER * rows_stride)
    upper = tl.load(field + _UPPER * rows_stride)
    excl_lo = tl.load(field + _EXCL_LO * rows_stride)
    excl_hi = tl.load(field + _EXCL_HI * rows_stride)
    sequence = tl.load(field + _SEQUENCE * rows_stride).to(tl.int64)
    oldest = 0
    if WINDOW > 0 or STORE:
        live_position = tl.load(field + _LIVE_POSITION * rows_stride)
        token_index = tl.load(field + _TOKEN_INDEX * rows_stride)
    old_upper = upper
    if STORE:
        own_slot = tl.load(field + _SLOT * rows_stride).to(tl.int64)
        # What this step writes is read where it comes from: storing it needs no launch before.
        old_upper = tl.minimum(upper, tl.load(field + _FIRST_NEW * rows_stride))
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

    if WINDOW > 0:
        # Original indices grow at least as fast as live positions, so whatever lies WINDOW live
        # tokens back is outside; what lies nearer is decided by its index.
        oldest = token_index - WINDOW + 1
        lower = tl.maximum(lower, live_position - WINDOW + 1)
    first = lower // ALIGNMENT * ALIGNMENT
    num_keys = tl.maximum(old_upper - first, 0)
    piece_keys = tl.maximum(tl.cdiv(tl.cdiv(num_keys, num_splits), BLOCK_N), 1) * BLOCK_N
    num_pieces = tl.maximum(tl.cdiv(num_keys, piece_keys), 1)
    if split >= num_pieces:
        return
    begin = first + split * piece_keys
    end = tl.minimum(old_upper, begin + piece_keys)
    page_table_line = page_table + sequence * page_table_stride
    pages = block_pages(page_table_line, begin, end, PAGE_SIZE, BLOCK_N, BY_PAGE)

    maximum = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    accumulated = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    if STORE:  # noqa: SIM102  (Triton would compile both sides of an `and`)
        if split == num_pieces - 1:
            new_key = key + kv_head * key_stride_h
            new_value = value + kv_head * value_stride_h
            new = tl.arange(0, _NEW_KEYS_TOGETHER)
            for start in tl.range(
                tl.maximum(lower, old_upper), upper, _NEW_KEYS_TOGETHER, num_stages=1
            ):
                position = start + new
                new_row = row + position - live_position
                visible = (position < upper) & ((position < excl_lo) | (position >= excl_hi))
                if WINDOW > 0:
                    index = rows + _TOKEN_INDEX * rows_stride + new_row
                    visible &= tl.load(index, mask=visible, other=-1) >= oldest
                k = tl.load(
                    new_key + new_row[:, None] * key_stride_t + dk[None, :] * key_stride_d,
                    mask=visible[:, None] & (dk < KEY_DIM)[None, :],
                    other=0.0,
                )
                v = tl.load(
                    new_value + new_row[:, None] * value_stride_t + dv[None, :] * value_stride_d,
                    mask=visible[:, None] & (dv < VALUE_DIM)[None, :],
                    other=0.0,
                )
                accumulated, maximum, total = _attend_block(
                    q, k, v, visible, accumulated, maximum, total, scale, softcap, HAS_SOFTCAP
                )
            if own_slot >= 0:
                own_k = tl.load(new_key + row * key_stride_t + dk * key_stride_d, mask=dk < KEY_DIM)
                own_v = tl.load(
                    new_value + row * value_stride_t + dv * value_stride_d, mask=dv < VALUE_DIM
                )
                target = key_pool + own_slot * key_pool_stride_n + kv_head * key_pool_stride_h + dk
                tl.store(target, own_k, mask=dk < KEY_DIM)
                target = value_pool + own_slot * value_pool_stride_n
                tl.store(target + kv_head * value_pool_stride_h + dv, own_v, mask=dv < VALUE_DIM)
                if kv_head == 0:
                    tl.store(token_index_pool + own_slot, token_index.to(tl.int64))

    key_head = key_pool + kv_head * key_pool_stride_h + dk[None, :]
    value_head = value_pool + kv_head * value_pool_stride_h + dv[None, :]
    for start in range(begin, end, BLOCK_N):
        if not AHEAD:
            pages = block_pages(page_table_line, start, end, PAGE_SIZE, BLOCK_N, BY_PAGE)
        slot = block_slots(pages, start, PAGE_SIZE, BLOCK_N, BY_PAGE)
        position = start + n
        visible = (position < end) & ((position < excl_lo) | (position >= excl_hi))
        if ALIGNMENT > 1:
            visible &= position >= lower
        if WINDOW > 0:
            visible &= tl.load(token_index_pool + slot, mask=visible, other=-1) >= oldest
        k = tl.load(
            key_head + slot[:, None] * key_pool_stride_n,
            mask=visible[:, None] & (dk < KEY_DIM)[None, :],
            other=0.0,
        )
        v = tl.load(
            value_head + slot[:, None] * value_pool_stride_n,
            mask=visible[:, None] & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        accumulated, maximum, total = _attend_block(
            q, k, v, visible, accumulated, maximum, total, scale, softcap, HAS_SOFTCAP
        )
        if AHEAD:
            # The next block's keys do not wait for their place to be looked up.
            pages = block_pages(page_table_line, start + BLOCK_N, end, PAGE_SIZE, BLOCK_N, BY_PAGE)

    divisor = tl.where(total > 0, total, 1.0)
    result = accumulated / divisor[:, None]
    mask = (g < GROUP)[:, None] & (dv < VALUE_DIM)[None, :]
    if num_pieces == 1:
        target = out + row * out_stride_t + head[:, None] * out_stride_h + dv[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)
    else:
        first_line = row_and_head.to(tl.int64) * num_splits * GROUP
        line = first_line + split * GROUP + g
        log2_sum = tl.where(total > 0, maximum + tl.log2(divisor), float("-inf"))
        tl.store(partial_log2_sum + line, log2_sum, mask=g < GROUP)
        tl.store(partial_out + line[:, None] * VALUE_DIM + dv[None, :], result, mask=mask)
        # All threads' stores come before the count (barrier, then release); whoever counts
        # last sees every program's (acquire, then the barrier that hands the count around).
        tl.debug_barrier()
        num_before = tl.atomic_add(arrivals + row_and_head, 1, sem="acq_rel", scope="gpu")
        if num_before == num_pieces - 1:
            tl.store(arrivals + row_and_head, 0)
            _combine(
                partial_out,
                partial_log2_sum,
                first_line,
                num_pieces,
                out + row * out_stride_t + kv_head * GROUP * out_stride_h,
                out_stride_h,
                GROUP,
                COMBINE_G,
                VALUE_DIM,
                BLOCK_DV,
            )


@triton.jit
def _attend_block(
    q, k, v, visible, accumulated, maximum, total, scale, softcap, HAS_SOFTCAP: tl.constexpr
):
    """Attend to one block of keys; what is not visible was not loaded."""
    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    scores = masked_log2_scores(products, visible[None, :], scale, softcap, HAS_SOFTCAP)
    weights, earlier, maximum, total = softmax_step(scores, maximum, total)
    accumulated = accumulated * earlier[:, None]
    accumulated += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return accumulated, maximum, total


@triton.jit
def _combine(
    partial_out,
    partial_log2_sum,
    first_line,
    num_pieces,
    target,
    target_stride_h,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """Add the pieces of a row and KV head, in order; not from the L1 cache: others wrote them."""
    g = tl.arange(0, BLOCK_G)
    dv = tl.arange(0, BLOCK_DV)
    mask = (g < GROUP)[:, None] & (dv < VALUE_DIM)[None, :]
    maximum = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    accumulated = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    for start in range(0, num_pieces, _PIECES_TOGETHER):
        for i in tl.static_range(_PIECES_TOGETHER):
            line = (start + i) * GROUP + g
            is_piece = (g < GROUP) & (line < num_pieces * GROUP)
            log2_sum = tl.load(
                partial_log2_sum + first_line + line,
                mask=is_piece,
                other=float("-inf"),
                cache_modifier=".cg",
            )
            part = tl.load(
                partial_out + (first_line + line)[:, None] * VALUE_DIM + dv[None, :],
                mask=is_piece[:, None] & (dv < VALUE_DIM)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            new_maximum = tl.maximum(maximum, log2_sum)
            reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            weight = tl.exp2(log2_sum - reference)
            earlier = tl.exp2(maximum - reference)
            accumulated = accumulated * earlier[:, None] + part * weight[:, None]
            total = total * earlier + weight
            maximum = new_maximum
    result = accumulated / tl.where(total > 0, total, 1.0)[:, None]
    target += g[:, None] * target_stride_h + dv[None, :]
    tl.store(target, result.to(target.dtype.element_ty), mask=mask)
