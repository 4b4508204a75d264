"""Samples on the device, without waiting for it: the kernel's settings, filled in per sequence.

What it cannot do, penalties and log-probabilities, is left to `Sampler` on the host. Draws come
from another generator than the host's: the same seed gives the same tokens on one kind of device,
not across kinds.
"""

from __future__ import annotations

import torch

from lightthinker.attention.triton.sample import sample
from lightthinker.attention.triton.sampling_batch import (
    RowSampling,
    SamplingBatch,
    SamplingField,
)
from lightthinker.engine.lane import Riders
from lightthinker.engine.pending import PendingTokens, TokenBuffer
from lightthinker.engine.sequence import Sequence


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
        self._padding = RowSampling(forbidden=never_sampled)
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

    def fill(
        self, sequences: list[Sequence], *, num_rows: int, riders: Riders | None = None
    ) -> None:
        """Send a step's settings to the device; rows beyond riders and sequences are greedy."""
        rows = [self.row(s) for s in sequences]
        steps = [len(s.sampled_ids) for s in sequences]
        num_padding = num_rows - len(rows) - (len(riders) if riders else 0)
        rows += [self._padding] * num_padding
        steps += [0] * num_padding
        if riders is None:
            self.settings.fill(rows, steps)
            return
        packed = riders.sampling.copy()
        packed[SamplingField.STEP] = riders.num_sampled
        self.settings.fill(rows, steps, packed=packed, forbidden=self.never_sampled)

    def row(self, sequence: Sequence) -> RowSampling:
        """Return a sequence's settings, made once; only their step changes."""
        if sequence.row_sampling is not None:
            known: RowSampling = sequence.row_sampling
            return known
        params = sequence.params
        sequence.row_sampling = row = RowSampling(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=sequence.seed,
            forbidden=self.never_sampled,
        )
        return row

    def draw(self, logits: torch.Tensor) -> None:
        """Draw for the rows of `logits` [B, V] as `fill` has said; may be captured in a graph."""
        num_rows = len(logits)
        sample(logits, self.settings, self.buffer.tokens[:num_rows], self.buffer.valid[:num_rows])
