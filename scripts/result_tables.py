"""Render the committed files under results/ as Markdown, for scripts/update_readme.py.

A name is a file's, `bench_decode`, or one of its views, `bench_decode/profile` (see `VIEWS`). Knows
nothing of the documents that show the tables.
"""

from __future__ import annotations

import json
from pathlib import Path

import benchmark_tables
import evaluation_tables
import kernel_tables
from tables import Results, grid, load

VIEWS = {**evaluation_tables.VIEWS, **benchmark_tables.VIEWS, **kernel_tables.VIEWS}
ROWS = {**benchmark_tables.ROWS, **kernel_tables.ROWS}
"""Further views of a file, beside `NAME/command`; how the rows of a benchmark are rendered."""


def render(name: str, folder: Path) -> str:
    """Return the Markdown for a name.

    Raises:
        ValueError: There is no such file or view.
    """
    stem, _, view = name.partition("/")
    if name == "files":
        return files(folder)
    if not (folder / f"{stem}.json").is_file():
        raise ValueError(f"results/{stem}.json does not exist")
    if view == "command":
        return f"```bash\n{load(folder, stem)['command']}\n```"
    if name in VIEWS:
        return VIEWS[name](folder)
    if view:
        raise ValueError(f"no view {name!r}; there are {', '.join(sorted(VIEWS))}")
    results = load(folder, stem)
    return (rows if "rows" in results else evaluation_tables.methods)(stem, results)


def rows(name: str, results: Results) -> str:
    """Render a table of rows: a benchmark's, or one row for each model, task and method."""
    render_rows = ROWS.get(name, evaluation_tables.task_rows)
    return "\n".join([f"`results/{name}.json`: {results['device']}.", "", *render_rows(results)])


def files(folder: Path) -> str:
    """List the results: device and command of each."""
    lines = []
    for file in sorted(folder.rglob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        device = results.get("device") or results["machine"]
        lines.append((f"`{file.relative_to(folder)}`", device, f"`{results['command']}`"))
    return "\n".join(grid(["file", "device", "command"], lines))
