"""`lightthinker report`."""

from __future__ import annotations

from pathlib import Path


def report(*results: Path, output: Path | None = None, overwrite: bool = False) -> None:
    """Write the HTML report of an evaluation, or of several: one file that works offline.

    Args:
        results: Results JSON files of `lightthinker eval`, or folders that hold one each; several
            are compared in one report.
        output: Where to write; by default beside the first.
        overwrite: Replace an existing report.
    """
    from lightthinker.errors import ConfigError
    from lightthinker.evals.report import write_report

    if not results:
        raise ConfigError("Name a results file, or several.")
    print(f"Report: {write_report(results, output, overwrite=overwrite)}")
