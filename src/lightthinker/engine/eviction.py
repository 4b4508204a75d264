"""Runs cache policies in the engine: which rows they observe, when a cache is full, what is freed.

Eviction follows the forward that fills the cache, before the next token is sampled, so the limit
holds for every token written. The layout stays the account of live tokens: a policy that treats all
heads alike lets exactly the evicted tokens expire. One that evicts per head keeps other tokens in
every head but equally many; there the oldest live tokens expire as stand-ins, so that counts, peak
and dependency are exact while the identity of a live token is known to the pool alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from lightthinker.attention.batch import ObservedRows
from lightthinker.engine.policy import CachePolicy, CacheView, Observation
from lightthinker.engine.scheduler import Scheduler
from lightthinker.engine.sequence import Sequence as EngineSequence
from lightthinker.errors import RequestError
from lightthinker.kvcache.pool import LayerShape, PagePool


def check_policy(policy: CachePolicy, num_prompt_tokens: int, shapes: Sequence[LayerShape]) -> None:
    """Raise RequestError unless this model can run this policy with a prompt of this length.

    Args:
        policy: The policy.
        num_prompt_tokens: Length of the prompt.
        shapes: What each layer stores and sees.
    """
    policy.check(num_prompt_tokens)
    if policy.observation is None:
        return
    if any(shape.window is not None for shape in shapes):
        raise RequestError(
            f"Policy {policy.name!r} evicts per head, and this model has sliding-window layers: a "
            "slot would hold tokens of different ages. Use a policy that treats all heads alike, "
            "such as streaming_llm, sepllm or random."
        )
    if len({shape.num_kv_heads for shape in shapes}) > 1:
        raise RequestError(
            f"Policy {policy.name!r} evicts per head, and this model's layers have different "
            "numbers of KV heads."
        )


def observed_rows(sequence: EngineSequence, num_tokens: int) -> ObservedRows | None:
    """Return which of the sequence's next rows its policy observes.

    Call before they are forwarded.
    """
    policy = sequence.params.policy
    watch = policy.observation if policy else None
    if policy is None or watch is None:
        return None
    begin, live, window = sequence.num_forwarded, len(sequence.live), watch.last_rows
    if window is None:
        return ObservedRows(0, num_tokens, watch.grouping)
    full = _row_that_fills_the_cache(sequence, policy, begin + num_tokens + window - 1)
    if full is None:
        return None
    first, stop = max(begin, full - window + 1), min(begin + num_tokens, full + 1)
    if first >= stop:
        return None
    past = live + full - begin + 1 - window
    if watch.past_only:
        return ObservedRows(first - begin, stop - begin, watch.grouping, past)
    return ObservedRows(first - begin, stop - begin, watch.grouping)


def evict(
    sequences: Iterable[EngineSequence], pool: PagePool, scheduler: Scheduler, tokenizer: Any
) -> None:
    """Free what the policies of sequences with a full cache do not keep.

    Args:
        sequences: Those that have just been forwarded.
        pool: The KV memory.
        scheduler: Owner of the pages.
        tokenizer: The model's tokenizer.
    """
    alike: list[EngineSequence] = []
    per_head: list[tuple[EngineSequence, torch.Tensor]] = []
    for sequence in sequences:
        policy, num_written = sequence.params.policy, sequence.num_forwarded
        if policy is None or num_written < len(sequence.prompt_ids):
            continue
        limit = policy.limit(num_written + 1, len(sequence.prompt_ids))
        num_live = len(sequence.live)
        if num_live < limit:
            continue
        kept = policy.keep(_view(sequence, limit, pool, scheduler, tokenizer))
        if isinstance(kept, list):
            assert len(kept) < limit, "a policy must make room for the next token"
            gone = set(range(num_live)).difference(kept)
            sequence.drop(gone)
            alike.append(sequence)
        else:
            assert kept.shape[-1] < limit, "a policy must make room for the next token"
            per_head.append((sequence, kept))
    scheduler.compact(alike)
    scheduler.compact_heads(per_head)
    starting_afresh = [
        slot
        for sequence, _ in per_head
        if _watch(sequence).last_rows is not None
        for slot in scheduler.slots(sequence, range(len(sequence.live)))
    ]
    if starting_afresh and pool.scores is not None:
        pool.scores[:, pool.index(starting_afresh)] = 0


def _watch(sequence: EngineSequence) -> Observation:
    policy = sequence.params.policy
    assert policy is not None
    assert policy.observation is not None
    return policy.observation


def _row_that_fills_the_cache(
    sequence: EngineSequence, policy: CachePolicy, stop: int
) -> int | None:
    """Return the token index below `stop` with which the cache is full, if there is one."""
    begin, live = sequence.num_forwarded, len(sequence.live)
    num_prompt = len(sequence.prompt_ids)
    for q in range(max(begin, num_prompt - 1), stop):
        if live + q - begin + 1 >= policy.limit(q + 2, num_prompt):
            return q
    return None


def _view(
    sequence: EngineSequence, limit: int, pool: PagePool, scheduler: Scheduler, tokenizer: Any
) -> CacheView:
    policy = sequence.params.policy
    per_head = policy is not None and policy.observation is not None
    num_live = len(sequence.live)
    slots = pool.index(scheduler.slots(sequence, range(num_live)))
    indices = [] if per_head else list(sequence.live)
    return CacheView(
        prompt_ids=sequence.prompt_ids,
        num_written=sequence.num_forwarded,
        num_live=num_live,
        limit=limit,
        token_ids=[sequence.token_ids[i] for i in indices],
        indices=indices,
        sample_index=sequence.index,
        tokenizer=tokenizer,
        scores_LHn=pool.scores[:, slots].transpose(1, 2) if pool.scores is not None else None,
        keys=lambda layer: pool.keys[layer][slots].transpose(0, 1),
    )
