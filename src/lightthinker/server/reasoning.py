"""Splits a model's growing text into reasoning and answer.

Reasoning is what comes before the checkpoint's `reasoning_end` marker (CompressionConfig); the
answer is what follows. Invariant: what was shown of a growing text is a prefix of what is shown of
the longer text, so the pieces of a stream add up to the message of a call that does not stream:
the last characters are held back while they might begin the marker, and so is white space at
reasoning's end, which is dropped before the marker.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """A text taken apart; `answer` is None while, or if, only reasoning has been seen."""

    reasoning: str
    answer: str | None


class ReasoningSplitter:
    """Splits the texts of one model.

    Args:
        begin: Marker before reasoning, which a model may repeat.
        end: Marker that ends reasoning; empty for a model that does not reason.
    """

    def __init__(self, begin: str, end: str):
        self.begin = begin.strip()
        self.end = end.strip()

    def split(self, text: str, *, finished: bool) -> Split:
        """Take a text apart.

        Args:
            text: All the text so far.
            finished: Whether no more will come.
        """
        if not self.end:
            return Split("", text)
        start = self._reasoning_start(text, finished)
        reasoning, found, answer = text[start:].partition(self.end)
        if found:
            return Split(reasoning.rstrip(), answer.lstrip())
        if not finished:
            reasoning = reasoning[: len(reasoning) - _overlap(reasoning, self.end)]
        return Split(reasoning.rstrip(), None)

    def _reasoning_start(self, text: str, finished: bool) -> int:
        """Return where reasoning begins: after leading white space and a repeated marker."""
        start = len(text) - len(text.lstrip())
        if self.begin and text.startswith(self.begin, start):
            start += len(self.begin)
            return start + len(text[start:]) - len(text[start:].lstrip())
        rest = text[start:]
        if self.begin and not finished and self.begin.startswith(rest):
            return len(text)
        return start


def _overlap(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` that begins `marker`."""
    if marker[0] not in text[1 - len(marker) :]:
        return 0  # Most texts: this is asked of every state of every stream.
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
