"""Obvious references for in-graph sampling: candidates by sorting, Philox and the race in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightthinker.attention.triton.sampling_batch import RowSampling

_MASK = np.uint64(2**32 - 1)
_LANE_IDS, _PIECE_IDS = 1024, 4096


def candidates(
    logits: torch.Tensor, setting: RowSampling, seen: Iterable[int] = ()
) -> torch.Tensor:
    """Return the probability of each id, float64 [V]; zero where it cannot be sampled.

    Args:
        logits: [V].
        setting: How the row samples.
        seen: Ids of its history, for the repetition penalty.
    """
    x = logits.double().cpu().clone()
    for i in seen:
        x[i] = x[i] / setting.repetition_penalty if x[i] > 0 else x[i] * setting.repetition_penalty
    x[list(setting.forbidden)] = float("-inf")
    p = torch.softmax(x / setting.temperature, 0)
    p[p < setting.min_p * p.max()] = 0
    if 0 < setting.top_k < len(p):
        p[p < p.sort(descending=True).values[setting.top_k - 1]] = 0
    p /= p.sum()
    ordered, order = p.sort(descending=True)
    p[order[ordered.cumsum(0) - ordered >= setting.top_p]] = 0
    return p / p.sum()


def kept_value(x: torch.Tensor, setting: RowSampling, tolerance: float = 0.0) -> float:
    """Return the least value that min-p, top-k and top-p keep, found by sorting in float64.

    Args:
        x: float64 [V], logits after penalty and temperature, none of them NaN or +inf.
        setting: How the row samples.
        tolerance: Added to `top_p`.
    """
    top = float(x.max())
    values = x[x > float("-inf")].sort(descending=True).values
    if setting.min_p > 0:
        values = values[values >= top + math.log(setting.min_p)]
    if 0 < setting.top_k < len(values):
        values = values[values >= values[setting.top_k - 1]]
    if setting.top_p < 1:
        mass = (values - top).exp()
        above = mass.cumsum(0) - mass
        values = values[: max(1, int((above < (setting.top_p + tolerance) * mass.sum()).sum()))]
    return float(values[-1])


def check_cut(logits: torch.Tensor, setting: RowSampling, order: int) -> None:
    """Assert that a cut keeps what sorting keeps, ids right at the limit excepted.

    Logits are taken to be exact to a few float32 roundings, and so are sums of probabilities.

    Args:
        logits: [V].
        setting: How the row samples.
        order: The cut; ids stay whose float32 is above it in the order of signed bit patterns.
    """
    x = logits.double().masked_fill(logits.isnan(), float("-inf"))
    x /= np.float32(setting.temperature).item()
    bits = np.array(order ^ ((order >> 31) & 0x7FFFFFFF), np.int64).astype(np.uint32)
    cut = float(bits.view(np.float32))
    if cut == 0 and order < 0:
        cut = -1e-45  # -0.0, below the order of both zeros
    elif cut != cut:
        cut = math.copysign(float("inf"), order)
    kept = x > cut
    tolerance = 2e-6 + float(abs(x.max())) * 2**-22
    least, most = (kept_value(x, setting, t) for t in (-tolerance, tolerance))
    lost = (x >= least + abs(least) * 2**-22) & ~kept
    added = kept & (x < most - abs(most) * 2**-22)
    assert not lost.any(), f"{int(lost.sum())} of {int(kept.sum())} ids lost: {setting}"
    assert not added.any(), f"{int(added.sum())} of {int(kept.sum())} ids too many: {setting}"


def philox(seed: Any, c0: Any, c1: Any) -> list[Any]:
    """Philox4x32-10 (Salmon et al., SC11), written out: four words for each counter."""
    seed = np.asarray(seed, dtype=np.uint64)
    key0, key1 = seed & _MASK, seed >> np.uint64(32)
    c: list[Any] = [np.asarray(c0, np.uint64), np.asarray(c1, np.uint64)]
    c += [np.uint64(0), np.uint64(0)]
    for _ in range(10):
        high0, low0 = divmod(c[0] * np.uint64(0xD2511F53), np.uint64(2**32))
        high1, low1 = divmod(c[2] * np.uint64(0xCD9E8D57), np.uint64(2**32))
        c = [high1 ^ c[1] ^ key0, low1, high0 ^ c[3] ^ key1, low0]
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & _MASK, (key1 + np.uint64(0xBB67AE85)) & _MASK
    return c


def exponential(words: Any) -> npt.NDArray[np.float64]:
    """Return exponential noise of 32-bit words."""
    return np.asarray(-np.log1p(-(np.asarray(words, np.float64) + 0.5) / 2**32))


def race_winner(logits: torch.Tensor, setting: RowSampling, seen: Iterable[int] = ()) -> int:
    """Return the id that `setting` samples from logits [V]: argmin of E_i / p_i."""
    p = candidates(logits, setting, seen).numpy()
    ids = np.arange(len(p))
    counter = ids // _PIECE_IDS * _LANE_IDS + ids % _LANE_IDS
    words = philox(setting.seed % 2**64, counter, np.full_like(ids, setting.step))
    noise = exponential(np.choose(ids % _PIECE_IDS // _LANE_IDS, words))
    with np.errstate(divide="ignore"):
        return int((noise / p).argmin())
