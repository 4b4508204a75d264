"""Sample the next id of every row inside the CUDA graph.

Four kernels: forbid ids; find each row's cut (top-k, top-p, min-p as one threshold); draw over
pieces of the vocabulary; pick the best piece. Order of the settings as in vLLM: repetition penalty,
temperature, min-p, top-k, top-p on what is left.

- No sort: sorting [256, 152k] logits each step would cost more than the attention. A cut is found
  by k-ary search over the order of float32 bit patterns, each pass counting (or weighing) what lies
  above a few pivots, until one candidate is left between the bounds: exact, ties kept together.
- The draw is an exponential race, argmin of E_i / p_i with E_i exponential: the same as
  multinomial, without normalising. The noise of an id is Philox(seed; step, id), so a request's ids
  depend on its own seed, step and logits, never on the batch.
- Rows without filters skip the search; greedy rows, and pieces below the cut, skip the noise. Torch
  operators could do neither without reading the settings back to the host.

Shapes: B rows, V ids.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightthinker.attention.triton.launch import next_power_of_two
from lightthinker.attention.triton.sampling_batch import SamplingBatch, SamplingField

GREEDY_BELOW = tl.constexpr(1e-5)
"""Temperatures this small only differ from greedy by rounding, and by overflow."""

LANE_IDS = 1024
PIECE_IDS = tl.constexpr(4 * LANE_IDS)
"""Ids of one piece. One Philox call gives noise for four ids, `LANE_IDS` apart; changing these
numbers changes which ids a seed draws."""

SEARCH_BLOCK = 2048
NUM_PIVOTS = 8

_LANE = tl.constexpr(LANE_IDS)
_TEMPERATURE = tl.constexpr(int(SamplingField.TEMPERATURE))
_TOP_P = tl.constexpr(int(SamplingField.TOP_P))
_MIN_P = tl.constexpr(int(SamplingField.MIN_P))
_REPETITION_PENALTY = tl.constexpr(int(SamplingField.REPETITION_PENALTY))
_TOP_K = tl.constexpr(int(SamplingField.TOP_K))
_SEED_LOW = tl.constexpr(int(SamplingField.SEED_LOW))
_SEED_HIGH = tl.constexpr(int(SamplingField.SEED_HIGH))
_STEP = tl.constexpr(int(SamplingField.STEP))
_HISTORY = tl.constexpr(int(SamplingField.HISTORY))
_FORBIDDEN = tl.constexpr(int(SamplingField.FORBIDDEN))
_KEEP_ALL = tl.constexpr(-(2**31))


@triton.jit
def _float_field(words, stride, row, FIELD: tl.constexpr):
    return tl.load(words + FIELD * stride + row).to(tl.float32, bitcast=True)


@triton.jit
def _order(x):
    """Map float32 to int32 so that order is kept (both zeros are one)."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _scaled_logits(logits_row, seen_row, column, VOCAB: tl.constexpr, penalty, temperature):
    """Logits after penalty and temperature; NaN and what lies outside become -inf."""
    inside = column < VOCAB
    x = tl.load(logits_row + column, mask=inside, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))
    if penalty != 1.0:
        seen = tl.load(seen_row + column, mask=inside, other=0)
        x = tl.where(seen != 0, tl.where(x > 0, x / penalty, x * penalty), x)
    return x / temperature


@triton.jit
def _forbid_kernel(
    logits, words, logits_stride, words_stride, F: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, BLOCK)
    ids = tl.load(words + (_FORBIDDEN + f) * words_stride + row, mask=f < F, other=-1)
    tl.store(logits + row * logits_stride + ids, float("-inf"), mask=ids >= 0)


