"""Each row's cut: top-k, top-p and min-p as one threshold, without sorting.

Sorting [256, 152k] logits each step would cost more than the attention. The cut lies in a narrow
range of values: reading the vocabulary twice finds the range, a third time lists the ids in it, and
the exact search (`sampling_search`) sees the list alone:

1. `_top_kernel`, one program per row and piece: the piece's greatest logit, and its mass.
2. `_bins_kernel`, likewise: how many ids, and how much mass, lie in which depth below the row's
   top, in bins as wide as the settings need. Pieces below the last bin are not read again.
3. `_list_kernel`, likewise: adds the pieces' bins up, finds those that the cut can lie in, and
   writes its piece's ids of these into the row's list, where the counts of the pieces before it
   say. Pieces without any are not read again.
4. `_cut_kernel`, one program per row: the exact cut, among the list. A list that does not fit
   (thousands of ties, distributions without a peak) is not written: then the search reads the
   vocabulary, between the same bounds.

Everything is added in a fixed order, so a row's cut depends on nothing but its logits and settings.
Rows without filters, and greedy rows, return at once.

Shapes: B rows, V ids, P pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lightthinker.attention.triton.launch import next_power_of_two
from lightthinker.attention.triton.sampling_batch import SamplingBatch
from lightthinker.attention.triton.sampling_logits import (
    GREEDY_BELOW,
    MIN_P,
    PIECE_IDS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    float_field,
    num_pieces,
    order_of,
    row_history,
    scaled_logits,
)
from lightthinker.attention.triton.sampling_search import cut_between, extent

SEARCH_BLOCK = 512
NUM_PIVOTS = 16
NUM_BINS = 16
"""Bins below a row's top that are told apart; the last one holds all finite logits."""

BINNED_TOGETHER = 128
"""Ids whose bins are added to at a time."""

LIST_CAPACITY = 32_768
"""Longest list of a row: fits one nat of 152k Gaussian logits that deviate by 2 nats."""

UNFUSED = {"enable_fp_fusion": False}
"""How the kernels are compiled: a logit is rounded before it is used, so its bin is the same in all
of them. A subtraction fused with the division by temperature would see it unrounded."""

KEEP_ALL = tl.constexpr(-(2**31))
_TOP_K_BIN = tl.constexpr(2.0)
_LEAST_BIN = tl.constexpr(2.0**-20)


@triton.jit
def _filters(words, stride, row, VOCAB: tl.constexpr):
    """Return temperature, top-k (0 for none), top-p, min-p, and whether any of them cuts."""
    temperature = float_field(words, stride, row, TEMPERATURE)
    top_p = float_field(words, stride, row, TOP_P)
    min_p = float_field(words, stride, row, MIN_P)
    top_k = tl.load(words + TOP_K * stride + row)
    top_k = tl.where((top_k > 0) & (top_k < VOCAB), top_k, 0)
    filtered = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
    return temperature, top_k, top_p, min_p, filtered & (temperature > GREEDY_BELOW)


@triton.jit
def _bins_per_nat(temperature, top_k, top_p, min_p, VOCAB: tl.constexpr, BINS: tl.constexpr):
    """Return how many bins one nat has: so many that the cut is not in the last bin.

    Of top-p alone this is certain: ids more than log(V / (1 - p)) below the top have less than
    1 - p of the probability together. So it is of min-p. For top-k a bin is `_TOP_K_BIN` before
    temperature, and holds hundreds of ids at the depths that top-k is used at.
    """
    reach = BINS - 2
    by_mass = tl.log(VOCAB / tl.maximum(1.0 - top_p, 1e-8)) / reach
    by_count = tl.where(top_k > 0, _TOP_K_BIN / temperature, float("inf"))
    by_least = tl.where(min_p > 0.0, -tl.log(tl.maximum(min_p, 1e-30)) / reach, float("inf"))
    bounded = (top_k > 0) | (min_p > 0.0)
    return 1.0 / tl.maximum(tl.where(bounded, tl.minimum(by_count, by_least), by_mass), _LEAST_BIN)


@triton.jit
def _depth(x, top, scale):
    """Return the bin of each logit, counted down from the row's top: a whole number, or inf."""
    return tl.floor((top - x) * scale)


