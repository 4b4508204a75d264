"""Budgets: how many tokens a cache policy may hold, in tokens or as a share of what was written.

The budget is a hard cap, prompt included: once the prompt is in, no more tokens than that are ever
live at once, the newest among them. When the cache is full, `buffer` tokens are evicted together;
between two evictions it fills up again. (Papers that count an eviction buffer on top of their
budget hold `budget - buffer` after an eviction here.) The prompt itself is forwarded with full
attention, as the papers do, so a prompt above the budget sets the peak.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from lightthinker.checks import check_types
from lightthinker.engine.policy import CacheView
from lightthinker.errors import ConfigError, RequestError


@dataclass(frozen=True, kw_only=True)
class Budgeted(ABC):
    """The fields that every policy has.

    Attributes:
        budget: Most live tokens once the prompt is in, prompt and newest token included.
        ratio: Instead of `budget`: that share of all tokens written so far, rounded up, but never
            less than the policy's smallest cache.
        buffer: Tokens evicted at a time.
        keep_prompt: Whether no prompt token is ever evicted. The budget includes the prompt either
            way.
    """

    budget: int | None = None
    ratio: float | None = None
    buffer: int = 1
    keep_prompt: bool = False

    def __post_init__(self) -> None:
        try:
            check_types(type(self), vars(self), f"{self.name}: ")
        except ConfigError as error:
            raise RequestError(str(error)) from error
        if (self.budget is None) == (self.ratio is None):
            what = "neither is given" if self.budget is None else "both are"
            raise RequestError(f"{self.name}: give budget (tokens) or ratio; {what}.")
        self.require(self.buffer >= 1, "buffer", "at least 1")
        if self.ratio is not None:
            self.require(0 < self.ratio <= 1, "ratio", "above 0 and at most 1")
        self.check_settings()
        if self.budget is not None:
            least = self.smallest_cache
            parts = f"{self.num_protected} protected, buffer {self.buffer}, and the next token"
            self.require(self.budget >= least, "budget", f"at least {least} ({parts})")

    def check_settings(self) -> None:  # noqa: B027
        """Raise RequestError for a field of the policy's own that is out of range."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The policy's name on the command line."""

    @property
    @abstractmethod
    def num_protected(self) -> int:
        """Tokens that the policy keeps whatever happens; the prompt is not counted."""

    @property
    def smallest_cache(self) -> int:
        """The smallest limit that the other settings allow, without a prompt that is kept."""
        return self.num_protected + self.buffer + 1

    def num_pinned(self, num_prompt_tokens: int) -> int:
        """Return how many of the first tokens stay because they are the prompt."""
        return num_prompt_tokens if self.keep_prompt else 0

    def check(self, num_prompt_tokens: int) -> None:
        """Raise RequestError unless the budget has room beyond a prompt that must stay."""
        least = self.smallest_cache + self.num_pinned(num_prompt_tokens)
        if self.budget is not None and self.budget < least:
            raise RequestError(
                f"{self.name}: budget is {self.budget}, and the prompt of {num_prompt_tokens} "
                f"tokens is kept; it must be at least {least}."
            )

    def limit(self, num_written: int, num_prompt_tokens: int) -> int:
        """Return how many tokens may be live when `num_written` have been written."""
        if self.budget is not None:
            return self.budget
        assert self.ratio is not None
        least = self.smallest_cache + self.num_pinned(num_prompt_tokens)
        return max(least, math.ceil(self.ratio * num_written))

    def num_kept(self, cache: CacheView) -> int:
        """Return how many tokens stay in a cache that is full."""
        return cache.limit - self.buffer

    def require(self, ok: bool, field: str, allowed: str) -> None:
        """Raise RequestError unless a field's value is allowed."""
        if not ok:
            value = getattr(self, field)
            raise RequestError(f"{self.name}: {field} is {value!r}; it must be {allowed}.")


class HasLiveTokens(Protocol):
    """What a sample must tell to match a budget to it (`CompressionStats` does)."""

    @property
    def peak_tokens(self) -> int:
        """Most tokens live at once."""
        ...

    @property
    def mean_live_tokens(self) -> float:
        """Mean of the live tokens over the output."""
        ...


def matched_budget(
    results: Iterable[HasLiveTokens], statistic: Literal["mean", "peak"] = "peak"
) -> int:
    """Return the budget that gives a policy the memory which LightThinker used.

    Args:
        results: Costs of LightThinker's samples.
        statistic: `peak`: the average over samples of the most tokens live at once; `mean`: the
            average of the mean live tokens.

    Returns:
        Tokens, rounded to the nearest whole number.

    Raises:
        RequestError: There are no samples, or the statistic is unknown.
    """
    if statistic not in ("mean", "peak"):
        raise RequestError(f"statistic is {statistic!r}; it must be mean or peak.")
    values = [r.peak_tokens if statistic == "peak" else r.mean_live_tokens for r in results]
    if not values:
        raise RequestError("There are no samples to match a budget to.")
    return max(1, round(sum(values) / len(values)))
