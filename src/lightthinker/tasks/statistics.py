"""How long problems are, how far back they look, and what compression can save on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lightthinker.tasks.problem import Problem
from lightthinker.tasks.tokenization import count_tokens

NUM_GISTS = 4
TOKENS_KEPT = NUM_GISTS + 1
"""Gists and the continue token: what a finished thought leaves behind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceStatistics:
    """Means over problems; lengths in tokens of `tokenization`.

    Attributes:
        prompt: Question tokens.
        trace: Response tokens: thoughts, separators, answer.
        max_total: Largest prompt + trace of a single problem.
        num_thoughts: Thoughts per problem.
        tokens_per_thought: Mean length of a thought.
        longest_thought: Longest thought of a problem.
        peak_ratio: Upper bound of LightThinker's peak tokens, over those of full chain of thought.
        lookups_per_thought: Earlier thoughts that a thought depends on.
        lookup_distance: How many thoughts back a dependency lies.
        chance: Accuracy of the best constant guess.
    """

    prompt: float
    trace: float
    max_total: int
    num_thoughts: float
    tokens_per_thought: float
    longest_thought: float
    peak_ratio: float
    lookups_per_thought: float
    lookup_distance: float
    chance: float


def measure(problems: Sequence[Problem]) -> TraceStatistics:
    """Measure a set of problems.

    Args:
        problems: At least one problem.

    Returns:
        Their statistics; `peak_ratio` is the ratio of the mean peaks.
    """
    prompts = [count_tokens(problem.question) for problem in problems]
    traces = [count_tokens(problem.response) for problem in problems]
    thoughts = [[count_tokens(thought) for thought in problem.thoughts] for problem in problems]
    longest = [max(lengths) for lengths in thoughts]
    counts = [len(lengths) for lengths in thoughts]
    totals = [prompt + trace for prompt, trace in zip(prompts, traces, strict=True)]
    peaks = [
        prompt + TOKENS_KEPT * count + length + TOKENS_KEPT
        for prompt, count, length in zip(prompts, counts, longest, strict=True)
    ]
    distances = [reader - writer for problem in problems for reader, writer in problem.lookups]
    return TraceStatistics(
        prompt=fmean(prompts),
        trace=fmean(traces),
        max_total=max(totals),
        num_thoughts=fmean(counts),
        tokens_per_thought=sum(map(sum, thoughts)) / sum(counts),
        longest_thought=fmean(longest),
        peak_ratio=sum(peaks) / sum(totals),
        lookups_per_thought=len(distances) / sum(counts),
        lookup_distance=fmean(distances) if distances else 0.0,
        chance=fmean(problem.chance for problem in problems),
    )
