"""Render the committed files under results/ as Markdown, for scripts/update_readme.py.

A name is a file's, `bench_decode`, or one of its views, `bench_decode/profile` (see `VIEWS`).
Every ratio is computed here from the files' rows; only what was aimed at is written down. Knows
nothing of the documents that show the tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

NAMES = {
    "full_cot": "full chain-of-thought",
    "lightthinker": "LightThinker",
    "hf_generate": "transformers' `generate`",
    "lightthinker_token": "LightThinker, token level",
    "anllm": "AnLLM",
    "streaming_llm": "StreamingLLM",
    "sepllm": "SepLLM",
    "h2o": "H2O",
    "r_kv": "R-KV",
    "snapkv": "SnapKV-style",
    "tova": "TOVA",
}
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

Results = dict[str, Any]


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
    return (rows if "rows" in results else methods)(stem, results)


def load(folder: Path, stem: str) -> Results:
    results: Results = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return results


def grid(head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    return [line_of(head), "|---" * len(head) + "|", *(line_of(line) for line in lines)]


def line_of(cells: Sequence[object]) -> str:
    return "|" + "".join(f" {cell} |" if str(cell) else " |" for cell in cells)


# Evaluations


def methods(name: str, results: Results) -> str:
    """Render one comparison of methods, as `lightthinker eval` writes it."""
    lines = [
        f"`results/{name}.json`: {results['num_problems']} held-out problems, {results['device']}.",
        "",
    ]
    lines += grid(
        ["", "accuracy (95 %)", "peak tokens", "Dep", "KV at peak"],
        (
            (
                NAMES.get(method, f"control: {method}"),
                share(values),
                f"{values['peak_tokens']:.0f}",
                f"{values['dep_paper']:,.0f}",
                f"{values['kv_bytes_peak'] / 2**20:.1f} MiB",
            )
            for method, values in full_cot_first(results["methods"])
        ),
    )
    lines += ["", *paired(results)]
    return "\n".join([*lines, *families(results)])


def paired(results: Results) -> list[str]:
    """Say how LightThinker and full chain-of-thought differ on the same problems."""
    if "paired" not in results:
        return []
    low, high = (100 * bound for bound in results["paired"]["accuracy_difference_ci95"])
    return [
        "LightThinker less full chain-of-thought on the same problems: "
        f"{100 * results['paired']['accuracy_difference']:+.1f} points "
        f"(95 %: {low:+.1f} to {high:+.1f}), McNemar p = {results['paired']['mcnemar_p']:.2g}; "
        f"only LightThinker right on {results['paired']['num_only_method']}, "
        f"only full chain-of-thought on {results['paired']['num_only_full_cot']}."
    ]


def families(results: Results) -> list[str]:
    """Render accuracy by family, if there is more than one."""
    by_family = results.get("by_family", {})
    if len(by_family) < 2:
        return []
    names = [method for method, _ in full_cot_first(results["methods"])]
    lines = (
        [family.replace("_", " ")] + [f"{values['methods'][m]['accuracy']:.1%}" for m in names]
        for family, values in by_family.items()
    )
    return ["", *grid(["accuracy by family", *(NAMES.get(m, m) for m in names)], lines)]


def full_cot_first(by_method: dict[str, Results]) -> list[tuple[str, Results]]:
    return sorted(by_method.items(), key=lambda item: item[0] != "full_cot")


def share(values: Results) -> str:
    low, high = values["accuracy_ci95"]
    return f"{values['accuracy']:.1%} ({low:.1%} to {high:.1%})"


# Rows


def rows(name: str, results: Results) -> str:
    """Render a table of rows: a benchmark's, or one row for each model, task and method."""
    render_rows = {"bench_decode": decode_rows, "bench_offline": offline_rows}.get(name, task_rows)
    return "\n".join([f"`results/{name}.json`: {results['device']}.", "", *render_rows(results)])