@triton.jit
def _top_kernel(
    logits,
    words,
    seen,
    piece_top,
    piece_count,
    piece_mass,
    logits_stride,
    words_stride,
    NUM_PIECES: tl.constexpr,
    VOCAB: tl.constexpr,
):
    """Write a piece's greatest logit, its count of finite logits, and its mass relative to it."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    temperature, top_k, top_p, _, filtered = _filters(words, words_stride, row, VOCAB)
    if filtered:
        penalty, seen_row = row_history(words, seen, words_stride, row, VOCAB)
        column = piece * PIECE_IDS + tl.arange(0, PIECE_IDS)
        logits_row = logits + row * logits_stride
        x = scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
        top = tl.max(x, 0)
        finite = x > float("-inf")
        place = row * NUM_PIECES + piece
        tl.store(piece_top + place, top)
        if (top_k > 0) | (top_p < 1.0):
            tl.store(piece_count + place, tl.sum(finite.to(tl.int32), 0))
            tl.store(piece_mass + place, tl.sum(tl.where(finite, tl.exp(x - top), 0.0), 0))


@triton.jit
def _row_top(piece_top, row, NUM_PIECES: tl.constexpr, BLOCK_PIECES: tl.constexpr):
    piece = tl.arange(0, BLOCK_PIECES)
    place = piece_top + row * NUM_PIECES + piece
    return tl.max(tl.load(place, mask=piece < NUM_PIECES, other=float("-inf")), 0)


@triton.jit
def _bins_kernel(
    logits,
    words,
    seen,
    piece_top,
    piece_count,
    piece_mass,
    counts,
    masses,
    logits_stride,
    words_stride,
    NUM_PIECES: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    VOCAB: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write how many of a piece's ids lie in the row's first bins, and their mass, cumulated."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    temperature, top_k, top_p, min_p, filtered = _filters(words, words_stride, row, VOCAB)
    if filtered & ((top_k > 0) | (top_p < 1.0)):
        top = _row_top(piece_top, row, NUM_PIECES, BLOCK_PIECES)
        scale = _bins_per_nat(temperature, top_k, top_p, min_p, VOCAB, BINS)
        place = row * NUM_PIECES + piece
        own_top = tl.load(piece_top + place)
        count = tl.zeros([BINS, CHUNK], tl.float32)
        mass = tl.zeros([BINS, CHUNK], tl.float32)
        j = tl.arange(0, BINS)
        if _depth(own_top, top, scale) < BINS - 1:
            penalty, seen_row = row_history(words, seen, words_stride, row, VOCAB)
            logits_row = logits + row * logits_stride
            for start in range(0, PIECE_IDS, CHUNK):
                column = piece * PIECE_IDS + start + tl.arange(0, CHUNK)
                x = scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
                # 1 or 0, as a saturated sum: sixteen predicates would not fit the registers.
                within = (j + 1).to(tl.float32)[:, None] - _depth(x, top, scale)[None, :]
                within = tl.minimum(tl.maximum(within, 0.0), 1.0)
                count += within
                mass = tl.fma(within, tl.exp(x - top)[None, :], mass)
        # The last bin holds all that is left.
        last = j == BINS - 1
        bin_count = tl.where(last, tl.load(piece_count + place), tl.sum(count, 1).to(tl.int32))
        own_mass = tl.load(piece_mass + place) * tl.exp(own_top - top)
        tl.store(counts + place * BINS + j, bin_count)
        tl.store(masses + place * BINS + j, tl.where(last, own_mass, tl.sum(mass, 1)))


@triton.jit
def _bracket(
    piece_top, counts, masses, row, temperature, top_k, top_p, min_p,
    NUM_PIECES: tl.constexpr, BLOCK_PIECES: tl.constexpr, VOCAB: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Find between which bins of a row its cut lies, from what its pieces hold.

    Returns:
        The row's greatest logit; bins per nat; the last bin that can hold the cut; the last one
        above it that cannot, -1 for none (as where all above the cut is listed: top-k and min-p
        change the mass that top-p is of); the mass down to there; top-p's target; how many ids
        each piece lists [BLOCK_PIECES].
    """
    top = _row_top(piece_top, row, NUM_PIECES, BLOCK_PIECES)
    scale = _bins_per_nat(temperature, top_k, top_p, min_p, VOCAB, BINS)
    piece = tl.arange(0, BLOCK_PIECES)
    j = tl.arange(0, BINS)
    last = j == BINS - 1
    place = (row * NUM_PIECES + piece[:, None]) * BINS + j[None, :]
    inside = (piece < NUM_PIECES)[:, None] & (j >= 0)[None, :]
    count = tl.load(counts + place, mask=inside, other=0)
    upper = tl.full([], -1, tl.int32)
    base = tl.zeros([], tl.float32)
    target = tl.zeros([], tl.float32)
    if (top_k > 0) | (min_p > 0.0):
        least = top + tl.log(tl.maximum(min_p, 1e-30))
        least_depth = tl.where(min_p > 0.0, _depth(least, top, scale), float("inf"))
        wanted = tl.where(top_k > 0, top_k, 2**30)
        enough = last | (j.to(tl.float32) >= least_depth) | (tl.sum(count, 0) >= wanted)
        lower = tl.min(tl.where(enough, j, BINS), 0)
    else:
        mass = tl.sum(tl.load(masses + place, mask=inside, other=0.0), 0)
        target = top_p * tl.sum(tl.where(last, mass, 0.0), 0)
        lower = tl.min(tl.where(last | (mass >= target), j, BINS), 0)
        upper = lower - 1
        base = tl.sum(tl.where(j == upper, mass, 0.0), 0)
    listed = tl.where(j == lower, 1, 0) - tl.where(j == upper, 1, 0)
    return top, scale, lower, upper, base, target, tl.sum(count * listed[None, :], 1)


