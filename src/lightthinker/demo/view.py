"""Shows a request while it runs: each thought streams, and folds when its trigger comes.

On a terminal finished thoughts scroll up as single lines above a live region (the current
thought and the meter). Elsewhere the same facts come as plain lines without control codes.
Knows no engine: it reads cumulative `RequestOutput`s.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from lightthinker.demo.meter import costs, folded, glyphs_for, meter, printable
from lightthinker.engine.outputs import CompletionOutput, RequestOutput, ThoughtStats

MAX_LINES = 8
FOLD_PAUSES = 6


class ThoughtView(ABC):
    """Base of both views: splits the growing text into finished thoughts and the rest.

    Args:
        console: Where to draw.
        hidden: Markers around reasoning, which are not shown.
        pace_s: Seconds to wait per token, so that people can follow; a fold waits longer.
    """

    def __init__(self, console: Console, *, hidden: Iterable[str] = (), pace_s: float = 0.0):
        self.console = console
        self.hidden = [marker.strip() for marker in hidden if marker.strip()]
        self.pace_s = pace_s
        self.glyphs = glyphs_for(console)
        self.output: CompletionOutput | None = None
        self._num_thoughts = 0
        self._thought_begin = 0

    @property
    def current(self) -> str:
        """The text after the last finished thought."""
        text = self.output.text[self._thought_begin :] if self.output else ""
        for marker in self.hidden:
            text = text.replace(marker, "")
        return printable(text).strip("\n")

    def update(self, output: CompletionOutput) -> None:
        """Take the request's newest state."""
        self.output = output
        for thought in output.thoughts[self._num_thoughts :]:
            self._num_thoughts += 1
            self._thought_begin = len(output.text)
            self.fold(self._num_thoughts, thought)
        self.draw()
        if self.pace_s:
            time.sleep(self.pace_s)

    @abstractmethod
    def fold(self, number: int, thought: ThoughtStats) -> None:
        """A thought is finished."""

    def draw(self) -> None:
        """The current text has grown; a view that draws whole lines has nothing to do."""
        return

    def close(self) -> None:
        """The request has ended: what is left of the text stays."""
        return


class LiveView(ThoughtView):
    """For a terminal."""

    def __init__(self, console: Console, *, hidden: Iterable[str] = (), pace_s: float = 0.0):
        super().__init__(console, hidden=hidden, pace_s=pace_s)
        self._live = Live(console=console, refresh_per_second=20, transient=True)
        self._live.start()

    def fold(self, number: int, thought: ThoughtStats) -> None:
        """Dim the thought for a moment, then leave it as one line above the live region."""
        if self.pace_s:
            self._live.update(self._region(Text(printable(thought.text), style="dim strike")))
            self._live.refresh()
            time.sleep(self.pace_s * FOLD_PAUSES)
        self.console.print(folded(number, thought, self.console.width, self.glyphs))

    def draw(self) -> None:
        """Redraw the live region."""
        self._live.update(self._region(Text(self.current)))

    def close(self) -> None:
        """Take the live region away."""
        self._live.stop()
        if self.current:
            self.console.print(Padding(Text(self.current, style="bold"), (0, 0, 0, 5)))

    def _region(self, text: Text) -> RenderableType:
        width = max(10, self.console.width - 5)
        lines = text.wrap(self.console, width)
        shown = Text("\n").join(lines[-MAX_LINES:])
        assert self.output is not None
        parts: list[RenderableType] = [Padding(shown, (0, 0, 0, 5))]
        if self.output.stats is not None:
            parts += [Text(""), meter(self.output.stats, self.console.width, self.glyphs)]
        return Group(*parts)


class PlainView(ThoughtView):
    """For files, pipes and logs: one line per finished thought, then the answer."""

    def fold(self, number: int, thought: ThoughtStats) -> None:
        """Print the thought and what became of it."""
        assert self.output is not None
        arrow = self.glyphs.arrow
        fate = f"{thought.num_tokens} tokens kept"
        if thought.num_gists:
            fate = f"{thought.num_tokens} tokens {arrow} {thought.num_gists} gists"
        text = " ".join(printable(thought.text).split())
        write(self.console, Text(f"[{number}] {text}  ({fate})"))

    def close(self) -> None:
        """Print what follows the last thought."""
        if self.current:
            write(self.console, Text(self.current))


def show(
    outputs: Iterable[RequestOutput],
    console: Console,
    *,
    hidden: Iterable[str] = (),
    pace_s: float = 0.0,
) -> CompletionOutput:
    """Show a request until it is finished, then its costs.

    Args:
        outputs: What `LLM.stream` yields.
        console: Where to draw.
        hidden: Markers around reasoning, which are not shown.
        pace_s: Seconds to wait per token.

    Returns:
        The finished completion.
    """
    kind = LiveView if console.is_terminal and not console.is_dumb_terminal else PlainView
    view = kind(console, hidden=hidden, pace_s=pace_s if kind is LiveView else 0.0)
    try:
        for output in outputs:
            view.update(output.outputs[0])
    finally:
        view.close()
    completion = view.output
    assert completion is not None, "a request yields at least its final state"
    if completion.stats is not None:
        write(console, Text(costs(completion.stats, view.glyphs), style="dim"))
    return completion


def write(console: Console, text: Text) -> None:
    """Print text, wrapped at words on a terminal and as it is elsewhere."""
    console.print(text, soft_wrap=not console.is_terminal)


def verdict(console: Console, *, correct: bool, reference: str) -> None:
    """Say whether the answer was right."""
    glyphs = glyphs_for(console)
    mark, style = (glyphs.good, "bold green") if correct else (glyphs.bad, "bold red")
    text = Text(f"{mark} ", style=style)
    text.append("correct" if correct else f"wrong, expected {reference}", style=style)
    console.print(text)