def task_rows(results: Results) -> list[str]:
    return grid(
        ["model", "task", "method", "budget", "accuracy (95 %)", "peak tokens", "Dep", "time, s"],
        (
            (
                row["model"],
                row["task"],
                NAMES.get(row["method"], row["method"]),
                number(row["budget"]),
                share(row),
                f"{row['peak_tokens']:.0f}",
                f"{row['dep_paper']:,.0f}",
                f"{row['wall_time_s']:.1f}",
            )
            for row in results["rows"]
        ),
    )


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


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def aim_of(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


# Views of the evaluations


def by_length(folder: Path) -> str:
    """Render how full chain-of-thought and LightThinker do as traces grow, by family."""
    found: dict[str, dict[str, Results]] = {}
    for row in load(folder, "long_reasoning")["rows"]:
        found.setdefault(row["task"], {})[row["method"]] = row
    head = [
        "traces", "family", "full chain-of-thought (95 %)", "LightThinker (95 %)", "peak tokens",
        "LightThinker's", "of it",
    ]  # fmt: skip
    lines = []
    for task, row in found.items():
        family, length = task.split("/")
        full, light = row["full_cot"], row["lightthinker"]
        name = "**all**" if family == "all" else family.replace("_", " ")
        ratio = light["peak_tokens"] / full["peak_tokens"]
        peaks = (number(full["peak_tokens"]), number(light["peak_tokens"]), f"{ratio:.0%}")
        lines.append((length, name, share(full), share(light), *peaks))
    return "\n".join(grid(head, lines))


def over_all(folder: Path, stem: str) -> str:
    """Render every method of a table over all of its problems."""
    results = load(folder, stem)
    pairs = {p["method"]: p for p in results["against_full_cot"] if p["task"] == "all"}
    head = [
        "", "accuracy (95 %)", "less full chain-of-thought, points (95 %)", "peak tokens",
        "mean live", "Dep",
    ]  # fmt: skip
    lines = []
    for row in results["rows"]:
        if row["task"] != "all":
            continue
        difference = ""
        if pair := pairs.get(row["method"]):
            low, high = (100 * bound for bound in pair["accuracy_difference_ci95"])
            points = 100 * pair["accuracy_difference"]
            difference = f"{points:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(
            (
                method_name(row["method"]),
                share(row),
                difference,
                number(row["peak_tokens"]),
                number(row["mean_live_tokens"]),
                number(row["dep_full"]),
            )
        )
    title = f"`results/{stem}.json`: {results['device']}."
    return "\n".join([title, "", *grid(head, lines)])


def method_name(method: str) -> str:
    """Return what a table calls a method, its budget said in words."""
    name, _, how = method.partition(":")
    name = NAMES.get(name, name)
    by = {"match=mean": "LightThinker's mean", "match=peak": "LightThinker's peak"}.get(how, how)
    return f"{name}, {by}" if how else name


# Views of the benchmarks


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
        matmul = sum(ms for name, ms in kernels if re.search("nvjet|cublas", name))
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


def files(folder: Path) -> str:
    """List the results: device and command of each."""
    lines = []
    for file in sorted(folder.rglob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        device = results.get("device") or results["machine"]
        lines.append((f"`{file.relative_to(folder)}`", device, f"`{results['command']}`"))
    return "\n".join(grid(["file", "device", "command"], lines))


VIEWS: dict[str, Callable[[Path], str]] = {
    "long_reasoning/lengths": by_length,
    "main_table/all": partial(over_all, stem="main_table"),
    "smollm2_gsm8k_methods/all": partial(over_all, stem="smollm2_gsm8k_methods"),
    "bench_decode/ratios": decode_ratios,
    "bench_decode/profile": decode_profile,
    "bench_offline/ratios": throughput_ratios,
    "bench_offline/floor": memory_bound,
    "bench_offline/overheads": overheads,
}
"""Further views of a file, beside `NAME/command`."""
