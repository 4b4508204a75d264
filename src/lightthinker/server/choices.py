"""One choice of a response: cumulative outputs in, deltas out.

Invariant: the deltas of a choice, put together, are the message that a call without streaming
returns; with events on, no delta spans two thoughts. Knows the engine's outputs and no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightthinker.engine.outputs import CompletionOutput, TokenLogprob
from lightthinker.server.reasoning import ReasoningSplitter, Split


@dataclass
class Piece:
    """What one chunk adds to a choice.

    Attributes:
        reasoning: New reasoning text.
        answer: New answer text.
        events: Thoughts that started or were compressed.
        finish_reason: Set in the choice's last piece.
        logprobs: Those of the tokens sampled meanwhile, if asked for; their text may come later,
            since what might begin a marker is held back.
    """

    reasoning: str = ""
    answer: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (
            self.reasoning or self.answer or self.events or self.finish_reason or self.logprobs
        )


class ChoiceState:
    """Follows one sample.

    Args:
        splitter: Takes its text apart.
        with_events: Whether to report thoughts.
    """

    def __init__(self, splitter: ReasoningSplitter, *, with_events: bool = False):
        self.splitter = splitter
        self.with_events = with_events
        self._shown_reasoning = 0
        self._shown_answer = 0
        self._thought_ends: list[tuple[int, int]] = []
        self._num_logprobs = 0
        self._num_folded = 0
        self._in_thought = False
        self._finished = False

    def advance(self, output: CompletionOutput) -> list[Piece]:
        """Return what is new since the last call; nothing for a state already seen."""
        if self._finished:
            return []
        self._finished = output.finish_reason is not None
        split = self.splitter.split(output.text, finished=self._finished)
        pieces = self._folded(output, split) if self.with_events else []
        rest = self._reasoning_up_to(split, len(split.reasoning))
        answer = split.answer or ""
        rest.answer = answer[self._shown_answer :]
        self._shown_answer = len(answer)
        rest.finish_reason = output.finish_reason
        if output.logprobs is not None:
            rest.logprobs = output.logprobs[self._num_logprobs :]
            self._num_logprobs = len(output.logprobs)
        return [p for p in (*pieces, rest) if not p.is_empty]

    def _folded(self, output: CompletionOutput, split: Split) -> list[Piece]:
        """Return the pieces that end with a thought's compression.

        A thought counts as compressed once its gists are in the cache: when another token has been
        sampled after it.
        """
        num_sampled, pieces = len(output.token_ids), []
        for thought in output.thoughts[len(self._thought_ends) :]:
            begin = self._thought_ends[-1][0] if self._thought_ends else 0
            at = split.reasoning.find(thought.text, begin)
            end = at + len(thought.text) if at >= 0 else len(split.reasoning)
            self._thought_ends.append((end, num_sampled))
        while self._num_folded < len(self._thought_ends):
            end, seen_at = self._thought_ends[self._num_folded]
            went_on = len(split.reasoning) > end or split.answer is not None
            if not (went_on or self._finished or num_sampled > seen_at):
                break
            piece = self._reasoning_up_to(split, end)
            thought = output.thoughts[self._num_folded]
            if thought.num_gists:
                if not self._in_thought:
                    piece.events.append(self._started())
                piece.events.append(
                    {
                        "type": "thought_compressed",
                        "index": self._num_folded,
                        "num_tokens": thought.num_tokens,
                        "num_gists": thought.num_gists,
                        "tokens_freed": thought.tokens_freed,
                        "live_tokens": output.stats.live_tokens if output.stats else 0,
                    }
                )
            self._num_folded += 1
            self._in_thought = False
            pieces.append(piece)
        return pieces

    def _reasoning_up_to(self, split: Split, end: int) -> Piece:
        """Return the reasoning not yet shown before `end`, with the start of its thought."""
        piece = Piece(split.reasoning[self._shown_reasoning : end])
        self._shown_reasoning = max(self._shown_reasoning, end)
        if piece.reasoning and self.with_events and not self._in_thought:
            self._in_thought = True
            piece.events.append(self._started())
        return piece

    def _started(self) -> dict[str, Any]:
        return {"type": "thought_started", "index": self._num_folded}


def live_counts(output: CompletionOutput) -> dict[str, Any]:
    """Return the live token counts of a sample as a chunk carries them."""
    stats = output.stats
    assert stats is not None
    return {"live_tokens": stats.live_tokens, "full_cot_tokens": stats.full_cot_tokens}
