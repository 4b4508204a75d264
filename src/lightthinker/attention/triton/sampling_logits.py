"""What every sampling kernel reads: a row's settings, and its logits as they count.

A vocabulary is cut into pieces of `PIECE_IDS` ids. Logits count after repetition penalty and
temperature; NaN is -inf. Knows nothing of cuts or draws.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightthinker.attention.triton.sampling_batch import SamplingField

GREEDY_BELOW = tl.constexpr(1e-5)
"""Temperatures this small only differ from greedy by rounding, and by overflow."""

LANE_IDS = 1024
PIECE_IDS = tl.constexpr(4 * LANE_IDS)
"""Ids of one piece. One Philox call gives noise for four ids, `LANE_IDS` apart; changing these
numbers changes which ids a seed draws."""

TEMPERATURE = tl.constexpr(int(SamplingField.TEMPERATURE))
TOP_P = tl.constexpr(int(SamplingField.TOP_P))
MIN_P = tl.constexpr(int(SamplingField.MIN_P))
REPETITION_PENALTY = tl.constexpr(int(SamplingField.REPETITION_PENALTY))
TOP_K = tl.constexpr(int(SamplingField.TOP_K))
SEED_LOW = tl.constexpr(int(SamplingField.SEED_LOW))
SEED_HIGH = tl.constexpr(int(SamplingField.SEED_HIGH))
STEP = tl.constexpr(int(SamplingField.STEP))
HISTORY = tl.constexpr(int(SamplingField.HISTORY))
FORBIDDEN = tl.constexpr(int(SamplingField.FORBIDDEN))


def num_pieces(vocab_size: int) -> int:
    """Return into how many pieces a vocabulary is cut."""
    return -(-vocab_size // (4 * LANE_IDS))


@triton.jit
def float_field(words, stride, row, FIELD: tl.constexpr):
    """Read a setting that is a float."""
    return tl.load(words + FIELD * stride + row).to(tl.float32, bitcast=True)


@triton.jit
def order_of(x):
    """Map float32 to int32 so that order is kept (both zeros are one)."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def row_history(words, seen, stride, row, VOCAB: tl.constexpr):
    """Return a row's repetition penalty (1 without a history) and its line of `seen`."""
    history = tl.load(words + HISTORY * stride + row)
    penalty = float_field(words, stride, row, REPETITION_PENALTY)
    return tl.where(history >= 0, penalty, 1.0), seen + tl.maximum(history, 0).to(tl.int64) * VOCAB


@triton.jit
def scaled_logits(logits_row, seen_row, column, VOCAB: tl.constexpr, penalty, temperature):
    """Logits after penalty and temperature; NaN and what lies outside become -inf."""
    inside = column < VOCAB
    x = tl.load(logits_row + column, mask=inside, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))
    if penalty != 1.0:
        seen = tl.load(seen_row + column, mask=inside, other=0)
        x = tl.where(seen != 0, tl.where(x > 0, x / penalty, x * penalty), x)
    return x / temperature
