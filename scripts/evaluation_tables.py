"""Evaluations' results as tables: comparisons of methods, by family, by length, over all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tables import NAMES, Results, grid, load, number, share


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
    tasks = {row["task"] for row in results["rows"]}
    whole = "all" if len(tasks) > 1 else tasks.pop()
    pairs = {p["method"]: p for p in results["against_full_cot"] if p["task"] == whole}
    head = [
        "", "accuracy (95 %)", "less full chain-of-thought, points (95 %)", "peak tokens",
        "mean live", "Dep",
    ]  # fmt: skip
    lines = []
    for row in results["rows"]:
        if row["task"] != whole:
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


def kept_question(folder: Path) -> str:
    """Render accuracy by family where nothing of the question is evicted, beside LightThinker."""
    found: dict[str, dict[str, Results]] = {}
    for row in load(folder, "main_table")["rows"]:
        if row["method"] == "lightthinker" or row["method"].endswith("keep_prompt=true"):
            found.setdefault(row["method"], {})[row["task"]] = row
    families = [task for task in found["lightthinker"] if task != "all"]
    lines = (
        (method_name(method).removesuffix(", LightThinker's peak, question kept"),
         *(f"{row[family]['accuracy']:.1%}" for family in families))
        for method, row in found.items()
    )  # fmt: skip
    return "\n".join(grid(["", *(family.replace("_", " ") for family in families)], lines))


def by_budget(folder: Path) -> str:
    """Render the accuracy of eviction methods over all families by budget."""
    results = load(folder, "budget_sweep")
    rows = [row for row in results["rows"] if row["task"] == "all"]
    found = {(*name_and_keeping(r["method"]), r["budget"]): r for r in rows if r["budget"]}
    budgets = sorted({budget for *_, budget in found})
    lines = [
        (
            NAMES.get(name, name) + (", question kept" if keeps else ""),
            *(
                f"{found[name, keeps, budget]['accuracy']:.1%}"
                if (name, keeps, budget) in found
                else ""
                for budget in budgets
            ),
        )
        for name, keeps in sorted(dict.fromkeys(k[:2] for k in found), key=lambda k: not k[1])
    ]
    points = "; ".join(
        f"{NAMES[row['method']]} {share(row)} at a peak of {number(row['peak_tokens'])} tokens"
        for row in rows
        if not row["budget"]
    )
    title = f"`results/budget_sweep.json`: {results['device']}. {points}."
    table = grid(["budget", *(number(budget) for budget in budgets)], lines)
    return "\n".join([title, "", *table])


def name_and_keeping(method: str) -> tuple[str, bool]:
    """Return an eviction method's name and whether it keeps the question."""
    name, _, how = method.partition(":")
    return name, name == "random" or "keep_prompt=true" in how


def method_name(method: str) -> str:
    """Return what a table calls a method, its budget said in words."""
    name, _, how = method.partition(":")
    name = NAMES.get(name, name)
    by = {
        "match=mean": "LightThinker's mean",
        "match=peak": "LightThinker's peak",
        "match=peak,keep_prompt=true": "LightThinker's peak, question kept",
    }.get(how, how)
    return f"{name}, {by}" if how else name


def first_errors(folder: Path) -> str:
    """What goes wrong first in traces of programs."""
    lines = (
        (
            row["setting"],
            NAMES[row["method"]],
            f"{row['num_wrong']} of {number(row['num_problems'])}",
            row["first_mixed_up"],
            row["first_value"],
            "" if row["median_age"] is None else f"{row['median_age']:g}",
            row["first_statement"],
            row["first_arithmetic"],
            row["first_ending"],
        )
        for row in load(folder, "first_errors")["errors"]
    )
    head = [
        "traces", "method", "wrong", "an earlier value read as another variable's",
        "as something else", "lines ago, median",
        "another line of the program", "arithmetic", "ending",
    ]  # fmt: skip
    return "\n".join(grid(head, lines))


VIEWS: dict[str, Callable[[Path], str]] = {
    "budget_sweep/all": by_budget,
    "first_errors/table": first_errors,
    "long_reasoning/lengths": by_length,
    "main_table/kept": kept_question,
    "main_table/all": partial(over_all, stem="main_table"),
    "smollm2_gsm8k_methods/all": partial(over_all, stem="smollm2_gsm8k_methods"),
}
"""Views of a file, beside its rows."""
