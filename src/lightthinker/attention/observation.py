"""Attention made visible: what each cached token received from the rows a cache policy observes.

Fused attention never shows its probabilities, so they are computed once more, in plain PyTorch, for
the observed rows only, and added up per slot and KV head beside the keys (`PagePool.scores`). Works
with any backend, which it stands around for a step (`watching`): once a layer's keys are stored and
attended to, the observed rows attend again. A step without observed rows costs nothing, and where
our kernels run, one kernel does in a layer what one row a sequence takes. Shapes: B sequences, R
rows, L live tokens, H KV heads, G query heads per KV head, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lightthinker.attention.batch import Grouping, ObservedRows, PagedBatch, SequenceRows
from lightthinker.attention.paged import AttentionBackend
from lightthinker.kvcache.pool import PagePool
from lightthinker.kvcache.upload import upload

MAX_ROWS_TOGETHER = 128
MAX_GATHERED_TOKENS = 65_536


class _ObservedBackend:
    """A backend, and an observer that looks at each layer after it."""

    def __init__(self, backend: AttentionBackend, observer: AttentionObserver):
        self.backend = backend
        self.observer = observer

    def prepare(self, batch: PagedBatch) -> None:
        self.backend.prepare(batch)

    def attend(
        self,
        layer: int,
        query_THD: torch.Tensor,
        key_THD: torch.Tensor,
        value_THD: torch.Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        out_THD = self.backend.attend(
            layer, query_THD, key_THD, value_THD, scaling=scaling, softcap=softcap, window=window
        )
        self.observer.observe(layer, query_THD, scaling=scaling, softcap=softcap)
        return out_THD


@dataclass(frozen=True)
class _Part:
    """Observed rows of one sequence: at most `MAX_ROWS_TOGETHER` of them."""

    sequence: SequenceRows
    start: int
    first: int
    stop: int
    observed: ObservedRows


@dataclass(frozen=True)
class _Block:
    """Parts computed together; all have the same number of rows."""

    grouping: Grouping
    query_rows_BR: torch.Tensor
    slots_BL: torch.Tensor
    visible_BRL: torch.Tensor


class AttentionObserver:
    """Adds up, per slot and KV head, the attention that observed rows pay.

    Args:
        pool: Where the keys are and the sums go.
        kernels: Observe single rows with the Triton kernel.
    """

    def __init__(self, pool: PagePool, *, kernels: bool = False):
        self.pool = pool
        self.kernels = kernels
        self._blocks: list[_Block] = []

    def watching(self, backend: AttentionBackend, batch: PagedBatch) -> AttentionBackend:
        """Return the backend to run this step with: the same unless rows are observed."""
        self._note(batch)
        return _ObservedBackend(backend, self) if self._blocks else backend

    def _note(self, batch: PagedBatch) -> None:
        """Note which of the step's rows are observed; the slots they write start at zero."""
        if self.pool.scores is not None:
            self.pool.scores[:, batch.slot_mapping] = 0
        parts: dict[tuple[Grouping, int], list[_Part]] = {}
        start = 0
        for sequence in batch.sequences:
            watch = sequence.observed
            if watch is not None:
                for first in range(watch.first, watch.stop, MAX_ROWS_TOGETHER):
                    stop = min(first + MAX_ROWS_TOGETHER, watch.stop)
                    part = _Part(sequence, start, first, stop, watch)
                    parts.setdefault((watch.grouping, stop - first), []).append(part)
            start += len(sequence.rows)
        self._blocks = [
            self._block(grouping, chunk)
            for (grouping, num_rows), members in parts.items()
            for chunk in _chunks(members, num_rows)
        ]

    def observe(
        self, layer: int, query_THD: torch.Tensor, *, scaling: float, softcap: float | None
    ) -> None:
        """Add the attention that this layer's observed rows pay to the sums."""
        for block in self._blocks:
            assert self.pool.scores is not None, "PagePool.keep_scores() comes first"
            if self._has_kernel and block.query_rows_BR.shape[1] == 1:
                self._observe_single_rows(layer, block, query_THD, scaling, softcap)
                continue
            keys_BLHD = self.pool.keys[layer][block.slots_BL]
            probabilities_BHRL = _attention(block, query_THD, keys_BLHD, scaling, softcap)
            received_BLH = probabilities_BHRL.sum(dim=2).transpose(1, 2)
            scores = self.pool.scores[layer]
            scores.index_add_(
                0, block.slots_BL.flatten(), received_BLH.flatten(0, 1).to(scores.dtype)
            )

    @property
    def _has_kernel(self) -> bool:
        scores = self.pool.scores
        return self.kernels and scores is not None and scores.dtype == torch.float32

    def _observe_single_rows(
        self,
        layer: int,
        block: _Block,
        query_THD: torch.Tensor,
        scaling: float,
        softcap: float | None,
    ) -> None:
        from lightthinker.attention.triton.observe import observe_rows

        assert self.pool.scores is not None
        observe_rows(
            query_THD,
            block.query_rows_BR[:, 0],
            block.slots_BL,
            block.visible_BRL[:, 0],
            self.pool.keys[layer],
            self.pool.scores[layer],
            grouping=block.grouping,
            scaling=scaling,
            softcap=softcap,
        )

    def _block(self, grouping: Grouping, parts: list[_Part]) -> _Block:
        size, device = self.pool.page_size, self.pool.token_index.device
        num_live = max(p.sequence.num_live for p in parts)
        num_pages = -(-num_live // size)

        def tensor(data: object) -> torch.Tensor:
            return upload(np.asarray(data, dtype=np.int64), device)

        pages = [(p.sequence.pages + [p.sequence.pages[0]] * num_pages)[:num_pages] for p in parts]
        slots = tensor(pages)[:, :, None] * size + torch.arange(size, device=device)
        slots = slots.flatten(1)[:, :num_live]
        column = torch.arange(num_live, device=device)
        live = column < tensor([p.sequence.num_live for p in parts])[:, None]
        rows = [p.sequence.rows[p.first : p.stop] for p in parts]
        uppers = [
            [min(r.upper, p.observed.upper) for r in part]
            for p, part in zip(parts, rows, strict=True)
        ]
        lowers = [[r.lower for r in part] for part in rows]
        visible = (column >= tensor(lowers)[..., None]) & (column < tensor(uppers)[..., None])
        return _Block(
            grouping,
            tensor([list(range(p.start + p.first, p.start + p.stop)) for p in parts]),
            torch.where(live, slots, slots[:, :1]),
            visible,
        )


def _attention(
    block: _Block,
    query_THD: torch.Tensor,
    keys_BLHD: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Return the probabilities [B, H, R, L], query heads grouped to KV heads."""
    dtype = torch.promote_types(query_THD.dtype, torch.float32)
    query = query_THD[block.query_rows_BR].to(dtype)
    num_heads = keys_BLHD.shape[2]
    query_BRHGD = query.view(*query.shape[:2], num_heads, -1, query.shape[-1])
    logits = torch.einsum("brhgd,blhd->bhgrl", query_BRHGD, keys_BLHD.to(dtype)) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    visible = block.visible_BRL[:, None]
    if block.grouping == "max_logit":
        return logits.amax(dim=2).masked_fill(~visible, float("-inf")).softmax(dim=-1)
    logits.masked_fill_(~visible[:, None], float("-inf"))
    probabilities = logits.softmax(dim=-1)
    return probabilities.sum(dim=2) if block.grouping == "sum" else probabilities.mean(dim=2)


def _chunks(parts: list[_Part], num_rows: int) -> list[list[_Part]]:
    """Cut parts, ordered by length, so that no block computes too many probabilities."""
    chunks: list[list[_Part]] = []
    for part in sorted(parts, key=lambda p: p.sequence.num_live):
        size = part.sequence.num_live * num_rows
        if not chunks or (len(chunks[-1]) + 1) * size > MAX_GATHERED_TOKENS:
            chunks.append([])
        chunks[-1].append(part)
    return chunks
