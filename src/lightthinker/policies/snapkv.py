"""SnapKV-style observation window: what the last few queries attend to, smoothed over neighbours.

Source: "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469, section 4
(the window's queries vote; votes are pooled over neighbouring tokens; the window itself stays).

The budget holds the window and the best-voted tokens before it. Deviations: SnapKV compresses the
prompt once; here the same choice is made again whenever the cache is full, every `buffer` tokens,
as is usual where it is compared on long reasoning. With grouped-query attention a KV head takes the
mean of its query heads' votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lightthinker.engine.policy import CacheView, Observation
from lightthinker.policies.budget import Budgeted
from lightthinker.policies.selection import best_and_recent


@dataclass(frozen=True, kw_only=True)
class SnapKV(Budgeted):
    """What an observation window of the last queries attends to.

    Attributes:
        window: Queries that vote, and whose tokens stay.
        kernel: Tokens over which votes are averaged; odd.
        buffer: Tokens evicted at a time, at least the window.
    """

    buffer: int = 16
    window: int = 16
    kernel: int = 5

    name = "snapkv"

    def check_settings(self) -> None:
        """Raise RequestError for a setting out of range."""
        self.require(self.window >= 1, "window", "at least 1")
        self.require(self.kernel >= 1 and self.kernel % 2 == 1, "kernel", "odd and at least 1")
        self.require(self.buffer >= self.window, "buffer", f"at least the window, {self.window}")

    @property
    def observation(self) -> Observation:
        """The window's attention."""
        return Observation(last_rows=self.window, grouping="mean", layers_alike=True)

    @property
    def num_protected(self) -> int:
        """The window."""
        return self.window

    def keep(self, cache: CacheView) -> torch.Tensor:
        """Keep the window, and the tokens with the largest votes before it."""
        assert cache.scores_LHn is not None
        votes = cache.scores_LHn[..., : cache.num_live - self.window]
        pooled = functional.avg_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)
        num_pinned = self.num_pinned(cache.num_prompt_tokens)
        return best_and_recent(pooled, self.num_kept(cache), self.window, num_pinned)
