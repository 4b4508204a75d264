"""Pieces that both attention kernels share: page-table lookup, score scaling, running softmax.

Scores are kept in units of log2, so that exp2 serves. The running softmax is that of online softmax
(Milakov and Gimelshein, arXiv 1805.02867), as used by FlashAttention.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """Return tanh to float32 accuracy; the plain quotient cancels near 0, where most scores are."""
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    far = tl.where(x < 0, -far, far)
    y = x * x
    near = 62.0 / 2835.0 + y * (-1382.0 / 155925.0)
    near = x * (1.0 + y * (-1.0 / 3.0 + y * (2.0 / 15.0 + y * (-17.0 / 315.0 + y * near))))
    return tl.where(y < 0.09, near, far)


@triton.jit
def masked_log2_scores(products, visible, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Scale (and cap) raw q.k products; what is not visible becomes -inf."""
    scores = products * scale
    if HAS_SOFTCAP:
        scores = softcap * tanh(scores / softcap)
    return tl.where(visible, scores * _LOG2_E, float("-inf"))


@triton.jit
def slots_of(page_table_line, position, mask, PAGE_SIZE: tl.constexpr):
    """Slots (int64) of the live tokens at these positions; slot 0 where masked."""
    page = tl.load(page_table_line + position // PAGE_SIZE, mask=mask, other=0).to(tl.int64)
    return tl.where(mask, page * PAGE_SIZE + position % PAGE_SIZE, 0)


@triton.jit
def block_pages(
    page_table_line,
    start,
    end,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_PAGE: tl.constexpr,
):
    """Pages of the BLOCK_N live tokens from `start`: one number per key, or (BY_PAGE) per page.

    By page, `start` begins a page, or a part of BLOCK_N tokens of a larger one. 0 from `end` on.
    """
    if not BY_PAGE:
        position = start + tl.arange(0, BLOCK_N)
    elif PAGE_SIZE < BLOCK_N:
        position = start + tl.arange(0, BLOCK_N // PAGE_SIZE) * PAGE_SIZE
    else:
        position = start
    return tl.load(page_table_line + position // PAGE_SIZE, mask=position < end, other=0)


@triton.jit
def block_slots(
    pages, start, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BY_PAGE: tl.constexpr
):
    """Slots (int64) of the keys whose pages `block_pages` returned."""
    first = pages.to(tl.int64) * PAGE_SIZE
    if not BY_PAGE:
        slot = first + (start + tl.arange(0, BLOCK_N)) % PAGE_SIZE
    elif PAGE_SIZE < BLOCK_N:
        slot = tl.reshape(first[:, None] + tl.arange(0, PAGE_SIZE)[None, :], [BLOCK_N])
    else:
        slot = first + start % PAGE_SIZE + tl.arange(0, BLOCK_N)
    return slot


@triton.jit
def softmax_step(scores, maximum, total):
    """Return weights of this block, the factor for earlier ones, and the new maximum and sum.

    A row that has seen nothing yet has maximum -inf; nothing is ever subtracted from it.
    """
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = tl.exp2(scores - reference[:, None])
    earlier = tl.exp2(maximum - reference)
    return weights, earlier, new_maximum, total * earlier + tl.sum(weights, 1)
