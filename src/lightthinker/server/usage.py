"""The `usage` object: OpenAI's counts, and what compression did.

Over several choices counts are added up, peaks are the largest, and the mean of live tokens weighs
each choice by its sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightthinker.engine.outputs import CompletionOutput, CompressionStats, RequestOutput


def usage_of(outputs: Sequence[RequestOutput], num_reasoning_tokens: int) -> dict[str, Any]:
    """Return the usage of a finished call.

    Args:
        outputs: Its requests' final states, one per prompt.
        num_reasoning_tokens: Sampled tokens up to the end of reasoning, over all choices.
    """
    completions = [c for output in outputs for c in output.outputs]
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_sampled = sum(len(c.token_ids) for c in completions)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_sampled,
        "total_tokens": num_prompt + num_sampled,
        "prompt_tokens_details": {"cached_tokens": sum(o.num_cached_tokens for o in outputs)},
        "completion_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
        "lightthinker": _costs(completions),
    }


def _costs(completions: Sequence[CompletionOutput]) -> dict[str, Any]:
    stats: list[CompressionStats] = [c.stats for c in completions if c.stats is not None]
    sampled = sum(s.num_sampled_tokens for s in stats)
    weighted = sum(s.mean_live_tokens * s.num_sampled_tokens for s in stats)
    return {
        "peak_tokens": max(s.peak_tokens for s in stats),
        "mean_live_tokens": round(weighted / max(sampled, 1), 3),
        "dependency": sum(s.dep_paper for s in stats),
        "dependency_full": sum(s.dep_full for s in stats),
        "thoughts": sum(len(c.thoughts) for c in completions),
        "gists": sum(t.num_gists for c in completions for t in c.thoughts),
        "kv_tokens_freed": sum(s.tokens_freed for s in stats),
        "kv_bytes_peak": max(s.kv_bytes_peak for s in stats),
        "full_cot_peak_tokens": max(s.full_cot_tokens for s in stats),
    }
