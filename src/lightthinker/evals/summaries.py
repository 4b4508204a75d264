"""What the records of a set of problems say: one summary per method, each against full CoT.

Every number is a mean over problems (over each problem's samples first), except `wall_time_s` and
`num_truncated`, which are sums. Accuracy carries a Wilson interval while each problem was answered
once, and a bootstrap over problems in any case; costs carry bootstrap intervals. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from lightthinker.evals.records import SampleRecord, group_by
from lightthinker.evals.repeated import maj_at_k, majority, pass_at_k, powers_of_two
from lightthinker.evals.statistics import (
    bootstrap_mean,
    bootstrap_table,
    mcnemar_exact,
    paired_bootstrap_difference,
    wilson_interval,
)

FULL_COT = "full_cot"
LIGHTTHINKER = "lightthinker"

LIGHTTHINKER_NAMES = (LIGHTTHINKER, "lightthinker_thought", "lightthinker_token")

Bounds = tuple[float, float]

MEASURES: dict[str, Callable[[SampleRecord], float]] = {
    "peak_tokens": lambda r: r.stats.peak_tokens,
    "mean_live_tokens": lambda r: r.stats.mean_live_tokens,
    "dep_paper": lambda r: r.stats.dep_paper,
    "dep_full": lambda r: r.stats.dep_full,
    "kv_bytes_peak": lambda r: r.stats.kv_bytes_peak,
    "kv_bytes_area": lambda r: r.kv_bytes_area,
    "num_sampled_tokens": lambda r: r.stats.num_sampled_tokens,
    "num_generated_tokens": lambda r: r.num_generated_tokens,
    "num_visible_tokens": lambda r: r.num_visible_tokens,
    "num_thoughts": lambda r: len(r.thoughts),
    "num_compressions": lambda r: sum(thought.num_gists > 0 for thought in r.thoughts),
    "time_s": lambda r: r.time_s,
}
"""What a sample costs, by name."""


@dataclass(frozen=True, kw_only=True)
class CostSummary:
    """Bootstrap 95 % intervals over problems of one measure, and its median."""

    mean: float
    mean_ci95: Bounds
    median: float
    median_ci95: Bounds


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One method on one set of problems; means per problem unless said otherwise.

    Attributes:
        num_problems: Problems answered.
        num_samples: Samples of each problem.
        accuracy: Share of correct answers.
        accuracy_ci95: Its 95 % interval: Wilson's (never of zero width, unlike a bootstrap's) for
            one sample per problem, else the bootstrap over problems.
        accuracy_bootstrap_ci95: Its percentile bootstrap interval over problems.
        accuracy_strict: Share right as marked answers, if the grader tells.
        accuracy_flexible: Share right by lenient reading, likewise.
        pass_at_k: Unbiased pass@k, by k, for several samples per problem.
        maj_at_k: Majority vote of k samples, likewise.
        budget: Tokens an eviction method may keep, a mean over problems.
        peak_tokens: Most KV tokens live at once.
        mean_live_tokens: KV tokens live when a token is sampled.
        dep_paper: Dependency as the paper counts it.
        dep_full: Dependency with gist and continue tokens charged.
        kv_bytes_peak: Peak KV cache in bytes.
        kv_bytes_area: Bytes of live KV summed over the visible tokens.
        wall_time_s: Engine time of the whole set, a sum.
        num_sampled_tokens: Tokens sampled.
        num_generated_tokens: Tokens written after the prompt, gists included.
        num_visible_tokens: Thought, trigger and answer tokens.
        num_thoughts: Thoughts finished.
        num_compressions: Thoughts compressed.
        num_truncated: Samples that ran out of tokens, a sum.
        costs: Intervals and medians of the measures above.
    """

    num_problems: int
    num_samples: int = 1
    accuracy: float
    accuracy_ci95: Bounds
    accuracy_bootstrap_ci95: Bounds | None = None
    accuracy_strict: float | None = None
    accuracy_flexible: float | None = None
    pass_at_k: Mapping[str, float] = field(default_factory=dict)
    maj_at_k: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    peak_tokens: float
    mean_live_tokens: float
    dep_paper: float
    dep_full: float
    kv_bytes_peak: float
    kv_bytes_area: float | None = None
    wall_time_s: float
    num_sampled_tokens: float
    num_generated_tokens: float | None = None
    num_visible_tokens: float | None = None
    num_thoughts: float
    num_compressions: float | None = None
    num_truncated: int
    costs: Mapping[str, CostSummary] = field(default_factory=dict)

    @classmethod
    def from_records(cls, records: Sequence[SampleRecord]) -> MethodSummary:
        """Aggregate one method's records."""
        problems = list(group_by(records, "problem_id").values())
        num_samples = max(len(rows) for rows in problems)
        shares = [fmean(r.correct for r in rows) for rows in problems]
        bootstrap = bootstrap_mean(shares)
        interval = bootstrap
        if num_samples == 1:
            interval = wilson_interval(sum(r.correct for r in records), len(records))
        table = np.array(
            [
                [fmean(measure(r) for r in rows) for measure in MEASURES.values()]
                for rows in problems
            ]
        )
        means, medians = bootstrap_table(table)
        costs = {
            name: CostSummary(
                mean=mean.estimate, mean_ci95=(mean.low, mean.high),
                median=median.estimate, median_ci95=(median.low, median.high),
            )
            for name, mean, median in zip(MEASURES, means, medians, strict=True)
        }  # fmt: skip
        budgets = [r.budget for r in records if r.budget is not None]
        return cls(
            num_problems=len(problems),
            num_samples=num_samples,
            accuracy=bootstrap.estimate,
            accuracy_ci95=(interval.low, interval.high),
            accuracy_bootstrap_ci95=(bootstrap.low, bootstrap.high),
            accuracy_strict=_mean([r.correct_strict for r in records]),
            accuracy_flexible=_mean([r.correct_flexible for r in records]),
            pass_at_k=_pass_at(problems, num_samples),
            maj_at_k=_maj_at(problems, num_samples),
            budget=fmean(budgets) if budgets else None,
            wall_time_s=sum(r.time_s for r in records),
            num_truncated=sum(r.finish_reason == "length" for r in records),
            costs=costs,
            **{name: cost.mean for name, cost in costs.items() if name != "time_s"},
        )


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """A method against full CoT on the same problems.

    Attributes:
        accuracy_difference: The method's accuracy minus full CoT's.
        accuracy_difference_ci95: Its paired bootstrap 95 % interval.
        mcnemar_p: Exact two-sided McNemar test of the discordant problems (with several samples, of
            their majority answers).
        num_only_method: Problems that only the method gets right.
        num_only_full_cot: Problems that only full CoT gets right.
    """

    accuracy_difference: float
    accuracy_difference_ci95: Bounds
    mcnemar_p: float
    num_only_method: int
    num_only_full_cot: int

    @property
    def num_discordant(self) -> int:
        """Problems that just one of the two gets right."""
        return self.num_only_method + self.num_only_full_cot

    @classmethod
    def from_records(
        cls, method: Iterable[SampleRecord], full_cot: Iterable[SampleRecord]
    ) -> PairedComparison | None:
        """Pair the records by problem; None if they share no problem."""
        ours, theirs = group_by(method, "problem_id"), group_by(full_cot, "problem_id")
        shared = [problem for problem in ours if problem in theirs]
        if not shared:
            return None
        difference = paired_bootstrap_difference(
            [fmean(r.correct for r in ours[p]) for p in shared],
            [fmean(r.correct for r in theirs[p]) for p in shared],
        )
        right = [(_verdict(ours[p]), _verdict(theirs[p])) for p in shared]
        return cls(
            accuracy_difference=difference.estimate,
            accuracy_difference_ci95=(difference.low, difference.high),
            mcnemar_p=mcnemar_exact([a for a, _ in right], [b for _, b in right]),
            num_only_method=sum(a and not b for a, b in right),
            num_only_full_cot=sum(b and not a for a, b in right),
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All methods on one set of problems.

    Attributes:
        num_problems: Problems in the set.
        methods: Summary of each method.
        chance: Accuracy of the best constant guess, where the problems say it.
        paired: LightThinker against full CoT, if both ran.
        against_full_cot: Every other method against full CoT, if that ran.
    """

    num_problems: int
    methods: dict[str, MethodSummary]
    chance: float | None = None
    paired: PairedComparison | None = None
    against_full_cot: dict[str, PairedComparison] = field(default_factory=dict)

    @classmethod
    def from_records(
        cls, records: Sequence[SampleRecord], known: Mapping[str, MethodSummary] | None = None
    ) -> Comparison:
        """Aggregate the records of all methods.

        Args:
            records: Of all methods.
            known: Summaries of some of them that were made from the very same records.
        """
        by_method, known = group_by(records, "method"), known or {}
        methods = {
            name: known[name] if name in known else MethodSummary.from_records(rows)
            for name, rows in by_method.items()
        }
        against = {
            name: PairedComparison.from_records(rows, by_method[FULL_COT])
            for name, rows in by_method.items()
            if name != FULL_COT and FULL_COT in by_method
        }
        chances = {record.problem_id: record.chance for record in records}
        given = [chance for chance in chances.values() if chance is not None]
        return cls(
            num_problems=len(chances),
            methods=methods,
            chance=fmean(given) if len(given) == len(chances) else None,
            paired=next((pair for name, pair in against.items() if is_lightthinker(name)), None),
            against_full_cot={name: pair for name, pair in against.items() if pair is not None},
        )


def is_lightthinker(method: str) -> bool:
    """Whether a method, as written in results, is LightThinker and not a rival or a control."""
    return method.partition(":")[0] in LIGHTTHINKER_NAMES


def _verdict(samples: Sequence[SampleRecord]) -> bool:
    if len(samples) == 1:
        return samples[0].correct
    return majority([_vote(r) for r in samples], [r.correct for r in samples])


def _vote(record: SampleRecord) -> str | None:
    """Return what counts as the sample's answer: what the grader read, else its text."""
    return record.extracted_flexible or record.extracted_strict or record.answer or None


def _mean(verdicts: Sequence[bool | None]) -> float | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return fmean(known) if known and len(known) == len(verdicts) else None


def _pass_at(problems: Sequence[Sequence[SampleRecord]], num_samples: int) -> dict[str, float]:
    if num_samples == 1 or any(len(rows) != num_samples for rows in problems):
        return {}
    correct = [sum(r.correct for r in rows) for rows in problems]
    return {
        str(k): fmean(pass_at_k(num_samples, c, k) for c in correct)
        for k in powers_of_two(num_samples)
    }


def _maj_at(problems: Sequence[Sequence[SampleRecord]], num_samples: int) -> dict[str, float]:
    if num_samples == 1 or any(len(rows) != num_samples for rows in problems):
        return {}

    def of_problem(rows: Sequence[SampleRecord], k: int) -> float:
        rows = sorted(rows, key=lambda r: r.sample)
        return maj_at_k([_vote(r) for r in rows], [r.correct for r in rows], k)

    return {
        str(k): fmean(of_problem(rows, k) for rows in problems) for k in powers_of_two(num_samples)
    }


def method_summary(values: Mapping[str, Any]) -> MethodSummary:
    """Read a summary from parsed JSON; files of earlier versions lack what came later."""
    costs = {name: _with_tuples(CostSummary, v) for name, v in values.get("costs", {}).items()}
    summary: MethodSummary = _with_tuples(MethodSummary, {**values, "costs": costs})
    return summary


def comparison(values: Mapping[str, Any]) -> Comparison:
    """Read a comparison from parsed JSON."""
    paired = values.get("paired")
    against = values.get("against_full_cot", {})
    return Comparison(
        num_problems=values["num_problems"],
        methods={name: method_summary(v) for name, v in values["methods"].items()},
        chance=values.get("chance"),
        paired=None if paired is None else _with_tuples(PairedComparison, paired),
        against_full_cot={n: _with_tuples(PairedComparison, v) for n, v in against.items()},
    )


def _with_tuples(cls: type, values: Mapping[str, Any]) -> Any:
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
