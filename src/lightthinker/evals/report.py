"""The HTML report of an evaluation: one file, no scripts, nothing loaded from anywhere.

Model output is hostile until escaped: every text goes through jinja2's autoescape, and the
page's content security policy forbids scripts and any request. Numbers are the results file's;
drawings come from `charts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightthinker.engine.outputs import ThoughtStats
from lightthinker.errors import DataError
from lightthinker.evals import tables
from lightthinker.evals.charts import accuracy_chart, kv_chart, sparkline
from lightthinker.evals.records import (
    SampleRecord,
    group_by,
    read_samples,
    samples_path,
    write_text,
)
from lightthinker.evals.results import EvalResults, read_results
from lightthinker.evals.summaries import FULL_COT, LIGHTTHINKER, Comparison

SAMPLES_PER_FAMILY = 6
MOST_DISAGREEMENTS = 20
LONGEST_TEXT = 20_000


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline measure: LightThinker beside full CoT, with bars in proportion."""

    title: str
    help: str
    value: str
    baseline: str
    change: str
    share: float
    baseline_share: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method's answer to a problem."""

    record: SampleRecord
    label: str
    spark: str
    thoughts: tuple[ThoughtStats, ...]
    rest: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One problem and what each method made of it."""

    question: str
    reference: str
    runs: tuple[Run, ...]
    differ: bool
    wrong: bool


def render_report(results: EvalResults, records: Sequence[SampleRecord] = ()) -> str:
    """Return the report as HTML.

    Args:
        results: The aggregates.
        records: Per-sample records; without them the report has no sample charts and no drill-down.
    """
    environment = Environment(
        loader=PackageLoader("lightthinker.evals"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "count": tables.count,
        "percent": tables.percent,
        "interval": tables.interval,
        "points": tables.points,
        "duration": tables.duration,
        "data_size": tables.data_size,
        "change": tables.change,
        "label": tables.label,
        "control": tables.control,
        "clip": _clip,
    }
    problems = _by_problem(records)
    example = _typical(problems)
    peaks = {name: s.peak_tokens for name, s in results.overall.methods.items()}
    shown = _first_two(peaks)
    charts = []
    if example:
        lines = [record for record in example if record.method in shown]
        means = {name: peaks[name] for name in shown}
        charts = [kv_chart(lines, means, width=w, height=h) for w, h in ((860, 330), (370, 290))]
    return environment.get_template("report.html").render(
        results=results,
        title=_title(results),
        tiles=_tiles(results.overall),
        rows=tables.headline_rows(results.overall),
        columns=tables.COLUMNS,
        verdict=tables.verdict(results.overall),
        families=results.by_family if len(results.by_family) > 1 else {},
        kv_charts=charts,
        example=example,
        accuracy_charts=[
            accuracy_chart(results.overall, results.by_family, width=w, height=h)
            for w, h in ((860, 340), (370, 300))
        ],
        samples=_samples(problems),
        num_problems=len(problems),
    )


def write_report(
    results_path: Path, output: Path | None = None, *, overwrite: bool = False
) -> Path:
    """Write the report of a results file, with its per-sample records if they lie beside it.

    Args:
        results_path: A results JSON file, or a folder that holds one.
        output: Where to write; by default beside the results, as `.html`.
        overwrite: Replace an existing report.

    Returns:
        The report's path.

    Raises:
        DataError: There are no results to be read.
        ConfigError: The report exists and `overwrite` is false.
    """
    path = _find_results(results_path)
    samples = samples_path(path)
    records = read_samples(samples) if samples.is_file() else []
    target = output or path.with_suffix(".html")
    write_text(target, render_report(read_results(path), records), overwrite=overwrite)
    return target


def _find_results(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"There is no results file or folder {path}.")
    found = sorted(path.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{path} must hold one results JSON file; it holds {names}.")
    return found[0]


def _title(results: EvalResults) -> str:
    return f"{results.info.model.get('name', 'model')} on {results.info.benchmark['name']}"


def _first_two(methods: Iterable[str]) -> list[str]:
    names = list(methods)
    return [name for name in (FULL_COT, LIGHTTHINKER) if name in names] or names[:2]


def _tiles(overall: Comparison) -> list[Tile]:
    methods = overall.methods
    if FULL_COT not in methods or LIGHTTHINKER not in methods or overall.paired is None:
        return []
    tiles = []
    for column in tables.COLUMNS[:4]:
        ours, base = column.value(methods[LIGHTTHINKER]), column.value(methods[FULL_COT])
        largest = 1.0 if column.name == "accuracy" else max(ours, base, 1e-9)
        changed = tables.change(ours / base) if base else ""
        if column.name == "accuracy":
            changed = f"{tables.points(overall.paired.accuracy_difference)} points"
        tiles.append(
            Tile(
                title=column.title, help=column.help, value=column.text(ours),
                baseline=column.text(base), change=changed, share=100 * ours / largest,
                baseline_share=100 * base / largest,
            )
        )  # fmt: skip
    return tiles


def _by_problem(records: Iterable[SampleRecord]) -> list[list[SampleRecord]]:
    return list(group_by(records, "problem_id").values())


def _typical(problems: Sequence[Sequence[SampleRecord]]) -> Sequence[SampleRecord] | None:
    """Return the problem of average peak among those that all shown methods get right, if any."""
    if not problems:
        return None
    shown = _first_two({record.method: None for rows in problems for record in rows})
    good = [
        rows for rows in problems if all(r.correct for r in rows if r.method in shown)
    ] or problems
    peaks = [max(record.stats.peak_tokens for record in rows) for rows in good]
    middle = fmean(peaks)
    return min(zip(peaks, good, strict=True), key=lambda pair: abs(pair[0] - middle))[1]


def _samples(problems: Sequence[Sequence[SampleRecord]]) -> dict[str, list[Sample]]:
    """Return the first problems of each family, and those on which the methods disagree."""
    shown: dict[str, list[Sample]] = {}
    disagreements = 0
    for rows in problems:
        family = shown.setdefault(rows[0].family, [])
        compared = [r.correct for r in rows if r.method in (FULL_COT, LIGHTTHINKER)]
        differ = len(set(compared)) > 1
        if len(family) >= SAMPLES_PER_FAMILY:
            if not differ or disagreements >= MOST_DISAGREEMENTS:
                continue
            disagreements += 1
        family.append(_sample(rows, differ))
    return shown


def _sample(rows: Sequence[SampleRecord], differ: bool) -> Sample:
    highest = max(y for record in rows for _, y in record.kv_curve)
    longest = max(x for record in rows for x, _ in record.kv_curve)
    ordered = sorted(rows, key=lambda r: (r.method != LIGHTTHINKER, r.method != FULL_COT))
    runs = tuple(
        Run(
            record=record,
            label=tables.label(record.method),
            spark=sparkline(record, highest=highest, longest=longest),
            thoughts=record.thoughts,
            rest=record.answer,
        )
        for record in ordered
    )
    wrong = not all(r.correct for r in rows if r.method in (FULL_COT, LIGHTTHINKER))
    return Sample(
        question=rows[0].question, reference=rows[0].reference, runs=runs, differ=differ,
        wrong=wrong,
    )  # fmt: skip


def _clip(text: Any, longest: int = LONGEST_TEXT) -> str:
    text = str(text)
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more)"
