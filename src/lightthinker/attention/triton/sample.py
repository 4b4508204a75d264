"""Sample the next id of every row inside the CUDA graph.

Seven kernels: forbid ids; find each row's cut (top-k, top-p, min-p as one threshold: four kernels,
`sampling_cut`); draw over pieces of the vocabulary; pick the best piece. Order of the settings as
in vLLM: repetition penalty, temperature, min-p, top-k, top-p on what is left.

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
from lightthinker.attention.triton.sampling_batch import SamplingBatch
from lightthinker.attention.triton.sampling_cut import KEEP_ALL, find_cuts
from lightthinker.attention.triton.sampling_logits import (
    FORBIDDEN,
    GREEDY_BELOW,
    HISTORY,
    LANE_IDS,
    PIECE_IDS,
    SEED_HIGH,
    SEED_LOW,
    STEP,
    TEMPERATURE,
    float_field,
    num_pieces,
    order_of,
    row_history,
    scaled_logits,
)

_LANE = tl.constexpr(LANE_IDS)


@triton.jit
def _forbid_kernel(
    logits, words, logits_stride, words_stride, F: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, BLOCK)
    ids = tl.load(words + (FORBIDDEN + f) * words_stride + row, mask=f < F, other=-1)
    tl.store(logits + row * logits_stride + ids, float("-inf"), mask=ids >= 0)


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
    x = scaled_logits(logits_row, seen_row, column, VOCAB, penalty, temperature)
    return tl.where(order_of(x) > row_cut, x, float("-inf"))


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
    piece_top,
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
    temperature = float_field(words, words_stride, row, TEMPERATURE)
    noisy = temperature > GREEDY_BELOW
    temperature = tl.where(noisy, temperature, 1.0)
    penalty, seen_row = row_history(words, seen, words_stride, row, VOCAB)
    row_cut = tl.load(cut + row)
    place = row * NUM_PIECES + piece
    best = tl.full([], float("-inf"), tl.float32)
    best_id = tl.zeros([], tl.int32)
    kept_any = row_cut == KEEP_ALL
    if row_cut > KEEP_ALL:
        kept_any = order_of(tl.load(piece_top + place)) > row_cut
    if kept_any:
        logits_row = logits + row * logits_stride
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
        top = tl.max(tl.maximum(tl.maximum(x0, x1), tl.maximum(x2, x3)), 0)
        if noisy & (top > float("-inf")):
            low = tl.load(words + SEED_LOW * words_stride + row).to(tl.int64) & 0xFFFFFFFF
            seed = (tl.load(words + SEED_HIGH * words_stride + row).to(tl.int64) << 32) | low
            zero = lane * 0
            step = zero + tl.load(words + STEP * words_stride + row)
            r0, r1, r2, r3 = tl.philox(seed, piece * _LANE + lane, step, zero, zero)
            x0 -= tl.log(_exponential(r0))
            x1 -= tl.log(_exponential(r1))
            x2 -= tl.log(_exponential(r2))
            x3 -= tl.log(_exponential(r3))
        best, best_id = _better(x0, first, best, best_id)
        best, best_id = _better(x1, first + _LANE, best, best_id)
        best, best_id = _better(x2, first + 2 * _LANE, best, best_id)
        best, best_id = _better(x3, first + 3 * _LANE, best, best_id)
    tl.store(piece_best + place, best)
    tl.store(piece_id + place, best_id)


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
    history = tl.load(words + HISTORY * words_stride + row).to(tl.int64)
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
    pieces = num_pieces(vocab)
    piece_best = torch.empty((num_rows, pieces), dtype=torch.float32, device=device)
    piece_id = torch.empty((num_rows, pieces), dtype=torch.int32, device=device)
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
    cuts = find_cuts(logits_BV, batch)
    _draw_kernel[(num_rows, pieces)](
        logits_BV,
        words,
        seen,
        cuts.cut,
        cuts.piece_top,
        piece_best,
        piece_id,
        *strides,
        NUM_PIECES=pieces,
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
        NUM_PIECES=pieces,
        BLOCK=next_power_of_two(pieces),
        VOCAB=vocab,
        num_warps=1,
    )
