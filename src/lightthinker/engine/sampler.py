"""Picks the next token of each sequence: greedy, temperature, top-k, top-p, seeds, forbidden ids.

A sampler sees logits and sequences only; tests and benchmarks put a scripted one in its place.
"""

from __future__ import annotations

from typing import Protocol

import torch

from lightthinker.engine.sequence import Sequence

GREEDY_BELOW = 1e-5
"""Temperatures this small only differ from greedy by rounding, and by overflow."""


class TokenSampler(Protocol):
    """Anything that turns logits [B, V] into one token id per sequence."""

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """Return one token id per sequence."""
        ...


class Sampler:
    """The sampler that `SamplingParams` describe.

    Args:
        never_sampled: Ids that are never sampled by any request (gist and continue tokens).
    """

    def __init__(self, never_sampled: tuple[int, ...] = ()):
        self.never_sampled = list(never_sampled)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """Return one token id per sequence.

        Args:
            logits: Float tensor [B, V], one row per sequence; changed in place.
            sequences: The B sequences.
        """
        if self.never_sampled:
            logits[:, self.never_sampled] = float("-inf")
        tokens = logits.argmax(dim=-1).tolist()
        for row, sequence in enumerate(sequences):
            if sequence.params.temperature > GREEDY_BELOW:
                tokens[row] = self._draw(logits[row].float().cpu(), sequence)
        out: list[int] = tokens
        return out

    @staticmethod
    def _draw(logits: torch.Tensor, sequence: Sequence) -> int:
        params = sequence.params
        logits = logits / params.temperature
        if 0 < params.top_k < len(logits):
            kept = torch.topk(logits, params.top_k).values[-1]
            logits = logits.masked_fill(logits < kept, float("-inf"))
        probabilities = torch.softmax(logits, dim=-1)
        if params.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            beyond = ordered.cumsum(0) - ordered >= params.top_p
            probabilities[order[beyond]] = 0
        return int(torch.multinomial(probabilities, 1, generator=sequence.generator))
