"""The headline table, as text cells: the terminal and the HTML report print the same numbers.

Rows are methods, columns are what a method buys and costs; a change is always against full CoT
on the same problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lightthinker.evals.summaries import FULL_COT, Comparison, MethodSummary
from lightthinker.policies.own import is_own, own_label

LABELS = {
    FULL_COT: "full CoT", "lightthinker": "LightThinker",
    "lightthinker_thought": "LightThinker (thought)",
    "lightthinker_token": "LightThinker (token)", "anllm": "AnLLM", "h2o": "H2O", "r_kv": "R-KV",
    "snapkv": "SnapKV", "tova": "TOVA", "sepllm": "SepLLM", "streaming_llm": "StreamingLLM",
    "random": "random eviction",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measure: where it comes from and how it is written."""

    name: str
    title: str
    help: str
    value: Callable[[MethodSummary], float]
    text: Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as text, its interval or its change against full CoT (empty if there is none)."""

    column: Column
    text: str
    detail: str = ""
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method's cells."""

    method: str
    label: str
    cells: tuple[Cell, ...]


def label(method: str) -> str:
    """Return a method's name as people write it, with its options and its model if it has any."""
    method, at, model = method.partition(" @ ")
    name, _, options = method.partition(":")
    text = LABELS.get(name, (own_label(name) if is_own(name) else name).replace("_", " "))
    if options:
        text += f", {options.replace('match=', 'matched ').replace('=', ' ').replace(',', ', ')}"
    return f"{text}{at}{model}"


def percent(share: float) -> str:
    """Write a share: 0.979 -> '97.9 %'."""
    return f"{100 * share:.1f} %"


def interval(ci: Sequence[float]) -> str:
    """Write an interval of shares: '96.8 to 98.7'."""
    return f"{100 * ci[0]:.1f} to {100 * ci[1]:.1f}"


def points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def count(value: float) -> str:
    """Write a count in five characters or so: 167, 12,345, 156k, 1.56M."""
    if value < 99_999.5:
        return f"{value:,.0f}"
    size, suffix = next(
        (size, suffix)
        for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k"))
        if value >= 0.9995 * size
    )
    scaled = value / size
    decimals = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{decimals}f}{suffix}"


def data_size(value: float) -> str:
    """Write bytes with binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Write seconds as people do."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def change(ratio: float) -> str:
    """Write a ratio as a change: 0.33 -> '−67 %'."""
    rounded = round(100 * (ratio - 1))
    return f"{rounded:+d} %".replace("-", "−") if rounded else "±0 %"


def p_value(p: float) -> str:
    """Write a p-value with its sign: '= 0.031', '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


COLUMNS = (
    Column(
        name="accuracy", title="Accuracy", help="Share of problems answered correctly.",
        value=lambda s: s.accuracy, text=percent,
    ),
    Column(
        name="peak_tokens", title="Peak tokens",
        help="Most KV-cache tokens live at once; mean over problems.",
        value=lambda s: s.peak_tokens, text=count,
    ),
    Column(
        name="dep_paper", title="Dep",
        help="Dependency: tokens attended to, summed over visible output tokens (the paper's).",
        value=lambda s: s.dep_paper, text=count,
    ),
    Column(
        name="wall_time_s", title="Time", help="Engine time for all problems of the run.",
        value=lambda s: s.wall_time_s, text=duration,
    ),
    Column(
        name="kv_bytes_peak", title="KV at peak",
        help="Bytes of KV cache at a problem's peak; mean over problems.",
        value=lambda s: s.kv_bytes_peak, text=data_size,
    ),
)  # fmt: skip


def headline_rows(comparison: Comparison) -> list[Row]:
    """Return one row per method, full CoT first."""
    methods = comparison.methods
    order = sorted(methods, key=lambda name: name != FULL_COT)
    baseline = methods.get(FULL_COT)
    return [
        Row(
            method=name,
            label=label(name),
            cells=tuple(_cell(c, methods[name], baseline) for c in COLUMNS),
        )
        for name in order
    ]


def terminal_table(comparison: Comparison, *, narrow: bool = False) -> Table:
    """Return the headline table for a terminal; narrow puts the methods side by side."""
    rows = headline_rows(comparison)
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    table.add_column("")
    if narrow:
        for row in rows:
            table.add_column(row.label, justify="right")
        for number, column in enumerate(COLUMNS):
            table.add_row(column.title, *(_terminal_cell(row.cells[number]) for row in rows))
        return table
    for column in COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.label, style="bold"), *(_terminal_cell(c) for c in row.cells))
    return table


def verdict(comparison: Comparison) -> str:
    """Return the paired difference in accuracy in a sentence, or an empty string."""
    paired = comparison.paired
    if paired is None:
        return ""
    if not paired.num_discordant:
        most = 1 - 0.05 ** (1 / comparison.num_problems)
        return (
            f"LightThinker and full CoT are right and wrong on the same problems, all "
            f"{comparison.num_problems} of them (so they differ on fewer than {percent(most)} of "
            "problems, with 95 % confidence)"
        )
    low, high = paired.accuracy_difference_ci95
    return (
        f"LightThinker minus full CoT on the same {comparison.num_problems} problems: "
        f"{points(paired.accuracy_difference)} points of accuracy "
        f"(95 % interval {points(low)} to {points(high)}, McNemar p = {paired.mcnemar_p:.2g})"
    )


def unfinished(comparison: Comparison) -> str:
    """Return how many answers the limit of tokens cut off, or an empty string if none.

    Such an answer is mostly wrong, and its costs are those of the limit.
    """
    cut = [
        f"{label(name)} {m.num_truncated:,} of {m.num_problems * m.num_samples:,}"
        for name, m in comparison.methods.items()
        if m.num_truncated
    ]
    return f"Cut off where tokens ran out (max_tokens): {'; '.join(cut)}" if cut else ""


def control(name: str, values: Mapping[str, Any]) -> str:
    """Return a control's outcome in a sentence."""
    return (
        f"{label(name)} ({values['num_problems']} problems): accuracy "
        f"{percent(values['accuracy'])} (95 % interval {interval(values['accuracy_ci95'])}); "
        f"answered the other problem's answer {percent(values['other_answer_rate'])} of the time"
    )


def _cell(column: Column, summary: MethodSummary, baseline: MethodSummary | None) -> Cell:
    value = column.value(summary)
    detail, ratio = "", None
    if column.name == "accuracy":
        detail = interval(summary.accuracy_ci95)
    elif baseline is not None and baseline is not summary and column.value(baseline):
        ratio = value / column.value(baseline)
        detail = change(ratio)
    return Cell(column=column, text=column.text(value), detail=detail, ratio=ratio)


def _terminal_cell(cell: Cell) -> Text:
    text = Text(cell.text)
    return text.append(f"\n{cell.detail}", style="dim") if cell.detail else text
