r"""Where reasoning about `programs` goes wrong first: what kind of line, and how old what it needs.

    python scripts/first_errors.py 2k=runs/reproduce/full/long_reasoning/full_cot_2k.samples.jsonl \
        --output results/first_errors.json

Reads the samples that `scripts/reproduce.py` leaves. A correct trace states, line by line, the
program's next statement, the values it reads, and the result, so the first line that is not what it
should be says what failed: another `statement` than the program's next one, a value that was
computed right before and is read wrong now (`mixed_up`: as the value of another variable; `value`:
as anything else; `age` is how many lines ago it was computed), the `arithmetic` of right values, or
the `ending`: traces that are right and stop early, or answer something else.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lightthinker.evals.records import SampleRecord, read_samples, write_text
from lightthinker.evals.results import package_versions

KINDS = ("statement", "mixed_up", "value", "arithmetic", "ending")
ASSIGNMENT = re.compile(r"(\w+)=(\w+)\*(\d+)([+-])(\w+)$")


def first_error(question: str, text: str) -> tuple[str, int | None]:
    """Return the kind of a wrong trace's first error, and how many lines ago its value was made.

    Args:
        question: A problem of the family `programs`.
        text: The trace, thoughts between blank lines.
    """
    modulus = int(question.split()[2].rstrip(":"))
    statements = question.splitlines()[1:-1]
    values: dict[str, int] = {}
    line_of: dict[str, int] = {}
    thoughts = iter(text.partition("</think>")[0].strip().split("\n\n"))
    number = 0
    for statement in statements:
        computed = ASSIGNMENT.match(statement)
        if computed is None:
            name, _, value = statement.partition("=")
            values[name] = int(value)
            line_of[name] = number
            continue
        number += 1
        name, left, factor, sign, right = computed.groups()
        result = values[left] * int(factor) + (1 if sign == "+" else -1) * values[right]
        thought = next(thoughts, "")
        stated, _, rest = thought.partition(";")
        if not thought:
            return "ending", None
        if stated != statement:
            return "statement", None
        for variable in (left, right):
            if kind := misread(variable, values, rest):
                return kind, number - line_of[variable]
        if not rest.endswith(f";{name}={result % modulus}"):
            return "arithmetic", None
        values[name] = result % modulus
        line_of[name] = number
    wanted = re.findall(r"\w+", question.splitlines()[-1])[1:]
    last = next(thoughts, "")
    for variable in wanted:
        if last and (kind := misread(variable, values, last)):
            return kind, number + 1 - line_of[variable]
    return "ending", None


def misread(variable: str, values: dict[str, int], line: str) -> str | None:
    """Return how a line misreads a variable, if it does."""
    parts = re.split(r"[;:]", line)
    if f"{variable}={values[variable]}" in parts:
        return None
    read = [part.partition("=")[2] for part in parts if part.startswith(f"{variable}=")]
    others = {str(value) for name, value in values.items() if name != variable}
    return "mixed_up" if read and read[0] in others else "value"


def row(name: str, records: Sequence[SampleRecord]) -> dict[str, Any]:
    """Count the first errors of one method's samples."""
    wrong = [record for record in records if not record.correct]
    errors = [first_error(record.question, record.text) for record in wrong]
    kinds = Counter(kind for kind, _ in errors)
    ages = [age for _, age in errors if age is not None]
    return {
        "setting": name,
        "method": records[0].method,
        "num_problems": len(records),
        "num_wrong": len(wrong),
        **{f"first_{kind}": kinds[kind] for kind in KINDS},
        "median_age": median(ages) if ages else None,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", nargs="+", metavar="SETTING=FILE")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for item in options.samples:
        name, _, path = item.partition("=")
        records = [r for r in read_samples(Path(path)) if r.family == "programs"]
        if not records:
            sys.exit(f"error: {path} has no problems of the family programs.")
        rows.append(row(name, records))
    results = {
        "device": "the samples' (see the tables that they belong to); counted on a CPU",
        "versions": package_versions(),
        "command": shlex.join(["python", "scripts/first_errors.py", *(arguments or sys.argv[1:])]),
        "seed": 0,
        "errors": rows,
    }
    if options.output:
        write_text(options.output, json.dumps(results, indent=1) + "\n", overwrite=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
