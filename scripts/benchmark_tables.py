"""Benchmarks' results as tables: rows, ratios, profiles.

Every ratio is computed here from the files' rows; only what was aimed at is written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tables import NAMES, Results, aim_of, grid, load, number

MATMULS = "nvjet|cublas|_linear_kernel|_product_kernel"
"""In the names of kernels that multiply with weights, or add up and gate what was multiplied."""

FLOOR_TB_PER_S = 3.0
"""At which `bench_decode` lets its floor read weights and live KV."""

DECODE_AIMS = {
    ("Qwen2.5-7B", 1): 1.25, ("Qwen2.5-7B", 32): 1.25, ("Qwen2.5-7B", 128): 1.25,
    ("Qwen2.5-1.5B", 1): 2.0, ("Qwen2.5-1.5B", 32): 1.5, ("Qwen2.5-1.5B", 128): 1.5,
}  # fmt: skip
"""Most times its floor that a step should take, by model and batch."""

THROUGHPUT_AIMS = {
    ("full_cot", "hf_generate", 1): 4.0,
    ("full_cot", "hf_generate", 32): 2.5,
    ("lightthinker", "full_cot", 256): 2.5,
    ("lightthinker", "full_cot", 1056): 4.0,
}
"""Least times the throughput of another method, at as many requests."""

MASK_NAMES = {
    "lifetimes_flex": "lifetimes, FlexAttention",
    "causal_flash": "plain causal, fused",
    "dense_padded": "dense mask, padded",
}

RATIO_NAMES = {
    "processed_over_causal_flash": "processed tokens/s of plain causal attention",
    "useful_over_dense_padded": "useful tokens/s of dense masks, as in the paper's code",
    "useful_over_dense_padded_compiled": "useful tokens/s of dense masks, all else as ours",
}

TRAIN_AIMS = {"processed_over_causal_flash": 0.85, "useful_over_dense_padded": 3.0}


def decode_rows(results: Results) -> list[str]:
    return grid(
        [
            "model", "batch", "live tokens", "step ms", "floor ms", "ratio", "aimed at",
            "Python ms", "tokens/s",
        ],
        (
            (
                row["model"],
                row["batch"],
                number(row["live_tokens"]),
                f"{row['step_ms']:.2f}",
                f"{row['floor_ms']:.2f}",
                f"{row['ratio']:.2f}",
                aim_of(DECODE_AIMS.get((row["model"], row["batch"]))),
                f"{row['host_ms']:.2f}",
                number(row["tokens_per_s"]),
            )
            for row in results["rows"]
        ),
    )  # fmt: skip


def offline_rows(results: Results) -> list[str]:
    return grid(
        [
            "model", "method", "requests", "generated tokens", "running", "KV tokens held",
            "useful tokens/s", "step ms", "preemptions",
        ],
        (
            (
                row["model"],
                NAMES[row["method"]],
                number(row["requests"]),
                number(row["generated_tokens"]),
                number(row["mean_running"]),
                number(row["mean_kv_tokens"]),
                number(row["useful_tokens_per_s"]),
                f"{row['step_ms']:.1f}",
                number(row["preemptions"]),
            )
            for row in results["rows"]
        ),
    )  # fmt: skip


def train_rows(results: Results) -> list[str]:
    lines = []
    for row in results["rows"]:
        planned = row["planned_memory_gb"]
        lines.append(
            (
                row["model"],
                MASK_NAMES[row["mask"]] + ("" if row["compiled"] else ", not compiled"),
                row["gpus"],
                number(row["processed_tokens_per_s"]),
                number(row["useful_tokens_per_s"]),
                f"{row['mfu']:.1%}",
                f"{row['peak_memory_gb']:.1f}",
                "" if planned is None else f"{planned:.1f}",
            )
        )
    head = [
        "model", "attention", "GPUs", "processed tokens/s", "useful tokens/s", "MFU", "peak GB",
        "planned GB",
    ]  # fmt: skip
    return grid(head, lines)


def serve_rows(results: Results) -> list[str]:
    return grid(
        ["model", "streams", "bare engine, tokens/s", "served, tokens/s", "lost, best round each"],
        (
            (
                row["model"],
                results["streams"],
                ", ".join(number(rate) for rate in row["bare_tokens_per_s"]),
                ", ".join(number(rate) for rate in row["served_tokens_per_s"]),
                f"{row['overhead_percent']:.1f} %",
            )
            for row in results["rows"]
        ),
    )


ROWS = {
    "bench_decode": decode_rows,
    "bench_offline": offline_rows,
    "bench_train": train_rows,
    "serve_overhead": serve_rows,
}
"""How the rows of a benchmark's results are rendered."""