@triton.jit
def _list_kernel(
    logits,
    words,
    seen,
    piece_top,
    counts,
    masses,
    listed_logits,
    logits_stride,
    words_stride,
    CAPACITY: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    VOCAB: tl.constexpr,
    BINS: tl.constexpr,
):
    """Write a piece's ids that the cut may lie among into the row's list."""
    row = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1)
    temperature, top_k, top_p, min_p, filtered = _filters(words, words_stride, row, VOCAB)
    if filtered & ((top_k > 0) | (top_p < 1.0)):
        top, scale, lower, upper, _, _, listed = _bracket(
            piece_top, counts, masses, row, temperature, top_k, top_p, min_p,
            NUM_PIECES, BLOCK_PIECES, VOCAB, BINS,
        )  # fmt: skip
        piece = tl.arange(0, BLOCK_PIECES)
        holds_any = tl.sum(tl.where(piece == own, listed, 0), 0) > 0
        if holds_any & (tl.sum(listed, 0) <= CAPACITY):
            penalty, seen_row = row_history(words, seen, words_stride, row, VOCAB)
            column = own * PIECE_IDS + tl.arange(0, PIECE_IDS)
            logits_row = logits + row * logits_stride
            x = scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
            depth = _depth(x, top, scale)
            above = tl.where(lower == BINS - 1, x > float("-inf"), depth <= lower)
            kept = (above & (depth > upper)).to(tl.int32)
            place = tl.sum(tl.where(piece < own, listed, 0), 0) + tl.cumsum(kept, 0) - 1
            tl.store(listed_logits + row * CAPACITY + place, x, mask=kept != 0)


