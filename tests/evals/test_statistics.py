from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.errors import DataError
from lightthinker.evals.statistics import (
    Interval,
    bootstrap_mean,
    mcnemar_exact,
    paired_bootstrap_difference,
    wilson_interval,
)


def test_bootstrap_agrees_with_all_possible_resamples() -> None:
    values = [0.0, 1.0, 2.0, 4.0, 10.0, 11.0]
    means = sorted(sum(drawn) / 6 for drawn in itertools.product(values, repeat=6))
    interval = bootstrap_mean(values, num_resamples=40_000)
    assert interval.estimate == pytest.approx(14 / 3)
    assert interval.low == pytest.approx(means[int(0.025 * len(means))], abs=0.2)
    assert interval.high == pytest.approx(means[int(0.975 * len(means))], abs=0.2)


def test_bootstrap_in_chunks_is_a_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=5000)
    interval = bootstrap_mean(values, num_resamples=2000)
    assert interval.low == pytest.approx(values.mean() - 1.96 * values.std() / 5000**0.5, abs=3e-3)
    assert interval.high == pytest.approx(values.mean() + 1.96 * values.std() / 5000**0.5, abs=3e-3)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        sample = generator.normal(size=60)
        interval = bootstrap_mean(sample, confidence=0.9, num_resamples=300, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 0.84 < covered / 400 < 0.94


def test_bootstrap_follows_its_seed_and_confidence() -> None:
    values = np.arange(30.0)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    narrow, wide = bootstrap_mean(values, confidence=0.5), bootstrap_mean(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_bootstrap_of_one_value_has_no_width() -> None:
    assert bootstrap_mean([3.0]) == Interval(estimate=3.0, low=3.0, high=3.0)


def test_paired_difference_removes_what_the_pairs_share() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(scale=10, size=500)
    first = difficulty + 0.5 + generator.normal(scale=0.1, size=500)
    interval = paired_bootstrap_difference(first, difficulty)
    assert 0.45 < interval.low < interval.estimate < interval.high < 0.55
    mirrored = paired_bootstrap_difference(difficulty, first)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-2)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_known_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert interval.estimate == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_are_where_the_score_test_turns(counts: tuple[int, int]) -> None:
    successes, trials = counts
    interval = wilson_interval(successes, trials)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    for bound in {interval.low, interval.high} - {0.0, 1.0}:
        deviation = abs(interval.estimate - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert deviation == pytest.approx(1.959964, rel=1e-4)


def right_on(only_first: int, only_second: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(True, True), (False, False)]
    return [first for first, _ in pairs], [second for _, second in pairs]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(1, 9, 22 / 1024), (0, 6, 2 / 64), (5, 5, 1.0), (0, 0, 1.0), (0, 1, 1.0), (0, 1200, 2**-1199)],
)
def test_mcnemar_known_values(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_exact(*right_on(only_first, only_second)) == pytest.approx(p_value, abs=0)


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_counts_all_splits_at_least_as_uneven(only_first: int, only_second: int) -> None:
    num = only_first + only_second
    uneven = abs(only_first - only_second)
    splits = [math.comb(num, k) for k in range(num + 1) if abs(num - 2 * k) >= uneven]
    assert mcnemar_exact(*right_on(only_first, only_second)) == sum(splits) / 2**num


@pytest.mark.parametrize("values", [[], [[1.0]], [float("nan")], [1.0, float("inf")]])
def test_values_that_are_not_one_number_per_sample(values: list[float]) -> None:
    with pytest.raises(DataError, match="one finite number per sample"):
        bootstrap_mean(values)


def test_other_bad_input() -> None:
    with pytest.raises(DataError, match="2 and 1 values"):
        paired_bootstrap_difference([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="2 and 1 values"):
        mcnemar_exact([True, True], [True])
    with pytest.raises(DataError, match="true or false"):
        mcnemar_exact([0.5], [1.0])
    with pytest.raises(DataError, match=r"confidence is 95"):
        bootstrap_mean([1.0], confidence=95)
    with pytest.raises(DataError, match="num_resamples is 0"):
        bootstrap_mean([1.0], num_resamples=0)
    with pytest.raises(DataError, match="3 successes of 2 trials"):
        wilson_interval(3, 2)
    with pytest.raises(DataError, match="0 successes of 0 trials"):
        wilson_interval(0, 0)


def test_intervals_print_shortly() -> None:
    assert str(Interval(estimate=0.5, low=0.236593, high=0.763407)) == "0.5 [0.2366, 0.7634]"
