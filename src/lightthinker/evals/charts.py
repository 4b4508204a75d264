"""Geometry of the report's charts: numbers in, SVG coordinates out; the template draws them.

A chart is laid out twice, wide and narrow, so that its text stays readable on a phone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightthinker.evals.records import SampleRecord
from lightthinker.evals.summaries import FULL_COT, Comparison, is_lightthinker
from lightthinker.evals.tables import count, label, percent

MOST_LABELS = 3
"""With more methods a legend names them, and only the two that the report is about have labels."""

Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A grid line: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One sample's KV cache: its line, the area under it, and a label in the right margin."""

    method: str
    label: str
    path: str
    area: str
    mean_y: float | None = None
    mean_text: str = ""
    label_y: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A compression: where on the chart, and what happened."""

    x: float
    y: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class KVChart:
    """KV tokens over sampled tokens."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    folds: tuple[Fold, ...]
    summary: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method, overall or on one family, in the accuracy chart."""

    method: str
    label: str
    x: float
    y: float
    low: float
    high: float
    text: str
    is_labelled: bool = True
    label_x: float = 0.0
    label_y: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AccuracyChart:
    """Accuracy over peak tokens."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    families: tuple[Point, ...]
    points: tuple[Point, ...]
    front: str


def nice_ticks(highest: float, *, at_most: int = 6) -> list[float]:
    """Return round values from 0 to at least `highest`."""
    highest = max(highest, 1.0)
    rough = highest / (at_most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    step = max(step, 1.0)
    return [i * step for i in range(math.ceil(highest / step) + 1)]


def kv_chart(
    samples: Sequence[SampleRecord], mean_peaks: dict[str, float], *, width: int, height: int
) -> KVChart:
    """Lay out the saw-tooth of one problem, all methods in one chart.

    Args:
        samples: Records of the same problem.
        mean_peaks: Mean peak per method over all problems; drawn as a dashed line with a label.
        width: Of the drawing, in CSS pixels.
        height: Likewise.
    """
    margin = 128 if width > 500 else 116
    left, right, top, bottom = 44.0, width - margin, 28.0, height - 44.0
    last_x = max(x for sample in samples for x, _ in sample.kv_curve)
    last_y = max([*(y for s in samples for _, y in s.kv_curve), *mean_peaks.values()])
    x_ticks = nice_ticks(last_x, at_most=7 if width > 500 else 4)
    y_ticks = nice_ticks(last_y)

    def px(x: float) -> float:
        return round(left + (right - left) * x / last_x, 1)

    def py(y: float) -> float:
        return round(bottom - (bottom - top) * y / y_ticks[-1], 1)

    lines = []
    for sample in samples:
        path = " ".join(f"{px(x)},{py(y)}" for x, y in sample.kv_curve)
        end = px(sample.kv_curve[-1][0])
        mean = mean_peaks.get(sample.method)
        mean_y = None if mean is None else py(mean)
        lines.append(
            Line(
                method=sample.method,
                label=label(sample.method),
                path=f"M{path}",
                area=f"M{px(0)},{bottom} L{path} L{end},{bottom}Z",
                mean_y=mean_y,
                mean_text="" if mean is None else f"mean peak {count(mean)}",
                label_y=mean_y if mean_y is not None else py(sample.kv_curve[-1][1]),
            )
        )
    return KVChart(
        width=width, height=height, left=left, right=right, top=top, bottom=bottom,
        x_ticks=tuple(Tick(at=px(x), text=f"{x:,.0f}") for x in x_ticks if x <= last_x),
        y_ticks=tuple(Tick(at=py(y), text=f"{y:,.0f}") for y in y_ticks),
        lines=tuple(_spread_labels(lines, gap=36.0, lowest=bottom - 18)),
        folds=tuple(_folds(samples, px, py)),
        summary=" ".join(_describe(sample) for sample in samples),
    )  # fmt: skip


def accuracy_chart(
    overall: Comparison, by_family: dict[str, Comparison], *, width: int, height: int
) -> AccuracyChart:
    """Lay out accuracy against peak tokens: a large dot per method, a small one per family."""
    left, right, top, bottom = 50.0, width - 16.0, 28.0, height - 44.0
    families = by_family if len(by_family) > 1 else {}
    everything = [s for c in (overall, *families.values()) for s in c.methods.values()]
    x_ticks = nice_ticks(max(s.peak_tokens for s in everything), at_most=6 if width > 500 else 4)
    lowest = min(
        [s.accuracy for s in everything] + [s.accuracy_ci95[0] for s in overall.methods.values()]
    )
    floor = next(f for f in (0.9, 0.8, 0.5, 0.0) if f <= max(lowest, 0.0))

    def px(x: float) -> float:
        return round(left + (right - left) * x / x_ticks[-1], 1)

    def py(y: float) -> float:
        return round(bottom - (bottom - top) * (y - floor) / (1 - floor), 1)

    def point(name: str, comparison: Comparison, where: str) -> Point:
        s = comparison.methods[name]
        x, y = px(s.peak_tokens), py(s.accuracy)
        low, high = py(max(s.accuracy_ci95[0], floor)), py(s.accuracy_ci95[1])
        text = f"{label(name)}{where}: accuracy {percent(s.accuracy)}, peak {count(s.peak_tokens)}"
        return Point(
            method=name, label=label(name), x=x, y=y, low=low, high=high, text=text,
            is_labelled=len(overall.methods) <= MOST_LABELS or name == FULL_COT
            or is_lightthinker(name),
        )  # fmt: skip

    y_values = [floor + i * (1 - floor) / 5 for i in range(6)]
    points = [point(name, overall, "") for name in overall.methods]
    points.sort(key=lambda p: not p.is_labelled)
    return AccuracyChart(
        width=width, height=height, left=left, right=right, top=top, bottom=bottom,
        x_ticks=tuple(Tick(at=px(x), text=f"{x:,.0f}") for x in x_ticks),
        y_ticks=tuple(Tick(at=py(y), text=f"{100 * y:.0f} %") for y in y_values),
        families=tuple(
            point(name, c, f" on {family}") for family, c in families.items() for name in c.methods
        ),
        points=tuple(_label_points(points, width=width, bottom=bottom)),
        front=pareto_front([(p.x, p.y) for p in points], right=right),
    )  # fmt: skip


def pareto_front(points: Sequence[tuple[float, float]], *, right: float) -> str:
    """Return the steps along the methods that no other beats in both accuracy and memory.

    Args:
        points: Chart coordinates; small x is little memory, small y is high accuracy.
        right: Where the last step ends.
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    steps = [f"M{best[0][0]},{best[0][1]}"]
    steps += [f"H{x} V{y}" for x, y in best[1:]]
    return " ".join([*steps, f"H{right}"])


def sparkline(sample: SampleRecord, *, highest: float, longest: float) -> str:
    """Return the path of a sample's KV cache in a box of 100 by 100."""
    return "M" + " ".join(
        f"{100 * x / max(longest, 1):.2f},{100 - 100 * y / max(highest, 1):.2f}"
        for x, y in sample.kv_curve
    )


def _folds(samples: Sequence[SampleRecord], px: Scale, py: Scale) -> list[Fold]:
    folds = []
    for sample in samples:
        drops = [
            (x, before, after)
            for (_, before), (x, after) in zip(sample.kv_curve, sample.kv_curve[1:])
            if after < before
        ]
        for (x, before, after), thought in zip(drops, sample.thoughts):
            text = f"{thought.num_tokens} tokens → {thought.num_gists} gists"
            top, foot = py(before), py(after)
            folds.append(Fold(x=px(x), y=top, height=round(foot - top, 1), text=text))
    return folds


def _spread_labels(lines: list[Line], *, gap: float, lowest: float) -> list[Line]:
    """Move margin labels apart, so that none covers another, and keep them above the axis."""
    placed = sorted(lines, key=lambda line: line.label_y)
    ys: list[float] = []
    for line in placed:
        ys.append(max(line.label_y, ys[-1] + gap) if ys else max(line.label_y, 12.0))
    overflow = max(0.0, ys[-1] - lowest) if ys else 0.0
    return [
        dataclasses.replace(line, label_y=round(y - overflow, 1)) for line, y in zip(placed, ys)
    ]


def _label_points(points: Sequence[Point], *, width: float, bottom: float) -> list[Point]:
    """Put each label below its dot or above it, wherever it covers no other label."""
    placed: list[Point] = []
    for point in points:
        half = 3.9 * len(point.label)
        x = min(max(point.x, half), width - half)
        below, above = max(point.low + 18, point.y + 26), min(point.high - 8, point.y - 14)
        by_distance = sorted((abs(y - point.y), y) for y in range(12, int(bottom), 4))
        anywhere = [float(y) for _, y in by_distance]
        choices = [y for y in (below, above, *anywhere) if 12 <= y < bottom - 4]

        def is_free(y: float, x: float = x, half: float = half) -> bool:
            return all(
                abs(p.label_y - y) >= 16 or abs(p.label_x - x) >= half + 3.9 * len(p.label)
                for p in placed
            )

        y = next(filter(is_free, choices), below)
        placed.append(dataclasses.replace(point, label_x=round(x, 1), label_y=round(y, 1)))
    return placed


def _describe(sample: SampleRecord) -> str:
    stats = sample.stats
    return (
        f"{label(sample.method)}: {stats.num_sampled_tokens} tokens sampled, at most "
        f"{stats.peak_tokens} KV tokens live at once."
    )
