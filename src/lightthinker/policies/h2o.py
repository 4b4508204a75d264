"""H2O: heavy hitters, the tokens that received most attention so far, and the most recent ones.

Source: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
arXiv 2306.14048, section 4 (half the cache each, attention accumulated from the prompt on).

The budget holds heavy hitters and recent tokens; the prompt is evicted from unless kept. With
grouped-query attention, which the paper's models do not have, a KV head accumulates the attention
of all its query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightthinker.engine.policy import CacheView, Observation
from lightthinker.policies.budget import Budgeted
from lightthinker.policies.selection import best_and_recent


@dataclass(frozen=True, kw_only=True)
class H2O(Budgeted):
    """Heavy hitters by accumulated attention, and a recent window.

    Attributes:
        recent_fraction: Share of the kept tokens (beyond a prompt that is kept) that are simply the
            most recent (paper: half).
    """

    recent_fraction: float = 0.5

    name = "h2o"
    observation = Observation(last_rows=None, grouping="sum", layers_alike=True)

    def check_settings(self) -> None:
        """Raise RequestError for a setting out of range."""
        self.require(0 <= self.recent_fraction <= 1, "recent_fraction", "between 0 and 1")

    @property
    def num_protected(self) -> int:
        """The newest token."""
        return 1

    def keep(self, cache: CacheView) -> torch.Tensor:
        """Keep the most recent tokens, and of the others those with the largest sums."""
        assert cache.scores_LHn is not None
        num_kept = self.num_kept(cache)
        num_pinned = self.num_pinned(cache.num_prompt_tokens)
        num_recent = max(1, int(self.recent_fraction * (num_kept - num_pinned)))
        past = cache.scores_LHn[..., : cache.num_live - num_recent]
        return best_and_recent(past, num_kept, num_recent, num_pinned)
