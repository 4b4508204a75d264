"""Charts over all samples: live KV over time with a band, and how far thoughts were compressed.

Numbers in, SVG coordinates out, as `charts`. A sample counts at a time only while it still writes,
and a curve ends where fewer than a tenth of the samples are left, so that its tail is no accident
of a few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lightthinker.evals.charts import Tick, nice_ticks
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.tables import count, label

NUM_TIMES = 160
LEAST_SHARE = 0.1
BAND = (10, 90)


@dataclass(frozen=True, kw_only=True)
class Band:
    """One method: its mean line, and the band of its samples."""

    method: str
    line: str
    area: str
    text: str


@dataclass(frozen=True, kw_only=True)
class BandChart:
    """Live KV tokens over sampled tokens, all methods."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bands: tuple[Band, ...]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bin of a histogram."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many thoughts were compressed how far."""

    method: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]
    median_x: float
    median_text: str
    num_thoughts: int


def live_over_time(record: SampleRecord, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a sample's live KV tokens at each time, in sampled tokens; NaN once it has ended."""
    xs = np.array([x for x, _ in record.kv_curve], dtype=np.float64)
    ys = np.array([y for _, y in record.kv_curve], dtype=np.float64)
    # Where memory is freed two points share an x; the drop belongs to the step that follows.
    xs = xs + np.arange(len(xs)) * 1e-9
    live: NDArray[np.float64] = np.interp(times, xs, ys)
    live[times > record.kv_curve[-1][0]] = np.nan
    return live


def band_chart(
    by_method: Mapping[str, Sequence[SampleRecord]], *, width: int, height: int
) -> BandChart:
    """Lay out mean and 10 to 90 % band of every method's live KV."""
    left, right, top, bottom = 48.0, width - 16.0, 28.0, height - 44.0
    longest = max(r.kv_curve[-1][0] for rows in by_method.values() for r in rows)
    times = np.linspace(0, max(longest, 1), NUM_TIMES)
    curves = {}
    for method, rows in by_method.items():
        live = np.stack([live_over_time(r, times) for r in rows])
        going_on = (~np.isnan(live)).sum(axis=0) >= max(1.0, LEAST_SHARE * len(rows))
        live = live[:, going_on]
        low, high = np.nanpercentile(live, BAND, axis=0)
        curves[method] = times[going_on], np.nanmean(live, axis=0), low, high
    last_x = max(t[-1] for t, *_ in curves.values())
    x_ticks = nice_ticks(last_x, at_most=7 if width > 500 else 4)
    y_ticks = nice_ticks(max(float(high.max()) for *_, high in curves.values()))

    def path(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
        return " ".join(
            f"{left + (right - left) * x / max(last_x, 1):.1f},"
            f"{bottom - (bottom - top) * y / y_ticks[-1]:.1f}"
            for x, y in zip(xs, ys, strict=True)
        )

    bands = [
        Band(
            method=method,
            line=f"M{path(t, mean)}",
            area=f"M{path(t, high)} L{path(t[::-1], low[::-1])}Z",
            text=f"{label(method)}: {count(float(mean.mean()))} live KV tokens on average, "
            f"{count(float(mean[-1]))} at the end.",
        )
        for method, (t, mean, low, high) in curves.items()
    ]
    return BandChart(
        width=width, height=height, left=left, right=right, top=top, bottom=bottom,
        x_ticks=tuple(
            Tick(at=round(left + (right - left) * x / max(last_x, 1), 1), text=f"{x:,.0f}")
            for x in x_ticks if x <= last_x
        ),
        y_ticks=tuple(
            Tick(at=round(bottom - (bottom - top) * y / y_ticks[-1], 1), text=f"{y:,.0f}")
            for y in y_ticks
        ),
        bands=tuple(bands),
    )  # fmt: skip


def histogram(
    method: str, records: Sequence[SampleRecord], *, width: int, height: int
) -> Histogram:
    """Lay out tokens per gist of all compressed thoughts, the last bin open.

    Args:
        method: Whose.
        records: At least one of them with a compressed thought.
        width: Of the drawing, in CSS pixels.
        height: Likewise.
    """
    ratios = [t.num_tokens / t.num_gists for r in records for t in r.thoughts if t.num_gists]
    left, right, top, bottom = 48.0, width - 16.0, 28.0, height - 44.0
    num_bins = 24 if width > 500 else 12
    end = max(1.0, float(np.percentile(ratios, 99)))
    step = _round_step(end / num_bins)
    num_bins = max(2, math.ceil(end / step))
    counts = [0] * num_bins
    for ratio in ratios:
        counts[min(int(ratio / step), num_bins - 1)] += 1
    y_ticks = nice_ticks(max(counts), at_most=5)
    size = (right - left) / num_bins
    bars = []
    for i, number in enumerate(counts):
        y = bottom - (bottom - top) * number / y_ticks[-1]
        is_last, begin = i == num_bins - 1, i * step
        span = f"{begin:g} or more" if is_last else f"{begin:g} to {begin + step:g}"
        bars.append(
            Bar(
                x=round(left + i * size + 1, 1), y=round(y, 1), width=round(size - 2, 1),
                height=round(bottom - y, 1), text=f"{span} tokens per gist: {number:,} thoughts",
            )
        )  # fmt: skip
    middle = median(ratios)
    every = max(1, math.ceil(num_bins / (12 if width > 500 else 6)))
    return Histogram(
        method=method, width=width, height=height, left=left, right=right, top=top, bottom=bottom,
        x_ticks=tuple(
            Tick(at=round(left + i * size, 1), text=f"{i * step:g}")
            for i in range(0, num_bins + 1, every)
        ),
        y_ticks=tuple(
            Tick(at=round(bottom - (bottom - top) * y / y_ticks[-1], 1), text=f"{y:,.0f}")
            for y in y_ticks
        ),
        bars=tuple(bars),
        median_x=round(left + min(middle / step, num_bins) * size, 1),
        median_text=f"median {middle:.1f}",
        num_thoughts=len(ratios),
    )  # fmt: skip


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
