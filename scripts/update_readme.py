"""Write the result tables into README.md from the committed files under results/.

python scripts/update_readme.py          # rewrite the tables
python scripts/update_readme.py --check  # exit 1 if README does not say what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- results: {name} -->", "<!-- end of results: {name} -->"
NAMES = {"full_cot": "full chain-of-thought", "lightthinker": "LightThinker"}


def table(name: str, results: dict[str, Any]) -> str:
    """Render one results file as Markdown."""
    if "rows" in results:
        return "\n".join([f"`results/{name}.json`: {results['device']}.", "", *rows(results)])
    title = (
        f"`results/{name}.json`: {results['num_problems']} held-out problems, {results['device']}."
    )
    lines = [title, "", "| | accuracy (95 %) | peak tokens | Dep | KV at peak |"]
    lines.append("|---|---|---|---|---|")
    for method, values in results["methods"].items():
        low, high = values["accuracy_ci95"]
        lines.append(
            f"| {NAMES.get(method, f'control: {method}')} "
            f"| {values['accuracy']:.1%} ({low:.1%} to {high:.1%}) | {values['peak_tokens']:.0f} "
            f"| {values['dep_paper']:,.0f} | {values['kv_bytes_peak'] / 2**20:.1f} MiB |"
        )
    return "\n".join([*lines, "", *families(results)])


def rows(results: dict[str, Any]) -> list[str]:
    """Render a table of rows: one line for each model, task and method."""
    lines = ["| model | task | method | budget | accuracy (95 %) | peak tokens | Dep | time, s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in results["rows"]:
        low, high = row["accuracy_ci95"]
        budget = "" if row["budget"] is None else f"{row['budget']:.0f}"
        lines.append(
            f"| {row['model']} | {row['task']} | {NAMES.get(row['method'], row['method'])} "
            f"| {budget} | {row['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {row['peak_tokens']:.0f} | {row['dep_paper']:,.0f} | {row['wall_time_s']:.1f} |"
        )
    return lines


def families(results: dict[str, Any]) -> list[str]:
    """Render accuracy by family, if there is more than one."""
    by_family = results.get("by_family", {})
    if len(by_family) < 2:
        return []
    methods = list(results["methods"])
    head = " | ".join(NAMES.get(m, m) for m in methods)
    lines = [f"| accuracy by family | {head} |", "|---" * (len(methods) + 1) + "|"]
    for family, values in by_family.items():
        cells = " | ".join(f"{values['methods'][m]['accuracy']:.1%}" for m in methods)
        lines.append(f"| {family.replace('_', ' ')} | {cells} |")
    return lines


def filled(readme: str) -> str:
    """Return the README with every table rewritten."""
    for file in sorted((ROOT / "results").glob("*.json")):
        begin, end = BEGIN.format(name=file.stem), END.format(name=file.stem)
        if begin in readme:
            results = json.loads(file.read_text(encoding="utf-8"))
            before, _, rest = readme.partition(begin)
            _, _, after = rest.partition(end)
            readme = f"{before}{begin}\n{table(file.stem, results)}\n{end}{after}"
    return readme


def main() -> None:
    """Rewrite the tables, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it would")
    options = parser.parse_args()
    current = README.read_text(encoding="utf-8")
    wanted = filled(current)
    if not options.check:
        README.write_text(wanted, encoding="utf-8")
    elif wanted != current:
        sys.exit("README.md does not say what results/ says; run this.")


if __name__ == "__main__":
    main()
