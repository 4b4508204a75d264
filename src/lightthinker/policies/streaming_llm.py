"""StreamingLLM: the first tokens, which attention sinks into, and the most recent ones.

Source: "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453, section 3.

The budget holds sinks and recent tokens; the prompt is evicted from unless kept. Deviation: keys
keep the positions at which they were written. The paper re-numbers positions within the cache, to
stay inside the trained length; within it, true positions leave the recent tokens' distances as they
are and only the sinks appear further away.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightthinker.engine.policy import CacheView
from lightthinker.policies.budget import Budgeted


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Budgeted):
    """Sinks and a recent window.

    Attributes:
        sinks: First tokens that always stay (paper: 4).
    """

    sinks: int = 4

    name = "streaming_llm"
    observation = None

    def check_settings(self) -> None:
        """Raise RequestError for a setting out of range."""
        self.require(self.sinks >= 0, "sinks", "at least 0")

    @property
    def num_protected(self) -> int:
        """The sinks."""
        return self.sinks

    def keep(self, cache: CacheView) -> list[int]:
        """Keep the first `sinks` tokens and as many of the last as fit."""
        first = max(self.sinks, self.num_pinned(cache.num_prompt_tokens))
        recent = self.num_kept(cache) - first
        return [*range(first), *range(cache.num_live - recent, cache.num_live)]
