"""Draw the documents' figures from results/, light and dark, as SVG under docs/images/.

    python scripts/draw_figures.py          # draw them anew (matplotlib: the extra `viz`)
    python scripts/draw_figures.py --check  # exit 1 if a figure was drawn from other numbers

Each file names what it was drawn from by a digest, so checking needs no matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation_tables import name_and_keeping
from tables import NAMES, Results, load

ROOT = Path(__file__).resolve().parents[1]
DRAWN_FROM = "drawn from "


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one ground, those of the evaluation report."""

    ink: str
    muted: str
    line: str
    lightthinker: str
    full_cot: str
    rivals: tuple[str, ...]


THEMES = {
    "light": Theme(
        ink="#1d1b18", muted="#66615a", line="#e7e3db", lightthinker="#bf3f0a", full_cot="#4a5a70",
        rivals=("#6d3fc4", "#0b7285", "#9c2a6b", "#4c7a00", "#1c5fc7", "#8a5a00", "#007a5a"),
    ),
    "dark": Theme(
        ink="#ece8e1", muted="#a59e93", line="#37332d", lightthinker="#ff9a52", full_cot="#9fb2ca",
        rivals=("#b79bf5", "#5cc8db", "#f08cc4", "#a5d65a", "#86b4ff", "#e6c15c", "#5fd6b0"),
    ),
}  # fmt: skip
MARKERS = "osD^vPX"


def over_all(results: Results) -> list[Results]:
    """A table's rows over all of its problems."""
    return [row for row in results["rows"] if row["task"] == "all"]


def accuracy_by_size(folder: Path) -> dict[str, Any]:
    """Accuracy over peak tokens: eviction at each budget as lines, trained methods as points."""
    curves: dict[str, dict[str, list[Results]]] = {}
    for row in over_all(load(folder, "budget_sweep")):
        if row["budget"]:
            name, keeps = name_and_keeping(row["method"])
            lines = curves.setdefault(name, {"kept": [], "evicted": []})
            lines["kept" if keeps else "evicted"].append(point(row))
    points = []
    for row in over_all(load(folder, "main_table")):
        name, keeps = name_and_keeping(row["method"])
        if not row["budget"]:
            points.append({"method": name, **point(row)})
        elif keeps and "match=peak" in row["method"]:
            curves.setdefault(name, {"kept": [], "evicted": []})["kept"].append(point(row))
    return {"curves": curves, "points": points}


def point(row: Results) -> Results:
    low, high = row["accuracy_ci95"]
    return {"x": row["peak_tokens"], "y": row["accuracy"], "low": low, "high": high}


def draw_accuracy_by_size(axes: Any, theme: Theme, data: dict[str, Any]) -> None:
    """Lines with their intervals as bands; the points that the page is about have labels."""
    for (name, lines), colour, marker in zip(data["curves"].items(), theme.rivals, MARKERS):
        for how, rows in lines.items():
            rows = sorted(rows, key=lambda row: row["x"])
            x, y, low, high = ([row[key] for row in rows] for key in ("x", "y", "low", "high"))
            kept = how == "kept"
            axes.fill_between(x, low, high, color=colour, alpha=0.15 if kept else 0.07, linewidth=0)
            axes.plot(
                x, y, color=colour, marker=marker, markersize=5 if kept else 3.5,
                linewidth=1.8 if kept else 1.1, linestyle="-" if kept else (0, (4, 2)),
                label=NAMES.get(name, name) if kept else None,
            )  # fmt: skip
    for place in data["points"]:
        name = place["method"]
        colour = {"lightthinker": theme.lightthinker, "full_cot": theme.full_cot}.get(name)
        below = [place["y"] - place["low"]], [place["high"] - place["y"]]
        axes.errorbar(place["x"], place["y"], yerr=below, fmt="o", capsize=3,
                      markersize=9 if colour else 6, color=colour or theme.ink)  # fmt: skip
        right = name in ("anllm", "lightthinker")
        offset = {"anllm": (-10, -4), "lightthinker": (10, -4)}.get(name, (0, -18))
        axes.annotate(NAMES[name], (place["x"], place["y"]), offset, color=colour or theme.ink,
                      textcoords="offset points", weight="bold" if colour else "normal",
                      ha=("right" if offset[0] < 0 else "left") if right else "center")  # fmt: skip
    axes.set_ylim(-0.02, 1.06)
    axes.set_xlim(0, 760)
    axes.set_xlabel("mean peak of live tokens, question included")
    axes.set_ylabel("accuracy")
    title = "eviction by budget, question kept\n(dashed: question evicted, too)"
    legend = axes.legend(
        title=title, frameon=False, loc="center left", alignment="left",
        bbox_to_anchor=(0.0, 0.6), labelcolor=theme.ink,
    )  # fmt: skip
    legend.get_title().set_color(theme.muted)


FIGURES: dict[
    str, tuple[Callable[[Path], dict[str, Any]], Callable[[Any, Theme, dict[str, Any]], None]]
] = {"accuracy_by_size": (accuracy_by_size, draw_accuracy_by_size)}
"""Name -> what a figure is drawn from, and what draws it."""


def digest_of(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def draw(path: Path, theme: Theme, data: dict[str, Any], paint: Callable[..., None]) -> None:
    """Write one figure for one ground; the same numbers give the same file."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    settings = {
        "svg.hashsalt": path.stem, "svg.fonttype": "none", "font.family": "sans-serif",
        "font.size": 11, "text.color": theme.ink, "axes.labelcolor": theme.muted,
        "xtick.color": theme.muted, "ytick.color": theme.muted,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8.4, 4.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        paint(axes, theme, data)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", color=theme.line)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        metadata = {"Date": None, "Description": DRAWN_FROM + digest_of(data)}
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="draw nothing, say what is stale")
    options = parser.parse_args(arguments)
    stale = []
    for name, (gather, paint) in FIGURES.items():
        data = gather(root / "results")
        for ground, theme in THEMES.items():
            path = root / "docs/images" / f"{name}-{ground}.svg"
            if not options.check:
                draw(path, theme, data, paint)
                continue
            known = path.read_text("utf-8") if path.is_file() else ""
            if DRAWN_FROM + digest_of(data) not in known:
                stale.append(path.name)
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run python scripts/draw_figures.py")


if __name__ == "__main__":
    main()