@triton.jit
def _cut_kernel(
    logits,
    words,
    seen,
    piece_top,
    counts,
    masses,
    listed_logits,
    cut,
    num_listed,
    logits_stride,
    words_stride,
    CAPACITY: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    VOCAB: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Write each row's cut: ids whose `order_of` is above it stay."""
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p, filtered = _filters(words, words_stride, row, VOCAB)
    low = tl.full([], KEEP_ALL, tl.int64)
    length = tl.zeros([], tl.int32)
    if filtered:
        top = _row_top(piece_top, row, NUM_PIECES, BLOCK_PIECES)
        high = order_of(top).to(tl.int64)
        if tl.abs(top) == float("inf"):
            # Nothing is left, or +inf wins every draw.
            low = high - 1
        else:
            if min_p > 0.0:
                low = order_of(top + tl.log(min_p)).to(tl.int64) - 1
            if (top_k > 0) | (top_p < 1.0):
                _, scale, lower, upper, base, target, listed = _bracket(
                    piece_top, counts, masses, row, temperature, top_k, top_p, min_p,
                    NUM_PIECES, BLOCK_PIECES, VOCAB, BINS,
                )  # fmt: skip
                length = tl.sum(listed, 0)
                whole = (top_k > 0) | (min_p > 0.0)
                if length > CAPACITY:
                    # Half a bin is more than what rounding moves a bin's bound by.
                    if lower < BINS - 1:
                        bound = order_of(top - (lower + 1.5) / scale).to(tl.int64)
                        low = tl.maximum(low, bound - 1)
                    if upper >= 0:
                        high = order_of(top - (upper + 0.5) / scale).to(tl.int64)
                    penalty, seen_row = row_history(words, seen, words_stride, row, VOCAB)
                    low = cut_between(
                        logits + row * logits_stride, seen_row, tl.full([], VOCAB, tl.int32),
                        penalty, temperature, top, low, high, top_k, top_p, whole, 0.0, target,
                        BLOCK, PIVOTS, VOCAB, False,
                    )  # fmt: skip
                elif length > 0:  # Else there is nothing below what stays anyway.
                    source = listed_logits + row * CAPACITY
                    least, greatest = extent(source, length, BLOCK)
                    low = cut_between(
                        source, seen, length, 1.0, 1.0, top, tl.maximum(low, least - 1), greatest,
                        top_k, top_p, whole, base, target, BLOCK, PIVOTS, VOCAB, True,
                    )  # fmt: skip
    tl.store(cut + row, low.to(tl.int32))
    tl.store(num_listed + row, length)


class Cuts(NamedTuple):
    """What `find_cuts` has found.

    Attributes:
        cut: int32 [B]; ids stay whose `order_of` is above it, all of them above `KEEP_ALL`.
        piece_top: float32 [B, P], the pieces' greatest logits; of rows with filters only.
        num_listed: int32 [B], ids among which the cut was searched; if more than the list holds, it
            was searched among all.
    """

    cut: torch.Tensor
    piece_top: torch.Tensor
    num_listed: torch.Tensor


def find_cuts(
    logits_BV: torch.Tensor, batch: SamplingBatch, *, capacity: int = LIST_CAPACITY
) -> Cuts:
    """Find every row's cut: min-p, then top-k, then top-p on what is left.

    Args:
        logits_BV: Any float type, ids adjacent; forbidden ids are -inf.
        batch: The rows' settings.
        capacity: Longest list of a row; cuts that need a longer one are found slowly.
    """
    num_rows, vocab = logits_BV.shape
    device, words, seen = logits_BV.device, batch.words, batch.seen
    pieces, capacity = num_pieces(vocab), min(vocab, capacity)

    def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty((num_rows, *shape), dtype=dtype, device=device)

    piece_top, piece_mass, masses = buffer(pieces), buffer(pieces), buffer(pieces, NUM_BINS)
    piece_count = buffer(pieces, dtype=torch.int32)
    counts = buffer(pieces, NUM_BINS, dtype=torch.int32)
    listed, (cut, num_listed) = buffer(capacity), (buffer(dtype=torch.int32) for _ in range(2))
    read = logits_BV, words, seen
    of_pieces = piece_top, piece_count, piece_mass
    strides = logits_BV.stride(0), words.stride(0)
    sizes = {"NUM_PIECES": pieces, "VOCAB": vocab}
    _top_kernel[(num_rows, pieces)](*read, *of_pieces, *strides, **sizes, **UNFUSED, num_warps=4)
    sizes.update(BLOCK_PIECES=next_power_of_two(pieces), BINS=NUM_BINS)
    _bins_kernel[(num_rows, pieces)](
        *read,
        *of_pieces,
        counts,
        masses,
        *strides,
        **sizes,
        **UNFUSED,
        CHUNK=BINNED_TOGETHER,
        num_warps=4,
    )
    binned = piece_top, counts, masses
    _list_kernel[(num_rows, pieces)](
        *read, *binned, listed, *strides, **sizes, **UNFUSED, CAPACITY=capacity, num_warps=8
    )
    _cut_kernel[(num_rows,)](
        *read,
        *binned,
        listed,
        cut,
        num_listed,
        *strides,
        **sizes,
        **UNFUSED,
        CAPACITY=capacity,
        BLOCK=SEARCH_BLOCK,
        PIVOTS=NUM_PIVOTS,
        num_warps=16,
    )
    return Cuts(cut, piece_top, num_listed)
