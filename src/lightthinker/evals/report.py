"""The HTML report of an evaluation: one file, no scripts, nothing loaded from anywhere.

Model output is hostile until escaped: every text goes through jinja2's autoescape, and the
page's content security policy forbids scripts and any request. Numbers are the results file's;
drawings come from `charts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightthinker.errors import DataError
from lightthinker.evals import paper, tables
from lightthinker.evals.charts import accuracy_chart, kv_chart
from lightthinker.evals.combine import Run, combine
from lightthinker.evals.distribution_charts import band_chart, histogram
from lightthinker.evals.records import (
    SampleRecord,
    group_by,
    read_samples,
    samples_path,
    write_text,
)
from lightthinker.evals.report_samples import by_problem, choose_samples
from lightthinker.evals.results import EvalResults, RunInfo, read_results
from lightthinker.evals.summaries import FULL_COT, LIGHTTHINKER, Comparison, is_lightthinker

LONGEST_TEXT = 20_000
NUM_COLORS = 8


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


def render_report(
    results: EvalResults,
    records: Sequence[SampleRecord] = (),
    infos: Sequence[RunInfo] = (),
) -> str:
    """Return the report as HTML.

    Args:
        results: The aggregates.
        records: Per-sample records; without them the report has no sample charts and no drill-down.
        infos: How each of several combined runs came about; empty: there is one.
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
        "p_value": tables.p_value,
        "label": tables.label,
        "control": tables.control,
        "clip": _clip,
    }
    overall = results.overall
    environment.filters["series"] = _series(overall.methods).__getitem__
    problems = by_problem(records)
    example = _typical(problems)
    peaks = {name: s.peak_tokens for name, s in overall.methods.items()}
    shown = _first_two(peaks)
    charts = []
    if example:
        lines = [record for record in example if record.method in shown]
        means = {name: peaks[name] for name in shown}
        charts = [kv_chart(lines, means, width=w, height=h) for w, h in ((860, 330), (370, 290))]
    by_method = {name: rows for name, rows in group_by(records, "method").items() if name in peaks}
    folding = next((name for name in by_method if is_lightthinker(name)), "")
    compressed = [r for r in by_method.get(folding, ()) if any(t.num_gists for t in r.thoughts)]
    families = results.by_family if len(results.by_family) > 1 else {}
    return environment.get_template("report.html").render(
        results=results,
        infos=list(infos) or [results.info],
        title=_title(results),
        tiles=_tiles(overall),
        rows=tables.headline_rows(overall),
        columns=tables.COLUMNS,
        verdict=tables.verdict(overall),
        unfinished=tables.unfinished(overall),
        families=families,
        kv_charts=charts,
        example=example,
        accuracy_charts=[
            accuracy_chart(overall, families if len(peaks) <= 3 else {}, width=w, height=h)
            for w, h in ((860, 360), (370, 340))
        ],
        band_charts=[
            band_chart(by_method, width=w, height=h) for w, h in ((860, 340), (370, 300))
        ] if by_method else [],
        histograms=[
            histogram(folding, compressed, width=w, height=h) for w, h in ((860, 240), (370, 220))
        ] if compressed else [],
        paper=_paper_rows(overall),
        paper_source=paper,
        samples=choose_samples(problems),
        num_problems=len(problems),
        several=max(s.num_samples for s in overall.methods.values()) > 1,
    )  # fmt: skip


def write_report(
    results_paths: Path | Sequence[Path], output: Path | None = None, *, overwrite: bool = False
) -> Path:
    """Write the report of results files, with the per-sample records that lie beside them.

    Args:
        results_paths: Results JSON files, or folders that hold one each; several are compared.
        output: Where to write; by default beside the first, as `.html`.
        overwrite: Replace an existing report.

    Returns:
        The report's path.

    Raises:
        DataError: There are no results to be read, a file is half-written, or files are of
            different problems.
        ConfigError: The report exists and `overwrite` is false.
    """
    given = [results_paths] if isinstance(results_paths, Path) else list(results_paths)
    paths = [_find_results(path) for path in given]
    runs = []
    for path in paths:
        samples = samples_path(path)
        records = read_samples(samples) if samples.is_file() else []
        runs.append(Run(results=read_results(path), records=records))
    _check_same_problems(paths, runs)
    together = combine(runs)
    target = output or paths[0].with_suffix(".html")
    html = render_report(together.results, together.records, [run.results.info for run in runs])
    write_text(target, html, overwrite=overwrite)
    return target


def _check_same_problems(paths: Sequence[Path], runs: Sequence[Run]) -> None:
    for path, run in zip(paths[1:], runs[1:], strict=True):
        first, other = ({(r.problem_id, r.question) for r in x.records} for x in (runs[0], run))
        sizes = [
            {n: c.num_problems for n, c in x.results.by_family.items()} for x in (runs[0], run)
        ]
        if sizes[0] == sizes[1] and (first == other or not (first and other)):
            continue
        raise DataError(
            f"{paths[0]} ({_problems(sizes[0])}) and {path} ({_problems(sizes[1])}) are not of the "
            "same problems, so their methods cannot be compared. Run both with the same --tasks, "
            "prompt style, --num-problems, --seed and --difficulty."
        )


def _problems(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in sizes.items())


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


def _light(methods: Iterable[str]) -> str:
    """Return LightThinker's name among the methods, as it was written."""
    return next((name for name in methods if is_lightthinker(name)), LIGHTTHINKER)


def _first_two(methods: Iterable[str]) -> list[str]:
    names = list(methods)
    return [name for name in (FULL_COT, _light(names)) if name in names] or names[:2]


def _tiles(overall: Comparison) -> list[Tile]:
    methods, light = overall.methods, _light(overall.methods)
    if FULL_COT not in methods or light not in methods or overall.paired is None:
        return []
    tiles = []
    for column in tables.COLUMNS[:4]:
        ours, base = column.value(methods[light]), column.value(methods[FULL_COT])
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


def _series(methods: Iterable[str]) -> dict[str, str]:
    """Return a class, and so a color, for every method; the same in all charts."""
    names = list(methods)
    light = _light(names)
    others = [name for name in names if name not in (FULL_COT, light)]
    classes = {name: f"s{i % NUM_COLORS}" for i, name in enumerate(others)}
    return {FULL_COT: FULL_COT, light: LIGHTTHINKER, **classes}


def _paper_rows(overall: Comparison) -> list[dict[str, Any]]:
    """Return our numbers beside the paper's, each with its change against its own full CoT."""
    baseline = overall.methods.get(FULL_COT)
    rows = []
    for name, ours in overall.methods.items():
        theirs = paper.paper_numbers(name)
        if theirs is None:
            continue
        cells = [
            (
                numbers,
                numbers.accuracy - full.accuracy,
                numbers.peak_tokens / full.peak_tokens,
                numbers.dep / full.dep,
            )
            for numbers, full in zip(theirs, paper.PAPER[FULL_COT], strict=True)
        ]
        own = None
        if baseline is not None and baseline is not ours:
            own = (
                ours.accuracy - baseline.accuracy,
                ours.peak_tokens / baseline.peak_tokens,
                ours.dep_paper / max(baseline.dep_paper, 1e-9),
            )
        rows.append({"method": name, "ours": ours, "own": own, "theirs": cells})
    return rows


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


def _clip(text: Any, longest: int = LONGEST_TEXT) -> str:
    text = str(text)
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more)"
