"""Runs an unmodified Hugging Face model over a paged batch."""

from __future__ import annotations

from typing import Any

import torch

from lightthinker.attention.batch import PagedBatch, SequenceRows
from lightthinker.attention.paged import (
    PAGED_ATTENTION,
    AttentionBackend,
    ShapeProbe,
    paged_attention,
)
from lightthinker.errors import CheckpointError
from lightthinker.kvcache.pool import LayerShape


class ModelRunner:
    """A model whose attention is `lt_paged`, and the forward the engine needs.

    Args:
        model: A Hugging Face causal LM in evaluation mode.
    """

    def __init__(self, model: Any):
        model.set_attn_implementation(PAGED_ATTENTION)
        assert model.config._attn_implementation == PAGED_ATTENTION
        self.model = model.eval()
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype

    def probe(self) -> list[LayerShape]:
        """Forward one token to learn what each layer stores.

        Raises:
            CheckpointError: A layer keeps its state elsewhere (recurrent layers, attention of
                its own).
        """
        probe = ShapeProbe()
        self._forward(probe, [0], [0], [0])
        shapes = probe.shapes
        if not shapes or sorted(shapes) != list(range(max(shapes) + 1)):
            raise CheckpointError(
                f"{type(self.model).__name__} has layers that do not call the "
                "registered attention; the paged engine supports models whose every layer is "
                "softmax attention."
            )
        return [shapes[i] for i in range(len(shapes))]

    def run(
        self,
        backend: AttentionBackend,
        batch: PagedBatch,
        token_ids: list[int],
        positions: list[int],
        wanted_rows: list[int],
    ) -> torch.Tensor:
        """Forward a step.

        Returns:
            Logits [len(wanted_rows), V] in float32.
        """
        backend.prepare(batch)
        return self._forward(backend, token_ids, positions, wanted_rows).float()

    @torch.no_grad()
    def _forward(
        self,
        backend: AttentionBackend,
        token_ids: list[int],
        positions: list[int],
        wanted_rows: list[int],
    ) -> torch.Tensor:
        def tensor(data: list[int]) -> torch.Tensor:
            return torch.tensor(data, dtype=torch.long, device=self.device)

        with paged_attention(backend):
            output = self.model(
                input_ids=tensor(token_ids)[None],
                position_ids=tensor(positions)[None],
                use_cache=False,
                logits_to_keep=tensor(wanted_rows),
            )
        logits: torch.Tensor = output.logits[0]
        return logits


def paged_batch(
    sequences: list[SequenceRows], slots: list[int], device: torch.device
) -> PagedBatch:
    """Build the step's batch; `slots` holds the slot of each row."""
    indices = [i for sequence in sequences for i in sequence.indices]
    return PagedBatch(
        sequences,
        torch.tensor(slots, dtype=torch.long, device=device),
        torch.tensor(indices, dtype=torch.long, device=device),
    )
