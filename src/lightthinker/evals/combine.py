"""Several result files as one comparison, e.g. of checkpoints that were trained differently.

A method that several files have is told apart by its model. With the samples of every file,
pairs across files are computed too; otherwise the summaries are put side by side as they are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightthinker.errors import DataError
from lightthinker.evals.records import SampleRecord, group_by
from lightthinker.evals.results import EvalResults
from lightthinker.evals.summaries import MEASURES, Comparison, MethodSummary


@dataclass(frozen=True, kw_only=True)
class Run:
    """A results file and its samples, if they were kept."""

    results: EvalResults
    records: Sequence[SampleRecord] = ()


def combine(runs: Sequence[Run]) -> Run:
    """Return several runs as one; its `info` is the first's.

    Raises:
        DataError: Two runs have the same method of the same model, or there are none.
    """
    if not runs:
        raise DataError("There are no results to combine.")
    if len(runs) == 1:
        return runs[0]
    renamed = _told_apart(runs)
    methods = [name for run in renamed for name in run.results.overall.methods]
    twice = [name for name, count in Counter(methods).items() if count > 1]
    if twice:
        raise DataError(
            f"{twice[0]!r} is in several of these files, of models with the same name; compare "
            "files with different methods or models."
        )
    first = renamed[0].results
    controls = {name: c for run in renamed for name, c in run.results.controls.items()}
    if all(run.records for run in renamed):
        records = [record for run in renamed for record in run.records]
        overall = [run.results.overall for run in renamed]
        results = EvalResults(
            info=first.info,
            overall=Comparison.from_records(records, _summaries(overall)),
            by_family={
                family: Comparison.from_records(
                    rows,
                    _summaries(
                        [
                            r.results.by_family[family]
                            for r in renamed
                            if family in r.results.by_family
                        ]
                    ),
                )
                for family, rows in group_by(records, "family").items()
            },
            controls=controls,
        )
        return Run(results=results, records=records)
    families = dict.fromkeys(name for run in renamed for name in run.results.by_family)
    results = EvalResults(
        info=first.info,
        overall=_side_by_side([run.results.overall for run in renamed]),
        by_family={
            family: _side_by_side(
                [r.results.by_family[family] for r in renamed if family in r.results.by_family]
            )
            for family in families
        },
        controls=controls,
    )
    return Run(results=results, records=[record for run in renamed for record in run.records])


def _summaries(comparisons: Sequence[Comparison]) -> dict[str, MethodSummary]:
    """Return the summaries that are whole: files of earlier versions lack some costs."""
    return {
        name: summary
        for comparison in comparisons
        for name, summary in comparison.methods.items()
        if set(summary.costs) == set(MEASURES)
    }


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    counts = Counter(name for run in runs for name in run.results.overall.methods)
    shared = {name for name, count in counts.items() if count > 1}
    first = {name: next(r for r in runs if name in r.results.overall.methods) for name in shared}
    out = []
    for run in runs:
        model = run.results.info.model.get("name", "model")
        names = {
            name: f"{name} @ {model}"
            for name in run.results.overall.methods
            if name in shared and first[name] is not run
        }
        out.append(_renamed(run, names) if names else run)
    return out


def _renamed(run: Run, names: dict[str, str]) -> Run:
    def comparison(c: Comparison) -> Comparison:
        return dataclasses.replace(
            c,
            methods={names.get(name, name): summary for name, summary in c.methods.items()},
            against_full_cot={names.get(n, n): pair for n, pair in c.against_full_cot.items()},
        )

    results = dataclasses.replace(
        run.results,
        overall=comparison(run.results.overall),
        by_family={name: comparison(c) for name, c in run.results.by_family.items()},
    )
    records = [dataclasses.replace(r, method=names.get(r.method, r.method)) for r in run.records]
    return Run(results=results, records=records)


def _side_by_side(comparisons: Sequence[Comparison]) -> Comparison:
    return Comparison(
        num_problems=max(c.num_problems for c in comparisons),
        methods={name: summary for c in comparisons for name, summary in c.methods.items()},
        chance=comparisons[0].chance,
        paired=next((c.paired for c in comparisons if c.paired is not None), None),
        against_full_cot={n: pair for c in comparisons for n, pair in c.against_full_cot.items()},
    )
