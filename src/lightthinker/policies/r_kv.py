"""R-KV: important and not redundant.

Source: "R-KV: Redundancy-aware KV Cache Compression for Reasoning Models", arXiv 2505.24133,
section 3: importance is the attention of the last few queries, max-pooled over neighbours;
redundancy the softmax of a key's mean cosine similarity to the others, where each key forgives the
most recent of those that resemble it; a token's score is `lambda * importance - (1 - lambda) *
redundancy`. As in the authors' code, query heads that share a KV head become one by the largest of
their logits, the window's own keys are left out of the softmax, and keys are compared as stored.

The budget holds the window and the best-scored tokens before it, and unlike the paper's it includes
the buffer. Deviation: a key that resembles no other forgives none (the authors' code then forgives
the first token).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lightthinker.engine.policy import CacheView, Observation
from lightthinker.policies.budget import Budgeted
from lightthinker.policies.selection import best_and_recent


@dataclass(frozen=True, kw_only=True)
class RKV(Budgeted):
    """Importance to the last queries, less redundancy among keys.

    Attributes:
        window: Queries that are observed, and whose tokens stay (paper: 8).
        mix_lambda: Weight of importance against redundancy (paper: 0.1).
        kernel: Tokens over which importance is max-pooled; odd.
        threshold: Cosine similarity above which two keys resemble each other.
        buffer: Tokens evicted at a time, at least the window (paper: 128, on top of its budget).
    """

    buffer: int = 16
    window: int = 8
    mix_lambda: float = 0.1
    kernel: int = 7
    threshold: float = 0.5

    name = "r_kv"

    def check_settings(self) -> None:
        """Raise RequestError for a setting out of range."""
        self.require(self.window >= 1, "window", "at least 1")
        self.require(0 <= self.mix_lambda <= 1, "mix_lambda", "between 0 and 1")
        self.require(self.kernel >= 1 and self.kernel % 2 == 1, "kernel", "odd and at least 1")
        self.require(-1 <= self.threshold <= 1, "threshold", "between -1 and 1")
        self.require(self.buffer >= self.window, "buffer", f"at least the window, {self.window}")

    @property
    def observation(self) -> Observation:
        """The window's attention to what lies before it."""
        return Observation(
            last_rows=self.window, grouping="max_logit", past_only=True, layers_alike=True
        )

    @property
    def num_protected(self) -> int:
        """The window."""
        return self.window

    def keep(self, cache: CacheView) -> torch.Tensor:
        """Keep the window, and the tokens with the largest joint scores before it."""
        assert cache.scores_LHn is not None
        num_past = cache.num_live - self.window
        attention = cache.scores_LHn[..., :num_past] / self.window
        importance = functional.max_pool1d(
            attention, self.kernel, stride=1, padding=self.kernel // 2
        )
        redundancy = torch.stack(
            [
                redundancy_of(cache.keys(layer).to(attention.dtype), self.threshold)
                for layer in range(len(attention))
            ]
        )[..., :num_past]
        scores = self.mix_lambda * importance - (1 - self.mix_lambda) * redundancy
        num_pinned = self.num_pinned(cache.num_prompt_tokens)
        return best_and_recent(scores, self.num_kept(cache), self.window, num_pinned)


def redundancy_of(keys_HnD: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return how much each key repeats others, a softmax over the n keys: [H, n]."""
    num_keys = keys_HnD.shape[1]
    unit = functional.normalize(keys_HnD, dim=-1)
    similarity = unit @ unit.transpose(-1, -2)
    index = torch.arange(num_keys, device=keys_HnD.device)
    similarity[:, index, index] = 0
    resembling = torch.where(similarity > threshold, index, -1).amax(dim=-1, keepdim=True)
    similarity.masked_fill_(index == resembling, 0)
    return similarity.mean(dim=-2).softmax(dim=-1)
