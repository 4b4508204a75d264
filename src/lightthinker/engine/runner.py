"""Runs an unmodified Hugging Face model over a paged batch."""

from __future__ import annotations

from typing import Any

import torch

from lightthinker.attention.batch import PagedBatch
from lightthinker.attention.paged import (
    PAGED_ATTENTION,
    AttentionBackend,
    paged_attention,
)
from lightthinker.engine.architecture import check_config, probe_layers
from lightthinker.engine.fusion import compile_merged, fuse_projections, materialize_rotary
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.step import StepPlan
from lightthinker.kvcache.pool import LayerShape
from lightthinker.kvcache.upload import upload


class ModelRunner:
    """A model whose attention is `lt_paged`, and the forward the engine needs.

    Args:
        model: A Hugging Face causal LM in evaluation mode.
    """

    def __init__(self, model: Any):
        check_config(model.config)
        model.set_attn_implementation(PAGED_ATTENTION)
        assert model.config._attn_implementation == PAGED_ATTENTION
        self.model = model.eval()
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self._compiled: Any = None
        self._compiler: Any = "inductor"

    def fuse(self) -> None:
        """Let the compiled model compute projections of one input together, and RoPE once."""
        fuse_projections(self.model)
        materialize_rotary(self.model)
        self._compiler = compile_merged

    def compile(self, on: bool = True) -> None:
        """Compile the model for `forward(..., compiled=True)`; happens at the first such call."""
        self._compiled = (
            torch.compile(self.model.forward, fullgraph=True, backend=self._compiler)
            if on
            else None
        )

    def probe(self) -> list[LayerShape]:
        """Forward a few tokens to learn what each layer stores; see `probe_layers`."""
        return probe_layers(self.model)

    def run(
        self,
        backend: AttentionBackend,
        batch: PagedBatch,
        plan: StepPlan,
        known: list[int] | PendingTokens | None,
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
            samples = known.device if isinstance(known, PendingTokens) else self._tensor(known)
            places = self._tensor(plan.unknown_from)
            # A sample that failed is forwarded like any other; its request ends when it is seen.
            token_ids[self._tensor(plan.unknown_rows)] = samples[places].clamp_min(0)
        # Without wanted rows one is read all the same: models want at least one, and what is
        # compiled at least two of everything.
        compiled = self._compiled is not None and len(plan.token_ids) > 1
        wanted = plan.wanted_rows or [0]
        rows = self._tensor(wanted * 2 if compiled and len(wanted) == 1 else wanted)
        positions = self._tensor(plan.positions)
        logits = self.forward(backend, token_ids, positions, rows, compiled=compiled)
        return logits[: len(wanted)].float()

    @torch.no_grad()
    def forward(
        self,
        backend: AttentionBackend,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        wanted_rows: torch.Tensor,
        *,
        compiled: bool = False,
    ) -> torch.Tensor:
        """Forward rows whose KV slots the backend knows.

        Args:
            backend: Stores keys and values and attends; prepared.
            token_ids: int64 [T].
            positions: int64 [T].
            wanted_rows: int64 [B], rows whose logits are wanted.
            compiled: Use the compiled model, if there is one; T and B are then at least 2, since a
                size of 1 would be compiled apart.

        Returns:
            Logits [B, V] in the model's dtype.
        """
        model, ids, position_ids = self.model, token_ids[None], positions[None]
        if compiled and self._compiled is not None:
            model = self._compiled
            for tensor, dimension in ((ids, 1), (position_ids, 1), (wanted_rows, 0)):
                torch._dynamo.mark_dynamic(tensor, dimension)
        with paged_attention(backend):
            output = model(
                input_ids=ids,
                position_ids=position_ids,
                use_cache=False,
                logits_to_keep=wanted_rows,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _tensor(self, data: list[int]) -> torch.Tensor:
        return upload(data, self.device)
