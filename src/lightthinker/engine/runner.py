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
from lightthinker.engine.step import StepPlan
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
        zero = self._tensor([0])
        self._forward(probe, zero, zero, zero)
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
        plan: StepPlan,
        known: list[int] | torch.Tensor | None,
    ) -> torch.Tensor:
        """Forward a step.

        Args:
            backend: Stores keys and values and attends.
            batch: The plan's rows for it.
            plan: The step.
            known: Samples of the step before, for the rows whose token the plan does not know.

        Returns:
            Logits [B, V] in float32, one row per wanted row.
        """
        backend.prepare(batch)
        token_ids = self._tensor(plan.token_ids)
        if known is not None:
            samples = torch.as_tensor(known, device=self.device)
            token_ids[self._tensor(plan.unknown_rows)] = samples[self._tensor(plan.unknown_from)]
        # Without wanted rows one is read all the same: models want at least one.
        wanted = self._tensor(plan.wanted_rows or [0])
        return self._forward(backend, token_ids, self._tensor(plan.positions), wanted).float()

    @torch.no_grad()
    def _forward(
        self,
        backend: AttentionBackend,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        wanted_rows: torch.Tensor,
    ) -> torch.Tensor:
        with paged_attention(backend):
            output = self.model(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=wanted_rows,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _tensor(self, data: list[int]) -> torch.Tensor:
        return torch.tensor(data, dtype=torch.long, device=self.device)


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