@triton.jit
def _weigh(
    logits_row, seen_row, penalty, temperature, top, low,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return how many ids lie above `low`, and their mass relative to the top id's."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, VOCAB, BLOCK, num_stages=3):
        column = start + tl.arange(0, BLOCK)
        x = _scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
        above = (column < VOCAB) & (_order(x) > low)
        count += above.to(tl.int32)
        mass += tl.where(above, tl.exp(x - top), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _search(
    logits_row, seen_row, penalty, temperature, top, low, high, count_low, target,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, PIVOTS: tl.constexpr, BY_MASS: tl.constexpr,
):  # fmt: skip
    """Return `low` such that the ids above it are those with less than `target` above themselves.

    "How much" is the probability mass relative to the top id, or the number of ids. Above `high`
    lies less than `target`, above `low` at least that much, namely `count_low` ids. Ends when one
    id at most, or one bit pattern, lies in (low, high]. Returns the ids above the new `low` too.
    """
    j = tl.arange(0, PIVOTS)
    count_high = tl.zeros([], tl.int32)
    while (high - low > 1) & (count_low - count_high > 1):
        pivot = low + (high - low) * (j + 1) // (PIVOTS + 1)
        counts = tl.zeros([BLOCK, PIVOTS], tl.int32)
        masses = tl.zeros([BLOCK, PIVOTS], tl.float32)
        for start in tl.range(0, VOCAB, BLOCK, num_stages=3):
            column = start + tl.arange(0, BLOCK)
            x = _scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
            above = (_order(x)[:, None] > pivot.to(tl.int32)[None, :]) & (column < VOCAB)[:, None]
            counts += above.to(tl.int32)
            if BY_MASS:
                masses += tl.where(above, tl.exp(x - top)[:, None], 0.0)
        count = tl.sum(counts, 0)
        if BY_MASS:
            fits = tl.sum(masses, 0) < target
        else:
            fits = count.to(tl.float32) < target
        count_high = tl.maximum(count_high, tl.max(tl.where(fits, count, 0), 0))
        count_low = tl.minimum(count_low, tl.min(tl.where(fits, VOCAB, count), 0))
        high = tl.minimum(high, tl.min(tl.where(fits, pivot, high), 0))
        low = tl.maximum(low, tl.max(tl.where(fits, low, pivot), 0))
    return low, count_low


@triton.jit
def _cut_kernel(
    logits,
    words,
    seen,
    cut,
    logits_stride,
    words_stride,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Write each row's cut: ids whose `_order` is above it stay."""
    row = tl.program_id(0).to(tl.int64)
    temperature = _float_field(words, words_stride, row, _TEMPERATURE)
    top_p = _float_field(words, words_stride, row, _TOP_P)
    min_p = _float_field(words, words_stride, row, _MIN_P)
    top_k = tl.load(words + _TOP_K * words_stride + row)
    by_count = (top_k > 0) & (top_k < VOCAB)
    filtered = by_count | (top_p < 1.0) | (min_p > 0.0)
    low = tl.full([], _KEEP_ALL, tl.int64)
    if filtered & (temperature > GREEDY_BELOW):
        penalty = _float_field(words, words_stride, row, _REPETITION_PENALTY)
        history = tl.load(words + _HISTORY * words_stride + row)
        penalty = tl.where(history >= 0, penalty, 1.0)
        logits_row = logits + row * logits_stride
        seen_row = seen + tl.maximum(history, 0).to(tl.int64) * VOCAB
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in tl.range(0, VOCAB, BLOCK, num_stages=3):
            column = start + tl.arange(0, BLOCK)
            x = _scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
            best = tl.maximum(best, x)
        top = tl.max(best, 0)
        high = _order(top).to(tl.int64)
        if min_p > 0.0:
            low = _order(top + tl.log(min_p)).to(tl.int64) - 1
        count, mass = _weigh(logits_row, seen_row, penalty, temperature, top, low, VOCAB, BLOCK)
        if by_count & (count > top_k):
            low, count = _search(
                logits_row, seen_row, penalty, temperature, top, low, high, count,
                top_k.to(tl.float32), VOCAB, BLOCK, PIVOTS, False,
            )  # fmt: skip
            count, mass = _weigh(logits_row, seen_row, penalty, temperature, top, low, VOCAB, BLOCK)
        if top_p < 1.0:
            low, count = _search(
                logits_row, seen_row, penalty, temperature, top, low, high, count,
                top_p * mass, VOCAB, BLOCK, PIVOTS, True,
            )  # fmt: skip
    tl.store(cut + row, low.to(tl.int32))


@triton.jit
def _exponential(bits):
    """Exponential noise from 32 random bits, accurate where it matters: near 0.

    -log(1 - u) with u = (bits + 1/2) / 2^32; near 0 by its series, since 1 - u rounds.
    """
    u = (bits.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    series = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25)))
    return tl.where(u < 0.01, series, -tl.log(tl.maximum(1.0 - u, 1.0 / 8589934592.0)))


@triton.jit
def _kept_logits(
    logits_row, seen_row, column, VOCAB: tl.constexpr, penalty, temperature, row_cut
):  # fmt: skip
    x = _scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
    return tl.where(_order(x) > row_cut, x, float("-inf"))


@triton.jit
def _better(x, first_id, best, best_id):
    """Fold one lane's scores into the best so far; equal scores keep the lower id."""
    lane_best, lane = tl.max(x, 0, return_indices=True)
    better = lane_best > best
    return tl.where(better, lane_best, best), tl.where(better, first_id + lane, best_id)


@triton.jit
def _draw_kernel(
    logits,
    words,
    seen,
    cut,
    piece_best,
    piece_id,
    logits_stride,
    words_stride,
    NUM_PIECES: tl.constexpr,
    VOCAB: tl.constexpr,
):
    """Write the winner of one piece of the vocabulary: its score and id."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    temperature = _float_field(words, words_stride, row, _TEMPERATURE)
    noisy = temperature > GREEDY_BELOW
    temperature = tl.where(noisy, temperature, 1.0)
    penalty = _float_field(words, words_stride, row, _REPETITION_PENALTY)
    history = tl.load(words + _HISTORY * words_stride + row)
    penalty = tl.where(history >= 0, penalty, 1.0)
    logits_row = logits + row * logits_stride
    seen_row = seen + tl.maximum(history, 0).to(tl.int64) * VOCAB
    row_cut = tl.load(cut + row)

    lane = tl.arange(0, _LANE)
    first = piece * PIECE_IDS
    column = first + lane
    x0 = _kept_logits(logits_row, seen_row, column, VOCAB, penalty, temperature, row_cut)
    column += _LANE
    x1 = _kept_logits(logits_row, seen_row, column, VOCAB, penalty, temperature, row_cut)
    column += _LANE
    x2 = _kept_logits(logits_row, seen_row, column, VOCAB, penalty, temperature, row_cut)
    column += _LANE
    x3 = _kept_logits(logits_row, seen_row, column, VOCAB, penalty, temperature, row_cut)
    piece_top = tl.max(tl.maximum(tl.maximum(x0, x1), tl.maximum(x2, x3)), 0)
    if noisy & (piece_top > float("-inf")):
        low = tl.load(words + _SEED_LOW * words_stride + row).to(tl.int64) & 0xFFFFFFFF
        seed = (tl.load(words + _SEED_HIGH * words_stride + row).to(tl.int64) << 32) | low
        zero = lane * 0
        step = zero + tl.load(words + _STEP * words_stride + row)
        r0, r1, r2, r3 = tl.philox(seed, piece * _LANE + lane, step, zero, zero)
        x0 -= tl.log(_exponential(r0))
        x1 -= tl.log(_exponential(r1))
        x2 -= tl.log(_exponential(r2))
        x3 -= tl.log(_exponential(r3))
    best = tl.full([], float("-inf"), tl.float32)
    best_id = tl.zeros([], tl.int32)
    best, best_id = _better(x0, first, best, best_id)
    best, best_id = _better(x1, first + _LANE, best, best_id)
    best, best_id = _better(x2, first + 2 * _LANE, best, best_id)
    best, best_id = _better(x3, first + 3 * _LANE, best, best_id)
    tl.store(piece_best + row * NUM_PIECES + piece, best)
    tl.store(piece_id + row * NUM_PIECES + piece, best_id)


@triton.jit
def _pick_kernel(
    piece_best,
    piece_id,
    words,
    seen,
    tokens,
    valid,
    words_stride,
    NUM_PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    VOCAB: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, BLOCK)
    score = tl.load(
        piece_best + row * NUM_PIECES + piece, mask=piece < NUM_PIECES, other=float("-inf")
    )
    best, winner = tl.max(score, 0, return_indices=True)
    token = tl.load(piece_id + row * NUM_PIECES + winner).to(tl.int64)
    tl.store(tokens + row, token)
    tl.store(valid + row, best > float("-inf"))
    history = tl.load(words + _HISTORY * words_stride + row).to(tl.int64)
    tl.store(seen + tl.maximum(history, 0) * VOCAB + token, 1, mask=history >= 0)


def sample(
    logits_BV: torch.Tensor, batch: SamplingBatch, tokens_B: torch.Tensor, valid_B: torch.Tensor
) -> None:
    """Sample one id per row; nothing is read back to the host.

    Args:
        logits_BV: Any float type, ids adjacent; forbidden ids become -inf in place.
        batch: The rows' settings; line i of the logits belongs to row i.
        tokens_B: Written: int64 ids, inside the vocabulary even where not valid.
        valid_B: Written: bool, False where a row's logits are all NaN, -inf or forbidden.
    """
    num_rows, vocab = logits_BV.shape
    assert num_rows <= batch.max_rows, (num_rows, batch.max_rows)
    assert logits_BV.stride(1) == 1
    assert vocab == batch.seen.shape[1], (vocab, batch.seen.shape)
    device, words, seen = logits_BV.device, batch.words, batch.seen
    num_pieces = -(-vocab // (4 * LANE_IDS))
    cut = torch.empty(num_rows, dtype=torch.int32, device=device)
    piece_best = torch.empty((num_rows, num_pieces), dtype=torch.float32, device=device)
    piece_id = torch.empty((num_rows, num_pieces), dtype=torch.int32, device=device)
    strides = logits_BV.stride(0), words.stride(0)
    if batch.max_forbidden:
        _forbid_kernel[(num_rows,)](
            logits_BV,
            words,
            *strides,
            F=batch.max_forbidden,
            BLOCK=next_power_of_two(batch.max_forbidden),
            num_warps=1,
        )
    _cut_kernel[(num_rows,)](
        logits_BV,
        words,
        seen,
        cut,
        *strides,
        VOCAB=vocab,
        BLOCK=SEARCH_BLOCK,
        PIVOTS=NUM_PIVOTS,
        num_warps=16,
    )
    _draw_kernel[(num_rows, num_pieces)](
        logits_BV,
        words,
        seen,
        cut,
        piece_best,
        piece_id,
        *strides,
        NUM_PIECES=num_pieces,
        VOCAB=vocab,
        num_warps=4,
    )
    _pick_kernel[(num_rows,)](
        piece_best,
        piece_id,
        words,
        seen,
        tokens_B,
        valid_B,
        words.stride(0),
        NUM_PIECES=num_pieces,
        BLOCK=next_power_of_two(num_pieces),
        VOCAB=vocab,
        num_warps=1,
    )