def decode_ratios(folder: Path) -> str:
    """Render steps as multiples of their floor beside what was aimed at."""
    results = load(folder, "bench_decode")
    cells: dict[str, dict[int, str]] = {}
    for row in results["rows"]:
        aim = DECODE_AIMS.get((row["model"], row["batch"]))
        text = f"{row['step_ms']:.2f} ms, {row['ratio']:.2f}"
        text += "" if aim is None else f" (aimed at {aim:g})"
        cells.setdefault(row["model"], {})[row["batch"]] = text
    batches = sorted({row["batch"] for row in results["rows"]})
    lines = ([model, *(by.get(b, "") for b in batches)] for model, by in cells.items())
    return "\n".join(grid(["one decode step", *(f"batch {b}" for b in batches)], lines))


def train_ratios(folder: Path) -> str:
    """Render training speed against the other ways, on the same documents."""
    lines = [
        (model, RATIO_NAMES[name], f"{ratio:.2f}", aim_of(TRAIN_AIMS.get(name)))
        for model, ratios in load(folder, "bench_train")["ratios"].items()
        for name, ratio in ratios.items()
    ]
    return "\n".join(grid(["model", "lifetimes on FlexAttention, times", "", "aimed at"], lines))


def memory_summary(folder: Path) -> str:
    """Render the most that either way held, and how the soak ended."""
    results = load(folder, "bench_memory")
    lines = []
    for method in dict.fromkeys(row["method"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["method"] == method]
        most = max(rows, key=lambda row: row["pages_mib"])
        sizes = number(most["live_tokens"]), f"{most['kv_mib']:.0f}", f"{most['pages_mib']:.0f}"
        lines.append((NAMES[method], *sizes))
    soak = results["soak"]
    first, last = soak["memory_bytes_first_quarter"], soak["memory_bytes_last_quarter"]
    grown = last - first
    return "\n".join(
        [
            f"`results/bench_memory.json`: {results['device']}.",
            "",
            *grid(["", "most live tokens", "their KV, MiB", "pages held, MiB"], lines),
            "",
            f"Soak: {number(soak['requests'])} requests, {number(soak['aborted'])} aborted, "
            f"{number(soak['preemptions'])} swapped out and back, {number(soak['steps'])} steps; "
            f"{soak['pages_held_after']} pages held afterwards, memory of the "
            f"{soak['memory_of']} grown by {number(grown)} bytes from first quarter to last.",
        ]
    )


def throughput_ratios(folder: Path) -> str:
    """Render useful tokens per second against another method's, same model and same length."""
    measured = load(folder, "bench_offline")["rows"]
    pairs = [(row, other) for row in measured for other in measured if comparable(row, other)]
    lines = []
    for row, other in sorted(pairs, key=lambda pair: pair[0]["method"]):
        aim = None
        if row["requests"] == other["requests"]:
            aim = THROUGHPUT_AIMS.get((row["method"], other["method"], row["requests"]))
        lines.append(
            (
                number(row["generated_tokens"]),
                f"{setting(row)}: {number(row['useful_tokens_per_s'])}",
                f"{setting(other)}: {number(other['useful_tokens_per_s'])}",
                f"{row['useful_tokens_per_s'] / other['useful_tokens_per_s']:.2f}",
                aim_of(aim),
            )
        )
    head = ["tokens each", "useful tokens/s", "against", "ratio", "aimed at"]
    return "\n".join(grid(head, lines))


def comparable(row: Results, other: Results) -> bool:
    """Say whether a row is to be compared with another; LightThinker is, at any two loads."""
    if any(row[key] != other[key] for key in ("model", "generated_tokens")):
        return False
    kinds = row["method"], other["method"]
    if kinds not in (("full_cot", "hf_generate"), ("lightthinker", "full_cot")):
        return False
    loads = row["requests"], other["requests"]
    return loads[0] == loads[1] or (kinds[0] == "lightthinker" and 1 not in loads)


def setting(row: Results) -> str:
    count = f"{number(row['requests'])} request{'s' if row['requests'] != 1 else ''}"
    return f"{NAMES[row['method']]}, {count}"


def overheads(folder: Path) -> str:
    """Render what steady-state steps spend on anything but the model."""
    rows = [r for r in load(folder, "bench_offline")["rows"] if r.get("python_ms") is not None]
    head = [
        "", "step ms", "Python ms", "GPU idle between graphs", "compaction",
        "extra steps per thought",
    ]  # fmt: skip
    lines = (
        (
            setting(row),
            f"{row['step_ms']:.2f}",
            f"{row['python_ms']:.2f}",
            f"{row['gpu_idle_percent']:.1f} %",
            f"{row['compaction_percent']:.2f} %",
            ""
            if row["extra_steps_per_thought"] is None
            else f"{row['extra_steps_per_thought']:.2f}",
        )
        for row in rows
    )
    return "\n".join(grid(head, lines))


def memory_bound(folder: Path) -> str:
    """Render steady-state steps against the time to read weights and the KV they held."""
    floors = {}
    for model in dict.fromkeys(row["model"] for row in load(folder, "bench_decode")["rows"]):
        floors[model] = floor_parts(folder, model)
    lines = []
    for row in load(folder, "bench_offline")["rows"]:
        if row["mean_kv_tokens"] is None:
            continue
        weights_ms, token_ms = floors[row["model"]]
        floor = weights_ms + token_ms * row["mean_kv_tokens"]
        lines.append(
            (
                setting(row),
                number(row["mean_kv_tokens"]),
                f"{row['step_ms']:.1f}",
                f"{floor:.1f}",
                f"{row['step_ms'] / floor:.2f}",
            )
        )
    head = ["", "KV tokens held", "step ms", "floor ms", "ratio"]
    return "\n".join(grid(head, lines))


def floor_parts(folder: Path, model: str) -> tuple[float, float]:
    """Split a model's floor, which is linear in live tokens.

    Returns:
        Milliseconds to read the weights, and to read one live token's KV.
    """
    found = [row for row in load(folder, "bench_decode")["rows"] if row["model"] == model]
    few, many = (pick(found, key=lambda row: row["batch"]) for pick in (min, max))
    tokens = [row["batch"] * row["live_tokens"] for row in (few, many)]
    token_ms = (many["floor_ms"] - few["floor_ms"]) / (tokens[1] - tokens[0])
    return few["floor_ms"] - token_ms * tokens[0], token_ms


def decode_profile(folder: Path) -> str:
    """Render what the profile says of each step: matmuls, attention, all the rest."""
    profile = read_profile((folder / "bench_decode_profile.txt").read_text(encoding="utf-8"))
    lines = []
    for row in load(folder, "bench_decode")["rows"]:
        total, kernels = profile[row["model"], row["batch"]]
        weights_ms, token_ms = floor_parts(folder, row["model"])
        kv_ms = token_ms * row["batch"] * row["live_tokens"]
        matmul = sum(ms for name, ms in kernels if re.search(MATMULS, name))
        attention = sum(ms for name, ms in kernels if re.search("rows_kernel|_combine_", name))
        lines.append(
            (
                row["model"],
                row["batch"],
                f"{matmul:.2f} ({FLOOR_TB_PER_S * weights_ms / matmul:.1f} TB/s)",
                f"{attention:.2f} ({FLOOR_TB_PER_S * kv_ms / attention:.1f} TB/s)",
                f"{total - matmul - attention:.2f}",
                f"{total:.2f}",
                f"{row['host_ms']:.2f}",
                f"{row['step_ms']:.2f}",
            )
        )
    head = [
        "ms a step", "batch", "matmuls", "attention", "other kernels", "all kernels", "Python",
        "step",
    ]  # fmt: skip
    return "\n".join(
        ["`results/bench_decode_profile.txt`, from the same run.", "", *grid(head, lines)]
    )


def read_profile(text: str) -> dict[tuple[str, int], tuple[float, list[tuple[str, float]]]]:
    """Read what `bench_decode.py --profile` prints.

    Returns:
        By model and batch: milliseconds of all kernels in a step, and of the costliest by name.
    """
    found: dict[tuple[str, int], tuple[float, list[tuple[str, float]]]] = {}
    model, kernels = "", []
    for line in text.splitlines():
        if ready := re.fullmatch(r"(\S+) +[\d.]+ s: ready", line):
            model = ready[1]
        elif step := re.fullmatch(r"batch (\d+): (\d+) us of kernels a step", line):
            kernels = []
            found[model, int(step[1])] = int(step[2]) / 1e3, kernels
        elif kernel := re.fullmatch(r" +([\d.]+) us +[\d.]+x  (.+)", line):
            kernels.append((kernel[2], float(kernel[1]) / 1e3))
    return found


VIEWS: dict[str, Callable[[Path], str]] = {
    "bench_decode/ratios": decode_ratios,
    "bench_decode/profile": decode_profile,
    "bench_train/ratios": train_ratios,
    "bench_memory/summary": memory_summary,
    "bench_offline/ratios": throughput_ratios,
    "bench_offline/floor": memory_bound,
    "bench_offline/overheads": overheads,
}
"""Views of a file, beside its rows."""
