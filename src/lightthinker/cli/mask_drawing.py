"""A layout's mask as coloured text or as a figure; a cell's colour is the seen token's role."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.text import Text

from lightthinker.errors import ConfigError
from lightthinker.layout import LayoutRules, Role, TokenLayout
from lightthinker.layout_builder import LayoutBuilder

MAX_TOKENS = 400
LETTERS = {
    Role.PROMPT: "p", Role.THOUGHT: "t", Role.TRIGGER: "w", Role.GIST: "g", Role.CONTINUE: "o",
    Role.ANSWER: "a",
}  # fmt: skip
NAMES = {
    Role.PROMPT: "prompt", Role.THOUGHT: "thought", Role.TRIGGER: "trigger", Role.GIST: "gist",
    Role.CONTINUE: "continue", Role.ANSWER: "answer",
}  # fmt: skip
COLORS = {
    Role.PROMPT: "#64748b", Role.THOUGHT: "#4f93d2", Role.TRIGGER: "#8b5fc7",
    Role.GIST: "#e8590c", Role.CONTINUE: "#d9860a", Role.ANSWER: "#2f9e5f",
}  # fmt: skip
HIDDEN = "·"


def example_layout(
    rules: LayoutRules, *, prompt: int, thoughts: Sequence[int], answer: int
) -> TokenLayout:
    """Write the layout of a document with thoughts of these lengths, triggers not counted.

    Raises:
        ConfigError: It would be too large to read.
    """
    builder = LayoutBuilder(rules)
    builder.prompt(prompt)
    if rules.method == "token":
        for index in range(sum(thoughts)):
            builder.sampled()
            if (index + 1) % rules.segment_tokens == 0:
                builder.compress()
    else:
        for length in thoughts:
            builder.sampled(length)
            if rules.has_trigger:
                builder.sampled(role=Role.TRIGGER)
            if rules.method != "full":
                builder.compress()
    builder.sampled(answer, role=Role.ANSWER)
    layout = builder.build()
    if len(layout) > MAX_TOKENS:
        raise ConfigError(f"The layout has {len(layout)} tokens; at most {MAX_TOKENS} are drawn.")
    return layout


def groups(layout: TokenLayout) -> list[tuple[str, int, int]]:
    """Return runs of tokens that belong together: name, first index, index after the last."""
    found = []
    labelled = [(Role(role), int(number)) for role, number in zip(layout.role, layout.thought)]
    begin = 0
    for (role, number), members in groupby(labelled):
        end = begin + len(list(members))
        name = NAMES[role]
        if role is Role.GIST:
            name = f"gists {number + 1}" if number >= 0 else "prompt gists"
        elif role is Role.THOUGHT:
            name = f"thought {number + 1}"
        found.append((name, begin, end))
        begin = end
    return found


def draw_text(layout: TokenLayout, *, hidden: str = HIDDEN) -> Text:
    """Return the mask as text: a letter where the query sees the key, a dot where it does not."""
    visible, live = layout.visible(), layout.live_tokens()
    names = {begin: name for name, begin, _ in groups(layout)}
    width = max(map(len, names.values()))
    text = Text(" " * (width + 1))
    for role in layout.role:
        text.append(f" {LETTERS[Role(role)]}", style=f"bold {COLORS[Role(role)]}")
    text.append("   live\n", style="dim")
    for query in range(len(layout)):
        role = Role(layout.role[query])
        text.append(f"{names.get(query, ''):>{width}} ", style=COLORS[role])
        for key in range(len(layout)):
            key_role = Role(layout.role[key])
            if visible[query, key]:
                text.append(f" {LETTERS[key_role]}", style=COLORS[key_role])
            else:
                text.append(f" {hidden}" if key <= query else "  ", style="dim")
        text.append(f"   {live[query]:>4}\n", style="dim")
    present = [role for role in LETTERS if role in layout.role]
    legend = "  ".join(f"{LETTERS[role]} {NAMES[role]}" for role in present)
    text.append(f"\n{legend}  {hidden} not seen\n")
    text.append(
        f"peak {layout.peak_tokens()} live tokens, Dep {layout.dep_full()} "
        f"(as the paper counts: {layout.dep_paper()})"
    )
    return text


def draw_figure(layout: TokenLayout, path: Path) -> None:
    """Save the mask as a figure, with the live tokens of each row beside it.

    Raises:
        ConfigError: matplotlib is not installed, or does not write this kind of file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise ConfigError(
            "Drawing a file needs matplotlib: pip install 'lightthinker[viz]'. Without --output "
            "the mask is drawn as text."
        ) from None
    n = len(layout)
    size = min(14.0, max(4.2, 0.26 * n))
    figure = Figure(figsize=(size + 3.4, size + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    cells, bars = figure.subplots(1, 2, width_ratios=(size, 1.5), sharey=True)
    cells.imshow(_pixels(layout), interpolation="nearest", aspect="equal")
    for edge in np.arange(0.5, n - 1):
        cells.axhline(edge, color="white", linewidth=1.2 if n <= 60 else 0.4)
        cells.axvline(edge, color="white", linewidth=1.2 if n <= 60 else 0.4)
    cells.tick_params(length=0)
    spans = groups(layout)
    middles = [(begin + end - 1) / 2 for _, begin, end in spans]
    names = [name for name, _, _ in spans]
    colors = [COLORS[Role(layout.role[begin])] for _, begin, _ in spans]
    cells.set_yticks(middles, names)
    cells.set_xticks(middles, names, rotation=55, ha="left", rotation_mode="anchor")
    cells.xaxis.tick_top()
    for labels in (cells.get_xticklabels(), cells.get_yticklabels()):
        for tick, color in zip(labels, colors, strict=True):
            tick.set_color(color)
            tick.set_fontweight("bold")
    for _, begin, _ in spans[1:]:
        cells.axhline(begin - 0.5, color="#8a857c", linewidth=0.8)
        cells.axvline(begin - 0.5, color="#8a857c", linewidth=0.8)
    live = layout.live_tokens()
    row_colors = [COLORS[Role(role)] for role in layout.role]
    bars.barh(range(n), live, color=row_colors, height=0.72)
    for row, value in enumerate(live) if n <= 60 else ():
        bars.text(value + 0.3, row, str(value), va="center", fontsize=7, color="#55514a")
    bars.set_title("live tokens", fontsize=9)
    bars.tick_params(length=0, labelleft=False)
    bars.set_xticks([])
    for axes in (cells, bars):
        for spine in axes.spines.values():
            spine.set_visible(False)
    present = [role for role in NAMES if role in layout.role]
    handles = [Patch(color=COLORS[role], label=NAMES[role]) for role in present]
    handles.append(Patch(color=_HIDDEN_COLOR, label="written, not seen"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    try:
        figure.savefig(path, dpi=170)
    except ValueError as error:
        raise ConfigError(f"Cannot draw {path}: {error}") from error


_HIDDEN_COLOR = "#ece9e3"


def _pixels(layout: TokenLayout) -> np.ndarray:
    def rgb(color: str) -> list[float]:
        return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]

    visible = layout.visible()
    n = len(layout)
    image = np.ones((n, n, 3))
    image[np.tril_indices(n)] = rgb(_HIDDEN_COLOR)
    by_key = np.array([rgb(COLORS[Role(role)]) for role in layout.role])
    image[visible] = np.broadcast_to(by_key, (n, n, 3))[visible]
    return image
