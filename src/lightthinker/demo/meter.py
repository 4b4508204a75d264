"""How compression looks in a terminal: folded thoughts, and a bar of live KV tokens.

Model output is untrusted: control characters, which could drive the terminal, never reach it.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightthinker.engine.outputs import CompressionStats, ThoughtStats

LIGHT = "dark_orange"
FULL = "bright_black"
MAX_GIST_MARKS = 12


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """Characters that not every terminal can show."""

    gist: str = "▣"
    arrow: str = "→"
    ellipsis: str = "…"
    bar: str = "█"
    track: str = "░"
    good: str = "✓"
    bad: str = "✗"
    minus: str = "−"


ASCII = Glyphs(
    gist="#", arrow="->", ellipsis="...", bar="#", track=".", good="OK", bad="WRONG", minus="-"
)  # fmt: skip


def glyphs_for(console: Console) -> Glyphs:
    """Return glyphs that the console's encoding has."""
    return ASCII if console.options.ascii_only else Glyphs()


def printable(text: str) -> str:
    """Return the text with control characters (all but newline and tab) shown as U+FFFD."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "�" for c in text
    )


def one_line(text: str, width: int, glyphs: Glyphs) -> str:
    """Return the text's words on one line of exactly this many terminal cells."""
    words = " ".join(printable(text).split())
    if cell_len(words) > width:
        words = set_cell_size(words, width - len(glyphs.ellipsis)).rstrip() + glyphs.ellipsis
    return set_cell_size(words, width)


def folded(number: int, thought: ThoughtStats, width: int, glyphs: Glyphs) -> Text:
    """Return a finished thought as one line: its first words, dim, and what is left of it."""
    marks = glyphs.gist * max(1, min(thought.num_gists, MAX_GIST_MARKS, width - 24))
    if not thought.num_gists:
        fate = f" {thought.num_tokens:>4} tokens kept"
    elif width >= 64:
        fate = f" {thought.num_tokens:>4} tokens {glyphs.arrow} {marks} {thought.num_gists} gists"
    else:
        fate = f" {thought.num_tokens:>4} {glyphs.arrow} {marks}"
    head = f"{number:>3}  "
    room = max(8, width - len(head) - len(fate) - 1)
    line = Text(no_wrap=True).append(head, style="bold" if thought.num_gists else "dim")
    line.append(one_line(thought.text, room, glyphs), style="dim")
    line.append(fate, style=LIGHT if thought.num_gists else "dim")
    return line


def meter(stats: CompressionStats, width: int, glyphs: Glyphs) -> Table:
    """Return the bar of live KV tokens above the bar of what full chain-of-thought would hold."""
    label = 9
    room = max(10, min(width - label - 16, 72))
    scale = max(256, math.ceil(stats.full_cot_tokens / 128) * 128)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=label)
    table.add_column(width=room)
    table.add_column(no_wrap=True)
    table.add_row(
        Text("KV live", style="bold"),
        _bar(stats.live_tokens, scale, room, LIGHT, glyphs),
        Text(f"{stats.live_tokens:>4}{_saving(stats, glyphs)}", style=f"bold {LIGHT}"),
    )
    table.add_row(
        Text("full CoT"),
        _bar(stats.full_cot_tokens, scale, room, FULL, glyphs),
        Text(f"{stats.full_cot_tokens:>4}", style=FULL),
    )
    return table


def costs(stats: CompressionStats, glyphs: Glyphs) -> str:
    """Return a finished sample's costs in a line."""
    full = stats.full_cot_tokens
    saved = round(100 * (1 - stats.peak_tokens / full)) if full else 0
    sign = glyphs.minus if saved > 0 else "+" if saved else ""
    return (
        f"peak {stats.peak_tokens} KV tokens; full CoT would have held {full} "
        f"({sign}{abs(saved)} %). {stats.num_sampled_tokens} tokens sampled, "
        f"{stats.num_thoughts} thoughts, {stats.tokens_freed} tokens freed."
    )


def _saving(stats: CompressionStats, glyphs: Glyphs) -> str:
    saved = round(100 * (1 - stats.live_tokens / max(stats.full_cot_tokens, 1)))
    return f" ({glyphs.minus}{saved} %)" if stats.tokens_freed and saved > 0 else ""


def _bar(tokens: int, scale: int, width: int, style: str, glyphs: Glyphs) -> Text:
    filled = min(width, round(width * tokens / scale))
    bar = Text(glyphs.bar * filled, style=style)
    return bar.append(glyphs.track * (width - filled), style="dim")
