"""The exact cut among a row's logits, by k-ary search over the order of float32 bit patterns.

One program reads its values again and again, each time counting (or weighing) what lies above a few
pivots, until one candidate is left between the bounds: exact, ties kept together. The values are a
short list, or the whole vocabulary; which of them, and the bounds to begin with, is up to
`sampling_cut`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightthinker.attention.triton.sampling_logits import order_of, scaled_logits


@triton.jit
def _values(
    source, seen_row, start, length, penalty, temperature,
    BLOCK: tl.constexpr, VOCAB: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Return a block of values, and which of them exist."""
    i = start + tl.arange(0, BLOCK)
    if LISTED:
        x = tl.load(source + i, mask=i < length, other=float("-inf"))
    else:
        x = scaled_logits(source, seen_row, i, VOCAB, penalty, temperature)
    return x, i < length


@triton.jit
def extent(source, length, BLOCK: tl.constexpr):
    """Return the least and the greatest order in a list."""
    least = tl.full([BLOCK], 2**31 - 1, tl.int32)
    greatest = tl.full([BLOCK], -(2**31), tl.int32)
    for start in tl.range(0, length, BLOCK):
        x, inside = _values(source, source, start, length, 1.0, 1.0, BLOCK, 1, True)
        least = tl.minimum(least, tl.where(inside, order_of(x), least))
        greatest = tl.maximum(greatest, tl.where(inside, order_of(x), greatest))
    return tl.min(least, 0).to(tl.int64), tl.max(greatest, 0).to(tl.int64)


@triton.jit
def _weigh(
    source, seen_row, length, penalty, temperature, top, low,
    BLOCK: tl.constexpr, VOCAB: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Return how many values lie above `low`, and their mass relative to the top id's."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, length, BLOCK, num_stages=3):
        x, inside = _values(
            source, seen_row, start, length, penalty, temperature, BLOCK, VOCAB, LISTED
        )
        above = inside & (order_of(x) > low)
        count += above.to(tl.int32)
        mass += tl.where(above, tl.exp(x - top), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _search(
    source, seen_row, length, penalty, temperature, top, low, high, count_low, base, target,
    BLOCK: tl.constexpr, PIVOTS: tl.constexpr, VOCAB: tl.constexpr, LISTED: tl.constexpr,
    BY_MASS: tl.constexpr,
):  # fmt: skip
    """Return `low` such that the ids above it are those with less than `target` above themselves.

    "How much" is the probability mass relative to the top id, beginning with `base`, or the number
    of ids. Above `high` lies less than `target`, above `low` at least that much, namely `count_low`
    ids. Ends when one id at most, or one bit pattern, lies in (low, high].
    """
    j = tl.arange(0, PIVOTS)
    count_high = tl.zeros([], tl.int32)
    while (high - low > 1) & (count_low - count_high > 1):
        pivot = low + (high - low) * (j + 1) // (PIVOTS + 1)
        counts = tl.zeros([PIVOTS, BLOCK], tl.float32)
        masses = tl.zeros([PIVOTS, BLOCK], tl.float32)
        for start in tl.range(0, length, BLOCK, num_stages=3):
            x, inside = _values(
                source, seen_row, start, length, penalty, temperature, BLOCK, VOCAB, LISTED
            )
            above = (order_of(x)[None, :] > pivot.to(tl.int32)[:, None]) & inside[None, :]
            above = tl.where(above, 1.0, 0.0)
            counts += above
            if BY_MASS:
                masses = tl.fma(above, tl.exp(x - top)[None, :], masses)
        count = tl.sum(counts, 1).to(tl.int32)
        if BY_MASS:
            fits = base + tl.sum(masses, 1) < target
        else:
            fits = count.to(tl.float32) < target
        count_high = tl.maximum(count_high, tl.max(tl.where(fits, count, 0), 0))
        count_low = tl.minimum(count_low, tl.min(tl.where(fits, count_low, count), 0))
        high = tl.minimum(high, tl.min(tl.where(fits, pivot, high), 0))
        low = tl.maximum(low, tl.max(tl.where(fits, low, pivot), 0))
    return low


@triton.jit
def cut_between(
    source, seen_row, length, penalty, temperature, top, low, high, top_k, top_p, whole, base,
    target, BLOCK: tl.constexpr, PIVOTS: tl.constexpr, VOCAB: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Return the cut that lies in [low, high): top-k, then top-p on what top-k leaves.

    `top_k` 0 and `top_p` 1 keep all. If `whole`, the filters apply to just what lies above `low`.
    Else there is no top-k, ids above the list have the mass `base` (relative to the top id's), and
    top-p reaches for the mass `target`.
    """
    count = length
    if whole:
        count, mass = _weigh(
            source, seen_row, length, penalty, temperature, top, low, BLOCK, VOCAB, LISTED
        )
        if (top_k > 0) & (count > top_k):
            low = _search(
                source, seen_row, length, penalty, temperature, top, low, high, count, base,
                top_k.to(tl.float32), BLOCK, PIVOTS, VOCAB, LISTED, False,
            )  # fmt: skip
            count, mass = _weigh(
                source, seen_row, length, penalty, temperature, top, low, BLOCK, VOCAB, LISTED
            )
        target = top_p * mass
    if top_p < 1.0:
        low = _search(
            source, seen_row, length, penalty, temperature, top, low, high, count, base, target,
            BLOCK, PIVOTS, VOCAB, LISTED, True,
        )  # fmt: skip
    return low
