"""Result tables as rows, the machine-readable form that is committed under results/.

One row for each model, task and method, with exactly `ROW_KEYS`; costs are means over problems and
the time is a sum. `check_table` is the contract that every committed table keeps. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightthinker.errors import DataError
from lightthinker.evals.results import EvalResults
from lightthinker.evals.summaries import Comparison, MethodSummary

ROW_KEYS = (
    "model", "task", "method", "budget", "num_problems", "accuracy", "accuracy_ci95",
    "peak_tokens", "mean_live_tokens", "dep_paper", "dep_full", "wall_time_s",
)  # fmt: skip
"""Keys of a row, all of them and no other; `budget` is null where nothing is evicted."""

TABLE_KEYS = ("rows", "device", "versions", "command", "seed")
"""Keys that a table must have beside what else it tells."""


def table_rows(
    results: EvalResults, *, model: str | None = None, suffix: str = ""
) -> list[dict[str, Any]]:
    """Return a row for each task and method, and for all tasks together if there are several.

    Args:
        results: One run.
        model: The model's name in the table; by default the checkpoint's.
        suffix: Put behind each task's name, e.g. `/4k`.
    """
    name = model or results.info.model["name"]
    tasks: dict[str, Comparison] = dict(results.by_family)
    if len(tasks) > 1:
        tasks["all"] = results.overall
    return [
        _row(name, f"{task}{suffix}", method, summary)
        for task, comparison in tasks.items()
        for method, summary in comparison.methods.items()
    ]


def paired_rows(results: EvalResults, *, suffix: str = "") -> list[dict[str, Any]]:
    """Return every method's paired comparison with full CoT, by task."""
    tasks: dict[str, Comparison] = dict(results.by_family)
    if len(tasks) > 1:
        tasks["all"] = results.overall
    return [
        {
            "task": f"{task}{suffix}",
            "method": method,
            "accuracy_difference": pair.accuracy_difference,
            "accuracy_difference_ci95": list(pair.accuracy_difference_ci95),
            "mcnemar_p": pair.mcnemar_p,
        }
        for task, comparison in tasks.items()
        for method, pair in comparison.against_full_cot.items()
    ]


def check_table(table: Mapping[str, Any]) -> None:
    """Refuse a table that does not keep the contract.

    Raises:
        DataError: Names what is wrong.
    """
    for key in TABLE_KEYS:
        if key not in table:
            raise DataError(f"The table has no {key!r}.")
    rows: Sequence[Mapping[str, Any]] = table["rows"]
    if not rows:
        raise DataError("The table has no rows.")
    seen = set()
    for number, row in enumerate(rows):
        if set(row) != set(ROW_KEYS):
            wrong = ", ".join(sorted(set(row) ^ set(ROW_KEYS)))
            raise DataError(f"Row {number} differs from the contract in: {wrong}.")
        low, high = row["accuracy_ci95"]
        if not 0 <= low <= row["accuracy"] <= high <= 1:
            raise DataError(f"Row {number}: the interval does not hold the accuracy.")
        costs = [row[key] for key in ROW_KEYS[7:]]
        if row["num_problems"] < 1 or min(costs) < 0 or row["dep_full"] < row["dep_paper"]:
            raise DataError(f"Row {number}: a cost cannot be.")
        place = (row["model"], row["task"], row["method"], row["budget"])
        if place in seen:
            raise DataError(f"Row {number} repeats {place}.")
        seen.add(place)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    lines = [
        "| model | task | method | budget | problems | accuracy (95 %) | peak | mean live | Dep "
        "| time, s |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        low, high = row["accuracy_ci95"]
        budget = "" if row["budget"] is None else f"{row['budget']:.0f}"
        lines.append(
            f"| {row['model']} | {row['task']} | {row['method']} | {budget} "
            f"| {row['num_problems']} | {row['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {row['peak_tokens']:.0f} | {row['mean_live_tokens']:.0f} "
            f"| {row['dep_paper']:,.0f} | {row['wall_time_s']:.1f} |"
        )
    return "\n".join(lines)


def _row(model: str, task: str, method: str, summary: MethodSummary) -> dict[str, Any]:
    return {
        "model": model,
        "task": task,
        "method": method,
        "budget": summary.budget,
        "num_problems": summary.num_problems,
        "accuracy": summary.accuracy,
        "accuracy_ci95": list(summary.accuracy_ci95),
        "peak_tokens": summary.peak_tokens,
        "mean_live_tokens": summary.mean_live_tokens,
        "dep_paper": summary.dep_paper,
        "dep_full": summary.dep_full,
        "wall_time_s": summary.wall_time_s,
    }
