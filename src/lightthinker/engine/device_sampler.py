"""Samples on the device, without waiting for it: the kernel's settings, filled in per sequence.

What it cannot do, presence and frequency penalties and log-probabilities, is left to `Sampler` on
the host (`samples_on_host`). Draws come from another generator than the host's: the same seed gives
the same tokens on one kind of device, not across kinds.
"""

from __future__ import annotations

import torch

from lightthinker.attention.triton.sample import sample
from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch
from lightthinker.engine.pending import PendingTokens, TokenBuffer
from lightthinker.engine.sequence import Sequence


def samples_on_host(sequence: Sequence) -> bool:
    """Whether this sequence's sampling needs more than the kernel does."""
    return sequence.params.has_penalties


class DeviceSampler:
    """Draws one token per sequence and leaves it on the device.

    Args:
        never_sampled: Ids that no request samples.
        max_rows: Most samples of a step.
        vocab_size: V.
        device: Where the model runs.
    """

    def __init__(
        self,
        never_sampled: tuple[int, ...],
        *,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
    ):
        self.never_sampled = never_sampled
        self.buffer = TokenBuffer(max_rows, device)
        self.settings = SamplingBatch(
            max_rows=max_rows,
            vocab_size=vocab_size,
            device=device,
            max_forbidden=len(never_sampled),
        )

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> PendingTokens:
        """Sample a step; logits [B, V] of the B sequences."""
        self.fill(sequences, num_rows=len(sequences))
        self.draw(logits)
        return self.buffer.fetch(len(sequences))

    def fill(self, sequences: list[Sequence], *, num_rows: int) -> None:
        """Send a step's settings to the device; rows beyond the sequences are greedy."""
        rows = [
            RowSampling(
                temperature=s.params.temperature,
                top_k=s.params.top_k,
                top_p=s.params.top_p,
                min_p=s.params.min_p,
                seed=s.seed,
                step=len(s.sampled_ids),
                forbidden=self.never_sampled,
            )
            for s in sequences
        ]
        padding = RowSampling(forbidden=self.never_sampled)
        self.settings.fill([*rows, *([padding] * (num_rows - len(rows)))])

    def draw(self, logits: torch.Tensor) -> None:
        """Draw for the rows of `logits` [B, V] as `fill` has said; may be captured in a graph."""
        num_rows = len(logits)
        sample(logits, self.settings, self.buffer.tokens[:num_rows], self.buffer.valid[:num_rows])
