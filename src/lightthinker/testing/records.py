"""Samples of an imagined run, with the exact costs that the layout implies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightthinker.engine.outputs import CompletionOutput, CompressionStats, ThoughtStats
from lightthinker.evals.kv_curve import KVCurve
from lightthinker.evals.records import RoleRuns, SampleRecord, role_runs
from lightthinker.layout import LayoutRules, Role
from lightthinker.layout_builder import LayoutBuilder


def simulated_stats(
    thought_lengths: Sequence[int],
    *,
    num_prompt: int = 40,
    num_answer: int = 8,
    num_gists: int = 4,
    compression: bool = True,
    bytes_per_token: int = 1024,
) -> tuple[CompressionStats, tuple[tuple[int, int], ...]]:
    """Return costs and KV curve of a sample with thoughts of these lengths, triggers included."""
    stats, curve, _ = _simulate(
        thought_lengths, num_prompt=num_prompt, num_answer=num_answer, num_gists=num_gists,
        compression=compression, bytes_per_token=bytes_per_token,
    )  # fmt: skip
    return stats, curve


def _simulate(
    thought_lengths: Sequence[int],
    *,
    num_prompt: int = 40,
    num_answer: int = 8,
    num_gists: int,
    compression: bool,
    bytes_per_token: int = 1024,
) -> tuple[CompressionStats, tuple[tuple[int, int], ...], RoleRuns]:
    rules = LayoutRules(method="thought" if compression else "full", num_gists=num_gists)
    builder = LayoutBuilder(rules)
    builder.prompt(num_prompt)
    curve, live, sampled, freed = KVCurve(num_prompt), num_prompt, 0, 0
    for length in thought_lengths:
        builder.sampled(length - 1)
        builder.sampled(role=Role.TRIGGER)
        sampled, live = sampled + length, live + length
        curve.observe(sampled, live, freed)
        if compression:
            builder.compress()
            freed, live = freed + length, live - length + num_gists + 1
            curve.observe(sampled, live, freed)
    builder.sampled(num_answer, role=Role.ANSWER)
    layout = builder.build()
    output = np.isin(layout.role, (Role.THOUGHT, Role.TRIGGER, Role.ANSWER))
    peak, sampled = layout.peak_tokens(), sampled + num_answer
    stats = CompressionStats(
        num_prompt_tokens=num_prompt,
        num_sampled_tokens=sampled,
        num_gist_tokens=len(layout) - num_prompt - sampled,
        num_thoughts=len(thought_lengths),
        tokens_freed=freed,
        live_tokens=live + num_answer,
        full_cot_tokens=num_prompt + sampled,
        peak_tokens=peak,
        mean_live_tokens=float(layout.live_tokens()[output].mean()),
        dep_paper=layout.dep_paper(),
        dep_full=layout.dep_full(),
        kv_bytes_peak=peak * bytes_per_token,
    )
    return stats, curve.finish(sampled), role_runs(builder.role)


def simulated_output(
    thoughts: Sequence[str],
    answer: str,
    *,
    compression: bool = True,
    num_gists: int = 4,
    finished: bool = True,
    tail: str = "",
) -> CompletionOutput:
    """Return what the engine would report after these thoughts; tokens are words."""
    lengths = [len(text.split()) + 1 for text in thoughts]
    words = len(f"{tail} {answer}".split())
    stats, _ = simulated_stats(
        lengths, num_answer=words, num_gists=num_gists, compression=compression
    )
    return CompletionOutput(
        index=0,
        text="\n\n".join([*thoughts, tail + answer]),
        token_ids=list(range(stats.num_sampled_tokens)),
        finish_reason="stop" if finished else None,
        thoughts=_thoughts(thoughts, lengths, num_gists if compression else 0),
        stats=stats,
    )


def simulated_record(
    problem_id: str,
    *,
    method: str,
    family: str = "programs",
    question: str = "Run mod 1000:\na=17\nb=35\nc=a*3+b\nprint(c)",
    thoughts: Sequence[str] = ("c=a*3+b;a=17;b=35:17*3=51,51+35=86;c=86",),
    lengths: Sequence[int] | None = None,
    reference: str = "86",
    answer: str = "The answer is 86.",
    correct: bool = True,
    chance: float | None = 0.001,
    num_gists: int = 4,
    time_s: float = 0.25,
    sample: int = 0,
) -> SampleRecord:
    """Return a sample; `lengths` are the thoughts' tokens, by default a third of their letters."""
    lengths = [max(2, len(t) // 3) for t in thoughts] if lengths is None else lengths
    compression = method != "full_cot"
    stats, curve, roles = _simulate(lengths, compression=compression, num_gists=num_gists)
    return SampleRecord(
        problem_id=problem_id,
        family=family,
        method=method,
        sample=sample,
        question=question,
        reference=reference,
        answer=answer,
        text="\n\n".join([*thoughts, answer]),
        correct=correct,
        chance=chance,
        finish_reason="stop",
        thoughts=tuple(_thoughts(thoughts, lengths, num_gists if compression else 0)),
        stats=stats,
        num_generated_tokens=stats.num_sampled_tokens + stats.num_gist_tokens,
        num_visible_tokens=stats.num_sampled_tokens,
        kv_bytes_area=stats.mean_live_tokens * stats.num_sampled_tokens * 1024,
        roles=roles,
        kv_curve=curve,
        time_s=time_s,
    )


def _thoughts(texts: Sequence[str], lengths: Sequence[int], num_gists: int) -> list[ThoughtStats]:
    return [
        ThoughtStats(text, length, num_gists, length if num_gists else 0)
        for text, length in zip(texts, lengths, strict=True)
    ]
