"""`lightthinker report`."""

from __future__ import annotations

from pathlib import Path


def report(results: Path, /, *, output: Path | None = None, overwrite: bool = False) -> None:
    """Write the HTML report of an evaluation: one file that works offline.

    Args:
        results: A results JSON file of `lightthinker eval`, or the folder that holds it.
        output: Where to write; by default beside the results.
        overwrite: Replace an existing report.
    """
    from lightthinker.evals.report import write_report

    print(f"Report: {write_report(results, output, overwrite=overwrite)}")
