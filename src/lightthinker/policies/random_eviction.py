"""Random eviction that keeps the prompt: the baseline that every selector must beat.

Source: arXiv 2609.03430, which finds it as good as the best selectors.

The budget includes the prompt, which stays whole, so it must exceed it. The last few tokens stay
too: nearly every other method keeps them, and losing the token just written would measure only
that. What is drawn depends on the seed, the prompt, the sample and the step, on nothing else that
runs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lightthinker.engine.policy import CacheView
from lightthinker.policies.budget import Budgeted


@dataclass(frozen=True, kw_only=True)
class RandomEviction(Budgeted):
    """The prompt, the last tokens, and a random choice between them.

    Attributes:
        keep_prompt: Whether no prompt token is ever evicted.
        recent: Last tokens that always stay.
        seed: Of the draws.
    """

    keep_prompt: bool = True
    recent: int = 16
    seed: int = 0

    name = "random"
    observation = None

    def check_settings(self) -> None:
        """Raise RequestError for a setting out of range."""
        self.require(self.recent >= 0, "recent", "at least 0")

    @property
    def num_protected(self) -> int:
        """The recent tokens."""
        return self.recent

    def keep(self, cache: CacheView) -> list[int]:
        """Keep the prompt, the last tokens, and draw the others."""
        first = self.num_pinned(cache.num_prompt_tokens)
        begin = cache.num_live - self.recent
        prompt = list(cache.prompt_ids)
        draw = random.Random(f"{self.seed} {cache.sample_index} {cache.num_written} {prompt}")
        drawn = draw.sample(range(first, begin), self.num_kept(cache) - first - self.recent)
        return [*range(first), *sorted(drawn), *range(begin, cache.num_live)]
