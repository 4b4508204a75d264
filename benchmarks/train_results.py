"""`results/bench_train.json`: rows of several runs in one file.

Runs may go on at once, on other GPUs: each merges its rows under a lock. A row replaces an older
one of the same model, mask, packing, number of GPUs and way of running.
"""

from __future__ import annotations

import fcntl
import json
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lightthinker.evals.results import package_versions

KEY = ("model", "mask", "packing", "gpus", "compiled", "through")
RATIOS = (
    ("processed_over_causal_flash", "causal_flash", "processed_tokens_per_s", True),
    ("useful_over_dense_padded", "dense_padded", "useful_tokens_per_s", False),
    ("useful_over_dense_padded_compiled", "dense_padded", "useful_tokens_per_s", True),
)
"""Name, the row that lifetimes_flex is compared with, of what, and whether that is compiled."""


def where() -> dict[str, Any]:
    """Return device, versions and command of this run."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "versions": package_versions(),
        "command": shlex.join(["python", *sys.argv]),
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the ratios of each model's rows that were measured alike, by its name."""
    found: dict[str, dict[str, float]] = {}
    measured = [r for r in rows if r["through"] == "loop" and r["processed_tokens_per_s"]]
    for row in measured:
        if row["mask"] != "lifetimes_flex":
            continue
        for name, mask, key, compiled in RATIOS:
            for other in measured:
                alike = other["model"] == row["model"] and other["gpus"] == row["gpus"]
                if alike and other["mask"] == mask and other["compiled"] == compiled:
                    at = found.setdefault(row["model"], {})
                    at[name] = round(row[key] / other[key], 3)
    return found


def merge(file: Path, rows: list[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """Put rows into a results file, with the command, device and versions they come from.

    Args:
        file: Made if it is not there.
        rows: With the entries of `KEY`.
        run: Settings of the run besides what `where` says.

    Returns:
        The whole file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    name = str(file.absolute()).replace("/", "_") + ".lock"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        source = where()
        stamped = [row | {name: source[name] for name in ("device", "command")} for row in rows]
        new = {tuple(row[name] for name in KEY) for row in stamped}
        kept = [r for r in content.get("rows", []) if tuple(r[name] for name in KEY) not in new]
        commands = {row["command"] for row in (*kept, *stamped)}
        runs = [r for r in content.get("runs", []) if r["command"] in commands]
        runs = [r for r in runs if r["command"] != source["command"]] + [source | run]
        every = sorted(kept + stamped, key=lambda r: (str(r["model"]), r["gpus"]))
        content = {
            "device": ", ".join(sorted({row["device"] for row in every})),
            "versions": source["versions"],
            "command": " && ".join(r["command"] for r in runs),
            "seed": 0,
            "rows": every,
            "ratios": ratios(every),
            "runs": runs,
        }
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table for people."""
    print(f"{'model':<18}{'mask':<16}{'compiled':>9}{'GPUs':>5}{'processed tok/s':>17}"
          f"{'useful tok/s':>14}{'MFU':>7}{'peak GB':>9}{'planned':>9}")  # fmt: skip
    for row in rows:
        speeds = [row["processed_tokens_per_s"], row["useful_tokens_per_s"]]
        speed = [f"{s:,.0f}" if s is not None else str(row.get("error", "-"))[:13] for s in speeds]
        rest = ["-" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in
                (("mfu", 3), ("peak_memory_gb", 1), ("planned_memory_gb", 1))]  # fmt: skip
        print(f"{row['model']:<18}{row['mask']:<16}{row['compiled']!s:>9}{row['gpus']:>5}"
              f"{speed[0]:>17}{speed[1]:>14}{rest[0]:>7}{rest[1]:>9}{rest[2]:>9}")  # fmt: skip
