"""Write the page's example questions: one held-out problem of each task family.

python scripts/update_page_examples.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lightthinker.tasks import generate

PATH = Path(__file__).parents[1] / "src" / "lightthinker" / "server" / "static" / "examples.json"
# The last seed before those of the evaluation; training draws by other means and never meets it.
SEED = 2**40 - 1
CHOSEN = (
    ("programs", "Run a program", "demo"),
    ("programs", "Run a longer one", "standard"),
    ("multiplication", "Multiply", "standard"),
    ("register_machine", "Follow jumps", "standard"),
    ("word_problems", "Word problem", "demo"),
    ("entity_tracking", "Who has what", "demo"),
)


def examples() -> list[dict[str, str]]:
    """Return the questions with their families, titles and right answers."""
    found = []
    for family, title, difficulty in CHOSEN:
        problem = generate(family, seed=SEED, difficulty=difficulty)
        found.append(
            {"family": family, "title": title, "question": problem.question, "value": problem.value}
        )
    return found


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    text = json.dumps({"examples": examples()}, indent=1, ensure_ascii=False)
    PATH.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
