"""Picks the next token of each sequence: greedy, or drawn by its parameters and seed.

A sampler sees logits and sequences only; tests and benchmarks put a scripted one in its place.
Invariant: what a request draws depends on its own logits, parameters and seed, never on the batch.
"""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import torch

from lightthinker.engine.outputs import TokenLogprob
from lightthinker.engine.pending import INVALID, PendingTokens
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.sequence import Sequence

GREEDY_BELOW = 1e-5
"""Temperatures this small only differ from greedy by rounding, and by overflow."""


class TokenSampler(Protocol):
    """Anything that turns logits [B, V] into one token id per sequence."""

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int] | PendingTokens:
        """Return one token id per sequence, `INVALID` where no logit is finite."""
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
            logits: Float tensor [B, V], one row per sequence. Ids that are never sampled become
                minus infinity in place; nothing else changes.
            sequences: The B sequences.
        """
        if self.never_sampled:
            logits[:, self.never_sampled] = float("-inf")
        best = logits.max(dim=-1)
        tokens: list[int] = best.indices.masked_fill(~best.values.isfinite(), INVALID).tolist()
        for row, sequence in enumerate(sequences):
            if tokens[row] == INVALID:
                continue
            params = sequence.params
            if params.temperature > GREEDY_BELOW or params.has_penalties:
                tokens[row] = self._pick(penalised(logits[row].float().cpu(), sequence), sequence)
        return tokens

    @staticmethod
    def _pick(logits: torch.Tensor, sequence: Sequence) -> int:
        params = sequence.params
        if params.temperature <= GREEDY_BELOW:
            return int(logits.argmax())
        probabilities = candidate_probabilities(logits, params)
        # A draw depends on the seed and its number alone: one that is thrown away changes nothing.
        generator = torch.Generator().manual_seed(_draw_seed(sequence))
        return int(torch.multinomial(probabilities, 1, generator=generator))


def _draw_seed(sequence: Sequence) -> int:
    mixed = hashlib.blake2b(f"{sequence.seed} {len(sequence.sampled_ids)}".encode(), digest_size=7)
    return int.from_bytes(mixed.digest(), "big")


def penalised(logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """Return logits [V] after the request's penalties for what it has already written."""
    params = sequence.params
    if not params.has_penalties:
        return logits
    logits = logits.clone()
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*sequence.prompt_ids, *sequence.sampled_ids}))
        factor = params.repetition_penalty
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
    if sequence.sampled_ids:
        ids, counts = torch.tensor(sequence.sampled_ids).unique(return_counts=True)  # type: ignore[no-untyped-call]
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def candidate_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return what is drawn from, [V]: temperature, then min-p, top-k and top-p (vLLM's order).

    Each looks at what the one before it has left, as the kernel that samples on a GPU does.

    Candidates that were dropped have probability zero; the rest need not add up to one.
    """
    logits = logits / params.temperature
    if params.min_p > 0:
        least = logits.max() + math.log(params.min_p)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if 0 < params.top_k < len(logits):
        kept = torch.topk(logits, params.top_k).values[-1]
        logits = logits.masked_fill(logits < kept, float("-inf"))
    probabilities = torch.softmax(logits, dim=-1)
    if params.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(0) - ordered >= params.top_p
        probabilities[order[beyond]] = 0
    return probabilities


def token_logprob(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Return the log-probability of a token, and the best ones, from logits [V]."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, ids = logprobs.topk(min(num_top, len(logprobs)))
    return TokenLogprob(
        token_id,
        float(logprobs[token_id]),
        dict(zip(ids.tolist(), values.tolist(), strict=True)),
    )
