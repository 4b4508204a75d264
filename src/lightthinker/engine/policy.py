"""What the engine asks of a cache policy: when a sequence's cache is full, and what to keep of it.

A policy bounds the KV cache of a sequence that does not compress: once the prompt is in and the
next token would not fit the `limit`, the engine calls `keep` and frees the rest. Policies hold
settings and no state: what they need to know of attention lies beside the keys in the page pool
(`Observation`), so it moves, swaps and batches as keys do. Shapes: L layers, H KV heads, n live
tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from lightthinker.attention.batch import Grouping


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Which attention a policy wants to see.

    What a token received from the observed queries is added up per layer and KV head.

    Attributes:
        last_rows: Only the last so many queries before each eviction are observed, and counting
            starts afresh after it; None: every query since the sequence began.
        grouping: How the query heads that share a KV head become one: the `sum` or `mean` of their
            probabilities, or `max_logit`, the softmax of their largest logits.
        past_only: The observed queries attend to what lies before them all (no key is counted that
            is itself in the window).
        layers_alike: `keep` treats every layer by itself, and all alike. Sequences whose caches are
            of one size are then given to it together, as so many more layers.
    """

    last_rows: int | None
    grouping: Grouping
    past_only: bool = False
    layers_alike: bool = False


@dataclass(frozen=True, kw_only=True)
class CacheView:
    """A sequence's cache as a policy sees it when it must choose.

    Where several are stacked (`Observation.layers_alike`), L counts the layers of all of them, and
    what is not the same for all is the first's.

    Attributes:
        prompt_ids: Token ids of the prompt.
        num_written: Tokens written so far, evicted ones included.
        num_live: Tokens in the cache, in the order in which they were written.
        limit: Tokens that may be live once the next one is written.
        token_ids: Ids of the tokens in the cache; only for policies without an observation, whose
            heads all hold the same tokens. The newest may still be in the sampling: unknown, -1.
        indices: Index in the sequence of each of them, likewise.
        sample_index: Which of the request's samples this is.
        tokenizer: The model's tokenizer.
        scores_LHn: Attention received, as observed; None without an observation.
        keys: Layer number -> its keys [H, n, D], as stored (rotated).
    """

    prompt_ids: list[int]
    num_written: int
    num_live: int
    limit: int
    token_ids: list[int]
    indices: list[int]
    sample_index: int
    tokenizer: Any
    scores_LHn: torch.Tensor | None
    keys: Callable[[int], torch.Tensor]

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_ids)


class CachePolicy(Protocol):
    """A method that bounds the cache by eviction; its settings are its fields."""

    @property
    def name(self) -> str:
        """Its name on the command line and in results."""
        ...

    @property
    def observation(self) -> Observation | None:
        """The attention it must see; None if it looks at tokens only, the same for all heads."""
        ...

    def check(self, num_prompt_tokens: int) -> None:
        """Raise RequestError if no cache within the limit can serve a prompt of this length."""
        ...

    def limit(self, num_written: int, num_prompt_tokens: int) -> int:
        """Return how many tokens may be live when `num_written` tokens have been written.

        It must not grow faster than the tokens written.
        """
        ...

    def keep(self, cache: CacheView) -> list[int] | torch.Tensor:
        """Choose what stays; called when the next token would not fit.

        Returns:
            Ascending positions in the cache, fewer than the limit: one list for all heads, or with
            an observation int64 [L, H, m], the same m for every layer and head.
        """
        ...
