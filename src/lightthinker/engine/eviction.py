"""Runs cache policies in the engine: which rows they observe, when a cache is full, what is freed.

Eviction follows the forward that fills the cache, before the next token is sampled, so the limit
holds for every token written. The layout stays the account of live tokens: a policy that treats all
heads alike lets exactly the evicted tokens expire. One that evicts per head keeps other tokens in
every head but equally many; there the oldest live tokens expire as stand-ins, so that counts, peak
and dependency are exact while the identity of a live token is known to the pool alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch

from lightthinker.attention.batch import ObservedRows
from lightthinker.engine.policy import CachePolicy, CacheView
from lightthinker.engine.scheduler import Scheduler
from lightthinker.engine.sequence import Sequence as EngineSequence
from lightthinker.errors import RequestError
from lightthinker.kvcache.pool import LayerShape, PagePool

MAX_PAIRS_TOGETHER = 2**24
"""Most pairs of live tokens that a policy sees together: some compare all keys of a sequence."""


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
    together: dict[tuple[object, ...], list[EngineSequence]] = {}
    for sequence in sequences:
        policy, num_written = sequence.params.policy, sequence.num_forwarded
        if policy is None or num_written < len(sequence.prompt_ids):
            continue
        limit = policy.limit(num_written + 1, len(sequence.prompt_ids))
        num_live = len(sequence.live)
        if num_live < limit:
            continue
        if policy.observation is not None:
            together.setdefault(_likeness(sequence, policy, limit), []).append(sequence)
            continue
        chosen = policy.keep(_view(sequence, limit, pool, scheduler, tokenizer))
        kept = _check_list(policy, chosen, num_live, limit)
        sequence.drop(sorted(set(range(num_live)).difference(kept)))
        alike.append(sequence)
    scheduler.compact(alike)
    for members in together.values():
        at_once = max(1, MAX_PAIRS_TOGETHER // len(members[0].live) ** 2)
        for begin in range(0, len(members), at_once):
            _evict_heads(members[begin : begin + at_once], pool, scheduler, tokenizer)


def _likeness(sequence: EngineSequence, policy: CachePolicy, limit: int) -> tuple[object, ...]:
    """Return what sequences have in common that may be given to a policy together."""
    assert policy.observation is not None
    if not (policy.observation.layers_alike and isinstance(policy, Hashable)):
        return (sequence,)
    num_prompt = len(sequence.prompt_ids) if getattr(policy, "keep_prompt", True) else 0
    return policy, len(sequence.live), limit, num_prompt


def _evict_heads(
    sequences: list[EngineSequence], pool: PagePool, scheduler: Scheduler, tokenizer: Any
) -> None:
    """Let a policy choose for each head of sequences that it may see together."""
    first, num_layers = sequences[0], len(pool.keys)
    policy = first.params.policy
    assert policy is not None
    assert policy.observation is not None
    assert pool.scores is not None
    limit = policy.limit(first.num_forwarded + 1, len(first.prompt_ids))
    slots_Bn = scheduler.slot_table(sequences)
    scores_LBnH = pool.scores[:, slots_Bn]

    def keys(layer: int) -> torch.Tensor:
        return pool.keys[layer % num_layers][slots_Bn[layer // num_layers]].transpose(0, 1)

    chosen = policy.keep(
        CacheView(
            prompt_ids=first.prompt_ids,
            num_written=first.num_forwarded,
            num_live=len(first.live),
            limit=limit,
            token_ids=[],
            indices=[],
            sample_index=first.index,
            tokenizer=tokenizer,
            scores_LHn=scores_LBnH.permute(1, 0, 3, 2).flatten(0, 1),
            keys=keys,
        )
    )
    kept = _check_heads(policy, chosen, tuple(scores_LBnH.shape), limit)
    kept_BLHm = kept.view(len(sequences), num_layers, *kept.shape[1:])
    scheduler.compact_heads(sequences, slots_Bn, kept_BLHm)
    if policy.observation.last_rows is not None:  # Counting starts afresh.
        pool.scores[:, slots_Bn[:, : kept.shape[-1]].flatten()] = 0


def _check_list(policy: CachePolicy, kept: object, num_live: int, limit: int) -> list[int]:
    """Return what a policy without one chose; RequestError unless it did as it must."""
    if not isinstance(kept, list):
        raise RequestError(
            f"Policy {policy.name!r} has no observation, so keep must return a list of positions, "
            f"not {type(kept).__name__}."
        )
    ascend = all(a < b for a, b in pairwise([-1, *kept, num_live]))
    _check_choice(policy, len(kept), limit, ascend, num_live)
    return kept


def _check_heads(
    policy: CachePolicy, kept: object, scores_LBnH: tuple[int, ...], limit: int
) -> torch.Tensor:
    """Return what a policy with an observation chose; RequestError unless it did as it must.

    The positions themselves are looked at on a CPU only: elsewhere that would wait for the device.
    """
    num_layers, batch, num_live, num_heads = scores_LBnH
    shape = (num_layers * batch, num_heads)
    if not isinstance(kept, torch.Tensor) or (kept.dtype, kept.shape[:-1]) != (torch.int64, shape):
        what = type(kept).__name__
        if isinstance(kept, torch.Tensor):
            what = f"{kept.dtype} {list(kept.shape)}"
        raise RequestError(
            f"Policy {policy.name!r} has an observation, so keep must return torch.int64 "
            f"[{shape[0]}, {shape[1]}, m] (layers, KV heads, positions), not {what}."
        )
    ascend = True
    if kept.device.type == "cpu" and kept.shape[-1]:
        inside = kept[..., 0].min() >= 0 and kept[..., -1].max() < num_live
        ascend = bool(inside and (kept.diff() > 0).all())
    _check_choice(policy, kept.shape[-1], limit, ascend, num_live)
    return kept


def _check_choice(
    policy: CachePolicy, num_kept: int, limit: int, ascend: bool, num_live: int
) -> None:
    if num_kept >= limit:
        raise RequestError(
            f"Policy {policy.name!r}: keep chose {num_kept} tokens; the next one needs room, so "
            f"fewer than {limit} may stay."
        )
    if not ascend:
        raise RequestError(
            f"Policy {policy.name!r}: keep must choose ascending positions from 0 to {num_live - 1}"
            ", each once."
        )


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
    """Return a cache whose heads all hold the same tokens."""

    def keys(layer: int) -> torch.Tensor:
        return pool.keys[layer][scheduler.slot_table([sequence])[0]].transpose(0, 1)

    return CacheView(
        prompt_ids=sequence.prompt_ids,
        num_written=sequence.num_forwarded,
        num_live=len(sequence.live),
        limit=limit,
        token_ids=[sequence.token_ids[i] for i in sequence.live],
        indices=list(sequence.live),
        sample_index=sequence.index,
        tokenizer=tokenizer,
        scores_LHn=None,
        keys=keys,
    )
