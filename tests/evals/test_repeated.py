"""pass@k and maj@k against enumeration; bootstrap tables; summaries of several samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.errors import ConfigError, DataError
from lightthinker.evals.repeated import MOST_SUBSETS, maj_at_k, pass_at_k, powers_of_two
from lightthinker.evals.runner import sample_seed
from lightthinker.evals.settings import EvalSettings
from lightthinker.evals.statistics import bootstrap_mean, bootstrap_table
from lightthinker.evals.summaries import Comparison
from lightthinker.testing.records import simulated_record


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(num: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, num))
    k = data.draw(st.integers(1, num))
    verdicts = [i < right for i in range(num)]
    subsets = list(combinations(verdicts, k))
    assert pass_at_k(num, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_known_value() -> None:
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    with pytest.raises(DataError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_maj_at_k_takes_the_most_frequent_answer_and_the_first_of_equals() -> None:
    answers, right = ["a", "b", "b", None, "c"], [True, False, False, False, False]
    assert maj_at_k(answers, right, 5) == 0
    assert maj_at_k(answers[:2], right[:2], 2) == 1
    assert maj_at_k([None, "a"], [False, True], 2) == 1
    assert maj_at_k([None, None], [False, False], 2) == 0
    # Of the ten pairs, a wins the four that hold it (it was given first).
    assert maj_at_k(answers, right, 2) == pytest.approx(4 / 10)
    with pytest.raises(DataError, match="maj@6"):
        maj_at_k(answers, right, 6)


def test_maj_at_k_of_many_subsets_is_close_to_the_truth() -> None:
    answers, right = ["a"] * 12 + ["b"] * 8, [True] * 12 + [False] * 8
    every = [sum(i < 12 for i in s) * 2 > 5 for s in combinations(range(20), 5)]
    assert len(every) > MOST_SUBSETS
    assert maj_at_k(answers, right, 5) == pytest.approx(sum(every) / len(every), abs=0.07)
    assert maj_at_k(answers, right, 5) == maj_at_k(answers, right, 5)


def test_reported_ks() -> None:
    assert powers_of_two(1) == [1]
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(8) == [1, 2, 4, 8]


def test_the_bootstrap_of_a_table_is_that_of_its_columns() -> None:
    values = np.random.default_rng(0).exponential(size=(300, 2))
    means, medians = bootstrap_table(values, num_resamples=4000)
    for column in range(2):
        alone = bootstrap_mean(values[:, column])
        assert means[column].estimate == pytest.approx(alone.estimate)
        assert means[column].low == pytest.approx(alone.low, abs=0.02)
        assert means[column].high == pytest.approx(alone.high, abs=0.02)
        assert medians[column].estimate == np.median(values[:, column])
    generator = np.random.default_rng(1)
    drawn = np.median(values[generator.integers(300, size=(4000, 300)), 0], axis=1)
    assert medians[0].low == pytest.approx(np.quantile(drawn, 0.025), abs=0.03)
    assert medians[0].high == pytest.approx(np.quantile(drawn, 0.975), abs=0.03)
    with pytest.raises(DataError, match="finite"):
        bootstrap_table(np.array([[np.nan]]))


def test_several_samples_are_summed_up_by_problem() -> None:
    right = {"full_cot": [[1, 1, 0, 0], [0, 0, 0, 0]], "lightthinker": [[1, 1, 1, 0], [1, 0, 0, 0]]}
    records = [
        simulated_record(
            f"p{p}", method=method, sample=s, correct=bool(verdict),
            answer="yes" if verdict else f"no {s}",
        )
        for method, problems in right.items()
        for p, verdicts in enumerate(problems)
        for s, verdict in enumerate(verdicts)
    ]  # fmt: skip

    comparison = Comparison.from_records(records)

    full, light = comparison.methods["full_cot"], comparison.methods["lightthinker"]
    assert (full.num_problems, full.num_samples) == (2, 4)
    assert full.accuracy == 0.25
    assert full.accuracy_ci95 == full.accuracy_bootstrap_ci95
    assert full.pass_at_k["1"] == 0.25
    assert full.pass_at_k["4"] == 0.5
    assert full.maj_at_k["4"] == 0.5
    assert light.pass_at_k["2"] == pytest.approx((1 + 0.5) / 2)
    assert comparison.paired is not None
    assert comparison.paired.accuracy_difference == 0.25
    # By majority of answers; the second problem's four answers differ, and the first one counts.
    assert (comparison.paired.num_only_method, comparison.paired.num_only_full_cot) == (1, 0)


def test_samples_have_seeds_of_their_own() -> None:
    seeds = {sample_seed(0, p, s) for p in ("a", "b") for s in (0, 1)}
    assert len(seeds) == 4
    assert sample_seed(0, "a", 0) == sample_seed(0, "a", 0) != sample_seed(1, "a", 0)


def test_several_samples_need_a_temperature() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        EvalSettings(num_samples=4)
    assert EvalSettings(num_samples=4, temperature=0.6).describe_sampling()["num_samples"] == 4
    with pytest.raises(ConfigError, match="limit is 0"):
        EvalSettings(limit=0)
    with pytest.raises(ConfigError, match="match needs lightthinker"):
        EvalSettings(methods=("full_cot", "h2o:match=mean"))
