"""Write the result tables into README.md, docs/ and benchmarks/README.md from results/.

    python scripts/update_readme.py          # rewrite the tables
    python scripts/update_readme.py --check  # exit 1 if a document does not say what the files say

A table stands between two marks, `<!-- results: NAME -->` and `<!-- end of results: NAME -->`.
NAME is a file under results/ without its ending, one of its views (`bench_decode/profile`),
its command (`bench_decode/command`), or `files` for a list of them all.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from result_tables import render

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- results: "
BLOCK = re.compile(r"<!-- results: (\S+) -->\n.*?<!-- end of results: \1 -->", re.DOTALL)


def documents(root: Path) -> list[Path]:
    """Return the documents that may have marked blocks."""
    return [
        root / "README.md",
        *sorted((root / "docs").glob("*.md")),
        root / "benchmarks/README.md",
    ]


def filled(text: str, results: Path) -> str:
    """Return a document with every table rewritten.

    Raises:
        ValueError: A mark names no results, or has no end.
    """
    if len(BLOCK.findall(text)) != text.count(BEGIN):
        raise ValueError("a results mark has no end")

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"{BEGIN}{name} -->\n{render(name, results)}\n<!-- end of results: {name} -->"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    options = parser.parse_args(arguments)
    stale = []
    for document in documents(root):
        if not document.is_file():
            continue
        name, current = document.relative_to(root), document.read_text(encoding="utf-8")
        try:
            wanted = filled(current, root / "results")
        except ValueError as error:
            sys.exit(f"error: {name}: {error}.")
        if wanted == current:
            continue
        stale.append(str(name))
        if not options.check:
            document.write_text(wanted, encoding="utf-8")
            print(f"rewrote {name}")
    if options.check and stale:
        sys.exit(f"{', '.join(stale)}: not what results/ says; run scripts/update_readme.py.")


if __name__ == "__main__":
    main()
