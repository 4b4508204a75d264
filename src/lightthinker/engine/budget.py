"""ThinkingBudget: forces the end of reasoning once a sequence has spent its thinking tokens.

The thought that is running is ended by its trigger first (and so compressed), then the
checkpoint's `reasoning_end` marker is written; after that the model is free again. Nothing is
forced in a sequence that has ended its reasoning by itself. Knows no sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightthinker.compression import CompressionConfig
from lightthinker.errors import RequestError


@dataclass
class ThinkingBudget:
    """The budget of one sequence.

    Attributes:
        num_tokens: Sampled tokens after which reasoning has to end.
        marker_ids: Tokens of the marker that ends it.
        is_over: Whether sampled ids hold the marker.
    """

    num_tokens: int
    marker_ids: tuple[int, ...]
    is_over: Callable[[list[int]], bool]
    _rest: list[int] | None = field(default=None, init=False)

    def forced_token(self, sampled_ids: list[int], open_thought: int | None) -> int | None:
        """Return the id that the next token must have; None if the model decides.

        Args:
            sampled_ids: What was sampled so far.
            open_thought: The trigger that would end the current thought, if one has begun.
        """
        if len(sampled_ids) < self.num_tokens:
            return None
        if self._rest is None:
            self._rest = [] if self.is_over(sampled_ids) else list(self.marker_ids)
            if self._rest and open_thought is not None:
                self._rest.insert(0, open_thought)
        return self._rest.pop(0) if self._rest else None


def thinking_budget(
    num_tokens: int | None, tokenizer: Any, compression: CompressionConfig | None
) -> ThinkingBudget | None:
    """Return the budget a request asks for.

    Args:
        num_tokens: Its `thinking_token_budget`.
        tokenizer: The checkpoint's.
        compression: The checkpoint's settings.

    Raises:
        RequestError: The checkpoint does not say how reasoning ends.
    """
    if num_tokens is None:
        return None
    marker = compression.reasoning_end if compression else ""
    if not marker.strip():
        raise RequestError(
            "thinking_token_budget needs a checkpoint whose settings say how reasoning ends."
        )
    ids = tokenizer(marker, add_special_tokens=False)["input_ids"]

    def is_over(sampled_ids: list[int]) -> bool:
        return marker.strip() in tokenizer.decode(sampled_ids)

    return ThinkingBudget(num_tokens, tuple(ids), is_over)
