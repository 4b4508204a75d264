"""Which samples a report shows, and what each method did on them: where it parted from the truth.

A report embeds the first problems of every family and some on which methods disagree, up to a
budget of text, so that a run of any size gives a page that opens at once; it says how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightthinker.engine.outputs import ThoughtStats
from lightthinker.evals import tables
from lightthinker.evals.charts import sparkline
from lightthinker.evals.records import SampleRecord, group_by
from lightthinker.evals.summaries import FULL_COT, is_lightthinker

SAMPLES_PER_FAMILY = 6
MOST_DISAGREEMENTS = 20
MOST_CHARACTERS = 4_000_000
CONTROLS = ("gists_blanked",)


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """One method's answer to a problem.

    Attributes:
        record: The sample.
        label: The method as people write it.
        spark: Path of its live KV in a box of 100 by 100.
        thoughts: Finished thoughts.
        rest: What follows them.
        parts_at: Where the answer is wrong and another method's is right: the first thought that
            the two do not share, from 0.
        parts_from: Label of that other method.
    """

    record: SampleRecord
    label: str
    spark: str
    thoughts: tuple[ThoughtStats, ...]
    rest: str
    parts_at: int | None = None
    parts_from: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One problem and what each method made of it.

    Attributes:
        question: As asked.
        reference: The expected answer.
        runs: LightThinker's first, then full CoT's, then the others'.
        differ: Full CoT and LightThinker disagree.
        disagree: Any two methods disagree, controls aside.
        wrong: Full CoT or LightThinker is wrong.
        highest: Largest KV, in tokens, of the sparklines' box.
        longest: Largest number of sampled tokens, likewise.
    """

    question: str
    reference: str
    runs: tuple[SampleRun, ...]
    differ: bool
    disagree: bool
    wrong: bool
    highest: int
    longest: int


def by_problem(records: Iterable[SampleRecord]) -> list[list[SampleRecord]]:
    """Return each problem's records, one for each method: the first sample."""
    first = [record for record in records if record.sample == 0]
    return list(group_by(first, "problem_id").values())


def is_compared(method: str) -> bool:
    """Whether a method is one of the two that the report is about."""
    return method == FULL_COT or is_lightthinker(method)


def choose_samples(problems: Sequence[Sequence[SampleRecord]]) -> dict[str, list[Sample]]:
    """Return the first problems of each family, and those on which the methods disagree."""
    shown: dict[str, list[Sample]] = {}
    disagreements = characters = 0
    for rows in problems:
        family = shown.setdefault(rows[0].family, [])
        if len(family) >= SAMPLES_PER_FAMILY:
            if not _differ(rows, compared_only=True) or disagreements >= MOST_DISAGREEMENTS:
                continue
            disagreements += 1
        size = sum(len(r.text) + len(r.question) for r in rows)
        if family and characters + size > MOST_CHARACTERS:
            continue
        characters += size
        family.append(_sample(rows))
    return shown


def _differ(rows: Sequence[SampleRecord], *, compared_only: bool) -> bool:
    verdicts = {
        r.correct
        for r in rows
        if (is_compared(r.method) if compared_only else r.method.split(":")[0] not in CONTROLS)
    }
    return len(verdicts) > 1


def _sample(rows: Sequence[SampleRecord]) -> Sample:
    highest = max(y for record in rows for _, y in record.kv_curve)
    longest = max(x for record in rows for x, _ in record.kv_curve)
    ordered = sorted(rows, key=lambda r: (not is_lightthinker(r.method), r.method != FULL_COT))
    right = [r for r in rows if r.correct]
    right.sort(key=lambda r: (r.method != FULL_COT, not is_lightthinker(r.method)))
    runs = []
    for record in ordered:
        other = right[0] if right and not record.correct else None
        runs.append(
            SampleRun(
                record=record,
                label=tables.label(record.method),
                spark=sparkline(record, highest=highest, longest=longest),
                thoughts=record.thoughts,
                rest=record.answer,
                parts_at=None if other is None else first_difference(record, other),
                parts_from="" if other is None else tables.label(other.method),
            )
        )
    return Sample(
        question=rows[0].question, reference=rows[0].reference, runs=tuple(runs),
        differ=_differ(rows, compared_only=True), disagree=_differ(rows, compared_only=False),
        wrong=not all(r.correct for r in rows if is_compared(r.method)), highest=highest,
        longest=longest,
    )  # fmt: skip


def first_difference(record: SampleRecord, other: SampleRecord) -> int:
    """Return the first thought that two samples do not share, or the number of shared ones."""
    ours, theirs = record.thoughts, other.thoughts
    shared = 0
    while shared < min(len(ours), len(theirs)) and ours[shared].text == theirs[shared].text:
        shared += 1
    return shared
