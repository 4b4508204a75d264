"""Random eviction that keeps the prompt: the baseline that every selector must beat.

Source: arXiv 2609.03430, which finds it as good as the best selectors.

The budget includes the prompt, which stays whole, so it must exceed it. The last few tokens stay
too: nearly every other method keeps them, and losing the token just written would measure only
that. What is drawn depends on the seed, the prompt, the sample and the step, on nothing else
that runs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lightthinker.engine.policy import CacheView
from lightthinker.errors import RequestError
from lightthinker.policies.budget import Budgeted


@dataclass(frozen=True, kw_only=True)
class RandomEviction(Budgeted):
    """The prompt, the last tokens, and a random choice between them.

    Attributes:
        recent: Last tokens that always stay.
        seed: Of the draws.
    """

    recent: int = 16
    seed: int = 0

    name = "random"
    observation = None

    def __post_init__(self) -> None:
        self.require(self.recent >= 0, "recent", "at least 0")
        super().__post_init__()

    @property
    def num_protected(self) -> int:
        """The recent tokens; the prompt comes on top."""
        return self.recent

    def check(self, num_prompt_tokens: int) -> None:
        """Raise RequestError unless the budget has room beyond the prompt."""
        least = self.smallest_cache + num_prompt_tokens
        if self.budget is not None and self.budget < least:
            raise RequestError(
                f"random: budget is {self.budget}, and the prompt of {num_prompt_tokens} tokens "
                f"is kept; it must be at least {least}."
            )

    def limit(self, num_written: int, num_prompt_tokens: int) -> int:
        """Return how many tokens may be live, with a ratio never less than the prompt needs."""
        least = self.smallest_cache + num_prompt_tokens
        return max(super().limit(num_written, num_prompt_tokens), least)

    def keep(self, cache: CacheView) -> list[int]:
        """Keep the prompt, the last tokens, and draw the others."""
        num_prompt, begin = cache.num_prompt_tokens, cache.num_live - self.recent
        prompt = cache.token_ids[:num_prompt]
        draw = random.Random(f"{self.seed} {cache.sample_index} {cache.num_written} {prompt}")
        num_drawn = self.num_kept(cache) - num_prompt - self.recent
        drawn = sorted(draw.sample(range(num_prompt, begin), num_drawn))
        return [*range(num_prompt), *drawn, *range(begin, cache.num_live)]
