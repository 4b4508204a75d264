"""Confidence intervals and tests for per-sample results: every number in a table carries one.

Knows nothing of models or benchmarks; takes arrays with one value per sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lightthinker.errors import DataError

Values = Sequence[float] | Sequence[bool] | NDArray[np.float64] | NDArray[np.bool_]

_MAX_DRAWS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap_mean(
    values: Values, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of the values and its percentile bootstrap interval (Efron 1979).

    Args:
        values: One number per sample, shape [n].
        confidence: Between 0 and 1.
        num_resamples: Resamples drawn; the bounds wobble by about 1/sqrt of this.
        seed: The same seed gives the same interval.

    Returns:
        The mean and its interval.

    Raises:
        DataError: No values, or one that is not finite; a setting out of range.
    """
    sample = _checked(values)
    _check_confidence(confidence)
    if num_resamples < 1:
        raise DataError(f"num_resamples is {num_resamples}; allowed: an integer >= 1.")
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    rows = max(1, _MAX_DRAWS // len(sample))
    for begin in range(0, num_resamples, rows):
        end = min(begin + rows, num_resamples)
        draws = generator.integers(len(sample), size=(end - begin, len(sample)))
        means[begin:end] = sample[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate=float(sample.mean()), low=float(low), high=float(high))


def bootstrap_table(
    values: NDArray[np.float64], *, num_resamples: int = 2000, seed: int = 0
) -> tuple[list[Interval], list[Interval]]:
    """Return mean and median of every column with 95 % percentile bootstrap intervals.

    All columns share the resamples, which is what makes it fast: a resample is how often each
    sample was drawn.

    Args:
        values: One row per sample, one column per measure, shape [n, m].
        num_resamples: Resamples drawn.
        seed: The same seed gives the same intervals.

    Returns:
        The columns' means and their medians.

    Raises:
        DataError: No values, or one that is not finite.
    """
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"A bootstrap needs finite values [n, m]; got shape {values.shape}.")
    num = len(values)
    counts = _resample_counts(num, num_resamples, seed)
    means = counts @ values / num
    medians = np.stack([_medians(column, counts) for column in values.T], axis=1)
    return (
        _column_intervals(values.mean(axis=0), means),
        _column_intervals(np.median(values, axis=0), medians),
    )


@lru_cache(maxsize=8)
def _resample_counts(num: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(num, np.full(num, 1 / num), size=num_resamples)
    return drawn.astype(np.float64)


def _medians(column: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of every resample: the mean of the two middle values."""
    order = np.argsort(column, kind="stable")
    reached = counts[:, order].cumsum(axis=1)
    num = len(column)
    lower = (reached > (num - 1) // 2).argmax(axis=1)
    upper = (reached > num // 2).argmax(axis=1)
    middle: NDArray[np.float64] = (column[order][lower] + column[order][upper]) / 2
    return middle


def _column_intervals(
    estimates: NDArray[np.float64], resampled: NDArray[np.float64]
) -> list[Interval]:
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return [
        Interval(estimate=float(e), low=float(a), high=float(b))
        for e, a, b in zip(estimates, low, high, strict=True)
    ]


def paired_bootstrap_difference(
    first: Values,
    second: Values,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean of `first - second` and its interval; pairs are resampled together.

    Args:
        first: One number per sample, shape [n].
        second: The other method's numbers for the same samples, shape [n].
        confidence: Between 0 and 1.
        num_resamples: Resamples drawn.
        seed: The same seed gives the same interval.

    Returns:
        The mean difference and its interval; one that excludes 0 is a difference.

    Raises:
        DataError: As `bootstrap_mean`, or the lengths differ.
    """
    differences = np.subtract(*_checked_pair(first, second))
    return bootstrap_mean(
        differences, confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def wilson_interval(num_successes: int, num_trials: int, *, confidence: float = 0.95) -> Interval:
    """Return a proportion and its Wilson score interval (Wilson 1927).

    Args:
        num_successes: Trials that succeeded.
        num_trials: All trials, at least 1.
        confidence: Between 0 and 1.

    Returns:
        The proportion and its interval, which lies within 0 and 1 and never has zero width.

    Raises:
        DataError: No trials, more successes than trials, or a confidence out of range.
    """
    _check_confidence(confidence)
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise DataError(
            f"{num_successes} successes of {num_trials} trials; allowed: 0 <= successes <= trials, "
            "and at least one trial."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion = num_successes / num_trials
    scale = 1 + z * z / num_trials
    center = (proportion + z * z / (2 * num_trials)) / scale
    variance = proportion * (1 - proportion) / num_trials + (z / (2 * num_trials)) ** 2
    half = z * math.sqrt(variance) / scale
    return Interval(
        estimate=proportion,
        low=0.0 if num_successes == 0 else center - half,
        high=1.0 if num_successes == num_trials else center + half,
    )


def mcnemar_exact(first: Values, second: Values) -> float:
    """Return the two-sided exact p-value that two methods are right equally often (McNemar 1947).

    Args:
        first: Whether the first method is right on each sample, shape [n].
        second: Whether the second method is right on the same samples, shape [n].

    Returns:
        The binomial probability, with 1/2, of samples on which just one is right being split at
        least as unevenly; 1 if there are none.

    Raises:
        DataError: No samples, different lengths, or values other than true and false.
    """
    right_first, right_second = _checked_pair(first, second)
    if not np.isin([right_first, right_second], (0, 1)).all():
        raise DataError("McNemar's test needs values that are true or false.")
    only_first = int(((right_first == 1) & (right_second == 0)).sum())
    only_second = int(((right_first == 0) & (right_second == 1)).sum())
    num_discordant = only_first + only_second
    term = tail = 1
    for k in range(min(only_first, only_second)):
        term = term * (num_discordant - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << num_discordant))


def _checked(values: Values) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise DataError(
            f"Statistics need one finite number per sample; got an array of shape {sample.shape}"
            f"{' with NaN or infinity' if sample.ndim == 1 and len(sample) else ''}."
        )
    return sample


def _checked_pair(first: Values, second: Values) -> tuple[NDArray[np.float64], ...]:
    pair = _checked(first), _checked(second)
    if len(pair[0]) != len(pair[1]):
        raise DataError(
            f"Paired statistics need the same samples: {len(pair[0])} and {len(pair[1])} values."
        )
    return pair


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"confidence is {confidence}; allowed: between 0 and 1, e.g. 0.95.")
