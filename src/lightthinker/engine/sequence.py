"""One sample being generated: its tokens, its layout, the live tokens and pages it holds.

The layout is written by the same `LayoutBuilder` that encodes training data; what to free and what
each row sees is read off it. Invariant: `live` lists, in slot order, the indices of exactly the
tokens whose KV is in the pool. (Under a policy that evicts per head, stand-ins: see eviction.py.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from lightthinker.attention.batch import Row
from lightthinker.compression import CompressionConfig
from lightthinker.engine.budget import ThinkingBudget
from lightthinker.engine.outputs import TokenLogprob
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.kvcache.page_list import PageList
from lightthinker.layout import LayoutRules, Role
from lightthinker.layout_builder import LayoutBuilder

UNKNOWN = -1
"""Stands for the id of a token that is still being sampled."""

COMPRESSING = (Role.GIST, Role.CONTINUE)
"""Roles of tokens that the engine inserts, and of AnLLM's anchor."""


class Status(Enum):
    """Where a sequence is; a swapped sequence waits with its KV in host memory."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """State of one sample.

    Attributes:
        request_id: The request it belongs to.
        index: Which of the request's n samples.
        prompt_ids: Prompt token ids as given.
        params: How to sample.
        compression: The checkpoint's settings, or None when this request does not compress.
        reasoning_over: Whether the sampled ids have reached the end of reasoning, if that matters
            (token-level segments, forced triggers); after it tokens are answer.
        trigger_id: The checkpoint's trigger, known with compression off too.
        seed: What this sample's draws depend on, together with their number in the sequence.
        budget: Ends reasoning when its tokens are spent.
        unsettled: Index of the last token while its id is unknown or not acted on; see `extend`.
        row_sampling: The device sampler's settings for it, once they are made.
        order: Who comes first: by priority, then by arrival.
        rides: Whether it is in the fast lane, and its newest tokens are known there only.
        may_ride: Whether it may ever be: nothing is asked of it but plain tokens.
        segment_tokens: Tokens of a thought that ends by its length; None where it does not.
        anchor_id: AnLLM's anchor, which ends a thought and is its gist; None for other methods.
        samples_with_logits: Whether sampling needs logits, which no CUDA graph hands out.
        needs_known_tokens: Whether its next step cannot be prepared before its last token is known.
    """

    request_id: str
    index: int
    prompt_ids: list[int]
    params: SamplingParams
    compression: CompressionConfig | None
    reasoning_over: Callable[[list[int]], bool] | None = None
    trigger_id: int | None = None
    seed: int = 0
    budget: ThinkingBudget | None = None
    status: Status = Status.WAITING
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    sampled_ids: list[int] = field(default_factory=list)
    unsettled: int | None = None
    live: list[int] = field(default_factory=list)
    pages: PageList = field(default_factory=PageList)
    thoughts: list[Any] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    saved_kv: list[torch.Tensor] | None = None
    num_forwarded: int = 0
    tokens_freed: int = 0
    peak_live: int = 0
    num_cached_tokens: int = 0
    page_keys: list[bytes] = field(default_factory=list)
    num_published: int = 0
    order: tuple[int, int] = (0, 0)
    row_sampling: Any = None
    rides: bool = False

    def __post_init__(self) -> None:
        rules: LayoutRules = self.compression or LayoutRules(method="full")
        self.builder = LayoutBuilder(rules)
        gists = self.compression.gist_ids if self.compression else ()
        sources = self.builder.prompt(len(self.prompt_ids))
        self.token_ids = [self.prompt_ids[s] if s >= 0 else gists[-1 - s] for s in sources]
        self.in_answer = False
        config = self.compression
        is_anllm = config is not None and config.method == "anllm"
        self.anchor_id = config.gist_ids[0] if config is not None and is_anllm else None
        self.needs_known_tokens = (
            is_anllm or self.params.has_penalties or self.params.policy is not None
        )
        self.samples_with_logits = self.params.has_penalties or self.params.logprobs is not None
        self.may_ride = (
            not self.needs_known_tokens
            and not self.samples_with_logits
            and self.budget is None
            and not self.params.stop
            and not self.params.stop_token_ids
        )
        by_count = config is not None and config.method == "token"
        self.segment_tokens = config.segment_tokens if config is not None and by_count else None
        self._thought_end = self.trigger_id if config is not None and config.has_trigger else None

    @property
    def num_pending(self) -> int:
        """Tokens written in the layout but not yet forwarded."""
        return len(self.token_ids) - self.num_forwarded

    @property
    def has_plain_prompt(self) -> bool:
        """Whether no prompt token ever expires, so that its pages may be shared.

        A cache policy may evict them, and must have seen them forwarded.
        """
        if self.params.policy is not None:
            return False
        return self.compression is None or self.compression.prompt_chunk_tokens is None

    def adopt(self, num_tokens: int) -> None:
        """Note that the pool already holds the first `num_tokens` prompt tokens."""
        assert not self.live, "only a sequence that has not begun can adopt pages"
        self.forwarded(num_tokens)
        self.num_cached_tokens = num_tokens

    def next_chunk(self, budget: int) -> int:
        """Return how many pending tokens to forward in the next step.

        A step ends where a group of gists (with its continue) ends, so that what expires there is
        freed before more is written; a group is never cut, since its gists may see each other.
        """
        start, role = self.num_forwarded, self.builder.role
        if start + 1 == len(role):
            return 1
        stop = min(start + budget, len(role))
        for i in range(start, stop):
            if role[i] in COMPRESSING and (i + 1 == len(role) or role[i + 1] not in COMPRESSING):
                return i + 1 - start
        if stop < len(role) and role[stop] in COMPRESSING:
            while stop > start and role[stop - 1] in COMPRESSING:
                stop -= 1
            if stop == start:
                while stop < len(role) and role[stop] in COMPRESSING:
                    stop += 1
        return stop - start

    def rows(self, num_tokens: int) -> list[Row]:
        """Return the rows of the next `num_tokens` pending tokens.

        Call before they are added to `live`.
        """
        builder, begin = self.builder, self.num_forwarded
        role = builder.role
        if num_tokens == 1 and builder.first[begin] == 0 and role[begin] not in COMPRESSING:
            return [Row(0, len(self.live) + 1, 0, 0)]  # A decoded token sees all that is live.
        live = [*self.live, *range(begin, begin + num_tokens)]
        rows = []
        for upper, q in enumerate(range(begin, begin + num_tokens), len(self.live) + 1):
            lower = bisect_left(live, builder.first[q]) if builder.first[q] else 0
            if builder.last[q] != q:
                upper = bisect_right(live, builder.last[q])
            hides = builder.next_expiry <= q or builder.skip[q] < q
            if hides and role[q] in COMPRESSING:
                rows.append(Row(lower, upper, *self._hidden(live, q, lower, upper)))
            else:
                rows.append(Row(lower, upper, 0, 0))
        return rows

    def _hidden(self, live: list[int], q: int, lower: int, upper: int) -> tuple[int, int]:
        """Return the range of live tokens that row `q` does not see between `lower` and `upper`."""
        spans = [(start, stop) for at, start, stop in self.builder.expiring if at <= q]
        spans.append((self.builder.skip[q], q))
        found = sorted(
            (bisect_left(live, start, lower, upper), bisect_left(live, stop, lower, upper))
            for start, stop in spans
        )
        low = high = 0
        for begin, end in found:
            if begin == end:
                continue
            if low == high:
                low, high = begin, end
            assert begin <= high, "a row can exclude one range only"
            high = max(high, end)
        return low, high

    def forwarded(self, num_tokens: int) -> None:
        """Note that the next `num_tokens` pending tokens are now in the pool."""
        live = self.live
        live.extend(range(self.num_forwarded, self.num_forwarded + num_tokens))
        self.num_forwarded += num_tokens
        if len(live) > self.peak_live:
            self.peak_live = len(live)

    def expired(self) -> list[int]:
        """Return which live tokens (positions in `live`) the next pending token no longer sees."""
        live, now = self.live, self.num_forwarded
        spans = (span for span in self.builder.expiring if span[0] <= now)
        found = {
            i
            for _, start, stop in spans
            for i in range(bisect_left(live, start), bisect_left(live, stop))
        }
        return sorted(found)

    def fresh_gists(self) -> set[int]:
        """Return the indices of the newest gists, if their thought is about to expire."""
        builder = self.builder
        newest = builder.num_thoughts - 1
        found = {
            k for k in self.live if builder.role[k] == Role.GIST and builder.thought[k] == newest
        }
        return found if self.expired() else set()

    def drop(self, positions: Iterable[int]) -> None:
        """Let live tokens expire, given their positions in `live`: a cache policy evicts them."""
        self.builder.drop(self.live[i] for i in positions)

    def forget(self, expired: list[int]) -> list[int]:
        """Take what `expired` returned out of `live`.

        Returns:
            The old positions of the tokens behind the first that is gone; they close the gaps.
        """
        live, first, stop = self.live, expired[0], expired[-1] + 1
        if stop - first == len(expired):
            moved = list(range(stop, len(live)))
            del live[first:stop]
        else:
            gone = set(expired)
            moved = [i for i in range(first, len(live)) if i not in gone]
            live[first:] = [live[i] for i in moved]
        self.tokens_freed += len(expired)
        self.builder.forget_expired(self.num_forwarded)
        return moved

    @property
    def known_ids(self) -> list[int]:
        """The sampled ids, without one that is still being sampled."""
        return self.sampled_ids[: -1 if self.unsettled is not None else None]

    @property
    def num_known(self) -> int:
        """Length of `known_ids`."""
        return len(self.sampled_ids) - (self.unsettled is not None)

    def extend(self, forced: int | None = None) -> None:
        """Write the next sampled token; its id may come later, through `settle`.

        Args:
            forced: Its id, where the engine decides and not the model.
        """
        assert self.unsettled is None, "one token at a time"
        self.unsettled = len(self.token_ids)
        token_id = UNKNOWN if forced is None else forced
        self.token_ids.append(token_id)
        self.sampled_ids.append(token_id)
        self.builder.sampled(role=Role.ANSWER if self.in_answer else Role.THOUGHT)

    def settle(self, token_id: int) -> tuple[int, bool]:
        """Fill in the id of the last token.

        AnLLM's anchor, which has another place in the layout, is written here and nowhere else.

        Returns:
            The id (a forced one stays), and whether it ends a thought, so that `insert_gists` must
            follow.
        """
        token_ids = self.token_ids
        if token_id == self.anchor_id:
            self.sampled_ids.append(token_id)
            token_ids.append(token_id)
            self.builder.compress()
            return token_id, False
        index = self.unsettled
        assert index is not None, "extend() comes first"
        if token_ids[index] != UNKNOWN:
            token_id = token_ids[index]
        token_ids[index] = self.sampled_ids[-1] = token_id
        self.unsettled = None
        if token_id == self.trigger_id:
            self.builder.mark_trigger(index)
        full_segment = self.segment_tokens is not None and self._fills_segment()
        if self.reasoning_over is not None and not self.in_answer:
            self.in_answer = self.reasoning_over(self.sampled_ids)
        return token_id, full_segment or token_id == self._thought_end

    def forget_unsettled(self) -> None:
        """Take the last token out of the output, since its id will never be known."""
        if self.unsettled is not None:
            del self.sampled_ids[-1]
            self.unsettled = None

    def _fills_segment(self) -> bool:
        return not self.in_answer and self.thought_length == self.segment_tokens

    def num_inserted_positions(self) -> int:
        """Return how many positions `insert_gists` would take at the sequence's end."""
        rules = self.builder.rules
        return rules.gists_for(self.thought_length) + rules.has_continue

    def insert_gists(self) -> None:
        """End the current thought: its gists and continue token become pending."""
        config = self.compression
        assert config is not None
        num_gists, has_continue = self.builder.compress()
        self.token_ids += config.gist_ids[:num_gists]
        if has_continue:
            assert config.continue_id is not None
            self.token_ids.append(config.continue_id)

    @property
    def thought_length(self) -> int:
        """Tokens of the current, unfinished thought."""
        return len(self.builder.role) - self.builder.thought_start
