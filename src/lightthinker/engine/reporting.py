"""A sequence's state -> what its user sees; costs are read off the layout."""

from __future__ import annotations

from dataclasses import dataclass

from lightthinker.engine.detokenizer import Detokenizer
from lightthinker.engine.outputs import CompletionOutput, CompressionStats
from lightthinker.engine.scheduler import Scheduler
from lightthinker.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What the engine holds now, and what it has done since it was made.

    Attributes:
        num_running: Sequences running.
        num_waiting: Sequences waiting, swapped ones included.
        num_pages: KV pages in the pool.
        num_pages_used: Pages that have an owner.
        live_tokens: KV tokens live, over the running sequences.
        full_cot_tokens: KV tokens that full chain-of-thought would hold for the same sequences.
        num_compactions: Times a sequence freed expired tokens.
        num_tokens_freed: Tokens freed so.
        num_preemptions: Times a sequence was swapped to host memory.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_pages_used: int
    live_tokens: int
    full_cot_tokens: int
    num_compactions: int
    num_tokens_freed: int
    num_preemptions: int


def engine_stats(scheduler: Scheduler, num_unwritten: int = 0) -> EngineStats:
    """Read the engine's state off its scheduler.

    Args:
        scheduler: The engine's.
        num_unwritten: Tokens that its sequences do not know of yet (`FastLane`).
    """
    running = scheduler.running
    return EngineStats(
        num_running=len(running),
        num_waiting=len(scheduler.waiting),
        num_pages=scheduler.pool.allocator.num_pages,
        num_pages_used=scheduler.pool.allocator.num_used,
        live_tokens=sum(len(s.live) for s in running) + num_unwritten,
        full_cot_tokens=sum(len(s.prompt_ids) + len(s.sampled_ids) for s in running)
        + num_unwritten,
        num_compactions=scheduler.num_compactions,
        num_tokens_freed=scheduler.num_tokens_freed,
        num_preemptions=scheduler.num_preemptions,
    )


def completion(
    sequence: Sequence, detokenizer: Detokenizer, bytes_per_token: int
) -> CompletionOutput:
    """Report one sample as it stands.

    Args:
        sequence: The sample.
        detokenizer: Its text.
        bytes_per_token: Bytes of KV cache that one token takes.
    """
    return CompletionOutput(
        index=sequence.index,
        text=_safe_text(sequence, detokenizer),
        token_ids=sequence.known_ids,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        thoughts=list(sequence.thoughts),
        logprobs=list(sequence.logprobs) if sequence.params.logprobs is not None else None,
        stats=_stats(sequence, bytes_per_token),
    )


def _safe_text(sequence: Sequence, detokenizer: Detokenizer) -> str:
    """Return the text without what may yet turn out to begin a stop string."""
    text = detokenizer.text
    longest = max((len(stop) for stop in sequence.params.stop_strings), default=0)
    if sequence.finish_reason is not None or longest < 2:
        return text
    return text[: max(0, len(text) - longest + 1)]


def _stats(sequence: Sequence, bytes_per_token: int) -> CompressionStats:
    # A running sample is reported after every step: what takes a walk over its whole layout waits.
    finished = sequence.finish_reason is not None
    num_prompt, num_sampled = len(sequence.prompt_ids), len(sequence.sampled_ids)
    peak, mean, dep_paper, dep_full = sequence.peak_live, 0.0, 0, 0
    if finished:
        layout = sequence.builder.build()
        live, sampled, peak = layout.live_tokens(), layout.is_output, layout.peak_tokens()
        mean = float(live[sampled].mean()) if sampled.any() else float(peak)
        dep_paper, dep_full = layout.dep_paper(), layout.dep_full()
    return CompressionStats(
        num_prompt_tokens=num_prompt,
        num_sampled_tokens=num_sampled,
        num_gist_tokens=len(sequence.builder) - num_prompt - num_sampled,
        num_thoughts=sequence.builder.num_thoughts,
        tokens_freed=sequence.tokens_freed,
        live_tokens=len(sequence.live),
        full_cot_tokens=num_prompt + num_sampled,
        peak_tokens=peak,
        mean_live_tokens=mean,
        dep_paper=dep_paper,
        dep_full=dep_full,
        kv_bytes_peak=peak * bytes_per_token,
    )
