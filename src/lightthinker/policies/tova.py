"""TOVA: the tokens that the newest query attends to most.

Source: "Transformers are Multi-State RNNs", arXiv 2401.06104, section 3.3 (attention averaged over
a layer's heads, so that all of them keep the same tokens; nothing else is protected).

The budget holds whatever scores best, the newest token only if it does. Unless kept, a prompt above
the budget is evicted from all at once when it is in, by the attention of its last token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightthinker.engine.policy import CacheView, Observation
from lightthinker.policies.budget import Budgeted
from lightthinker.policies.selection import best_and_recent


@dataclass(frozen=True, kw_only=True)
class TOVA(Budgeted):
    """Whatever the newest query attends to most, layer by layer."""

    name = "tova"
    observation = Observation(last_rows=1, grouping="mean", layers_alike=True)

    @property
    def num_protected(self) -> int:
        """No token is protected; one at least must remain."""
        return 1

    def keep(self, cache: CacheView) -> torch.Tensor:
        """Keep the tokens with the largest attention, averaged over the layer's heads."""
        assert cache.scores_LHn is not None
        mean = cache.scores_LHn.mean(dim=1, keepdim=True)
        num_pinned = self.num_pinned(cache.num_prompt_tokens)
        scores = mean.expand_as(cache.scores_LHn)
        return best_and_recent(scores, self.num_kept(cache), 0, num_pinned)
