"""Add the attention that one row of each sequence pays to the sums of the tokens it sees.

What `attention.observation` does in PyTorch for any number of rows, in one launch a layer for the
case of every decode step. A program takes one sequence and one KV head, reads its keys twice (once
for the softmax's denominator) and keeps float32 throughout. Shapes: B sequences, L live tokens, N
slots, H KV heads, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightthinker.attention.batch import Grouping
from lightthinker.attention.triton.launch import next_power_of_two
from lightthinker.attention.triton.score import masked_log2_scores

BLOCK_KEYS = 64 * 128
"""Elements of keys at a time, in float32: more would not fit the shared memory of every GPU."""

MIN_DOT_SIZE = 16


@triton.jit
def _scores(
    q, keys, slots_line, visible_line, start, num_live, key_stride_n, scale, softcap,
    DIM: tl.constexpr, GROUP: tl.constexpr, MAX_LOGIT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return the next tokens' log2 scores for each query head, their slots and who is seen."""
    n = start + tl.arange(0, BLOCK_N)
    seen = tl.load(visible_line + n, mask=n < num_live, other=0) != 0
    slot = tl.load(slots_line + n, mask=n < num_live, other=0)
    d = tl.arange(0, q.shape[1])
    wanted = seen[:, None] & (d < DIM)[None, :]
    k = tl.load(keys + slot[:, None] * key_stride_n + d[None, :], mask=wanted, other=0.0)
    products = tl.dot(q, tl.trans(k.to(tl.float32)), input_precision="ieee")
    x = masked_log2_scores(products, seen[None, :], scale, softcap, HAS_SOFTCAP)
    if MAX_LOGIT:
        real = (tl.arange(0, q.shape[0]) < GROUP)[:, None]
        largest = tl.max(tl.where(real, x, float("-inf")), 0)
        x = tl.zeros_like(x) + largest[None, :]
    return x, slot, seen


@triton.jit
def _observe_kernel(
    query,
    key_pool,
    sums,
    query_rows,
    slots,
    visible,
    num_live,
    scale,
    softcap,
    factor,
    query_stride_t,
    query_stride_h,
    key_pool_stride_n,
    key_pool_stride_h,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MAX_LOGIT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Observe one sequence's row by one KV head."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    g, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    row = tl.load(query_rows + sequence)
    heads = query + row * query_stride_t + (head * GROUP + g)[:, None] * query_stride_h
    real = (g < GROUP)[:, None]
    q = tl.load(heads + d[None, :], mask=real & (d < DIM)[None, :], other=0.0).to(tl.float32)
    keys = key_pool + head * key_pool_stride_h
    slots_line = slots + sequence * num_live
    visible_line = visible + sequence * num_live
    maximum = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    for start in tl.range(0, num_live, BLOCK_N):
        x, slot, seen = _scores(
            q, keys, slots_line, visible_line, start, num_live, key_pool_stride_n, scale, softcap,
            DIM, GROUP, MAX_LOGIT, HAS_SOFTCAP, BLOCK_N,
        )  # fmt: skip
        larger = tl.maximum(maximum, tl.max(x, 1))
        finite = tl.where(larger > float("-inf"), larger, 0.0)
        total = total * tl.exp2(maximum - finite) + tl.sum(tl.exp2(x - finite[:, None]), 1)
        maximum = larger
    finite = tl.where(maximum > float("-inf"), maximum, 0.0)
    share = tl.where(total > 0.0, factor / total, 0.0)
    for start in tl.range(0, num_live, BLOCK_N):
        x, slot, seen = _scores(
            q, keys, slots_line, visible_line, start, num_live, key_pool_stride_n, scale, softcap,
            DIM, GROUP, MAX_LOGIT, HAS_SOFTCAP, BLOCK_N,
        )  # fmt: skip
        paid = tl.exp2(x - finite[:, None]) * share[:, None]
        received = tl.sum(tl.where(real, paid, 0.0), 0)
        place = sums + slot * NUM_HEADS + head
        before = tl.load(place, mask=seen, other=0.0)
        tl.debug_barrier()
        tl.store(place, before + received, mask=seen)


def block_keys(block_d: int) -> int:
    """Return how many keys are read together."""
    return min(64, max(MIN_DOT_SIZE, BLOCK_KEYS // block_d))


def observe_rows(
    query_THD: torch.Tensor,
    query_rows_B: torch.Tensor,
    slots_BL: torch.Tensor,
    visible_BL: torch.Tensor,
    key_pool_NHD: torch.Tensor,
    sums_NH: torch.Tensor,
    *,
    grouping: Grouping,
    scaling: float,
    softcap: float | None,
) -> None:
    """Add each sequence's attention probabilities to `sums_NH`, grouped as a policy wants them.

    Args:
        query_THD: Queries of the step, by query head; head elements are adjacent.
        query_rows_B: int64, each sequence's row among them.
        slots_BL: int64, slots of its live tokens, padded with any slots; no two sequences share
            one that both see.
        visible_BL: bool, which of them the row sees.
        key_pool_NHD: The layer's keys, this step's among them; head elements are adjacent.
        sums_NH: float32, added to.
        grouping: How the query heads of a KV head become one.
        scaling: Of the products.
        softcap: Of the logits.
    """
    num_heads, dim = key_pool_NHD.shape[1:]
    group = query_THD.shape[1] // num_heads
    assert query_THD.stride(2) == key_pool_NHD.stride(2) == 1
    assert sums_NH.is_contiguous()
    assert sums_NH.dtype == torch.float32
    num_sequences, num_live = slots_BL.shape
    block_d = max(MIN_DOT_SIZE, next_power_of_two(dim))
    _observe_kernel[(num_sequences, num_heads)](
        query_THD,
        key_pool_NHD,
        sums_NH,
        query_rows_B,
        slots_BL.contiguous(),
        visible_BL.contiguous(),
        num_live,
        scaling,
        softcap or 0.0,
        1.0 if grouping == "sum" else 1.0 / group,
        *query_THD.stride()[:2],
        *key_pool_NHD.stride()[:2],
        NUM_HEADS=num_heads,
        GROUP=group,
        BLOCK_G=max(MIN_DOT_SIZE, next_power_of_two(group)),
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_N=block_keys(block_d),
        MAX_LOGIT=grouping == "max_logit",
        HAS_SOFTCAP=softcap is not None,
        num_warps=4,
    )
