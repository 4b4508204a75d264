"""Paged attention in plain PyTorch, the reference: gathers each sequence's pages, calls SDPA.

Decode rows go together, groups of gist rows too, a long prefill goes alone. Padding
points at the sequence's own first slot, so no freed slot is ever read. Shapes: B sequences, R rows,
L live tokens, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lightthinker.attention.batch import PagedBatch, SequenceRows
from lightthinker.kvcache.pool import PagePool
from lightthinker.masks import masked_attention

MAX_ROWS_TOGETHER = 32
MAX_GATHERED_TOKENS = 65_536


@dataclass
class _Group:
    """Sequences computed in one SDPA call."""

    query_rows_BR: torch.Tensor
    slots_BL: torch.Tensor
    visible_BRL: torch.Tensor
    row_index_BR: torch.Tensor
    key_index_BL: torch.Tensor
    out_rows: torch.Tensor
    out_flat: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        if window not in self.masks:
            mask = self.visible_BRL
            if window is not None:
                mask = mask & (
                    self.key_index_BL[:, None, :] > self.row_index_BR[:, :, None] - window
                )
            self.masks[window] = mask[:, None]
        return self.masks[window]


class TorchBackend:
    """Prepares a step once, then attends layer by layer."""

    def __init__(self, pool: PagePool):
        self.pool = pool
        self._groups: list[_Group] = []
        self._batch: PagedBatch | None = None
        self._workspace: dict[str, torch.Tensor] = {}

    def prepare(self, batch: PagedBatch) -> None:
        """Note the step's rows; called once before the model's forward."""
        self._batch = batch
        self.pool.token_index[batch.slot_mapping] = batch.token_index
        starts, start = [], 0
        for sequence in batch.sequences:
            starts.append(start)
            start += len(sequence.rows)
        order = sorted(range(len(starts)), key=lambda i: batch.sequences[i].num_live)
        single = [i for i in order if len(batch.sequences[i].rows) == 1]
        several = [i for i in order if 1 < len(batch.sequences[i].rows) <= MAX_ROWS_TOGETHER]
        prefills = [[i] for i in order if len(batch.sequences[i].rows) > MAX_ROWS_TOGETHER]
        members = [*_chunks(single, batch), *_chunks(several, batch), *prefills]
        self._groups = [
            self._group([batch.sequences[i] for i in chunk], [starts[i] for i in chunk])
            for chunk in members
        ]

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
        """Store this layer's keys and values, then attend; returns [T, H, D_value]."""
        assert self._batch is not None, "prepare() comes first"
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        keys.index_copy_(0, self._batch.slot_mapping, key_THD)
        values.index_copy_(0, self._batch.slot_mapping, value_THD)
        out_THD = query_THD.new_empty(*query_THD.shape[:2], value_THD.shape[2])
        for group in self._groups:
            q = query_THD[group.query_rows_BR].transpose(1, 2)
            k = self._gather("keys", keys, group.slots_BL).transpose(1, 2)
            v = self._gather("values", values, group.slots_BL).transpose(1, 2)
            attended = masked_attention(
                q, k, v, group.mask(window), scaling=scaling, softcap=softcap
            )
            out_THD[group.out_rows] = attended.transpose(1, 2).flatten(0, 1)[group.out_flat]
        return out_THD

    def _gather(self, name: str, kv_NHD: torch.Tensor, slots_BL: torch.Tensor) -> torch.Tensor:
        """Return `kv_NHD[slots_BL]`, in memory that the next layer uses again.

        On a CPU, copying whole slots is several times faster than advanced indexing, and fresh
        memory for every layer would cost more in page faults than the copy itself.
        """
        flat = kv_NHD.flatten(1)
        size = slots_BL.numel() * flat.shape[1]
        if name not in self._workspace or len(self._workspace[name]) < size:
            self._workspace[name] = flat.new_empty(size + size // 4)
        out = self._workspace[name][:size].view(-1, flat.shape[1])
        torch.index_select(flat, 0, slots_BL.flatten(), out=out)
        return out.view(*slots_BL.shape, *kv_NHD.shape[1:])

    def _group(self, sequences: list[SequenceRows], starts: list[int]) -> _Group:
        size, device = self.pool.page_size, self.pool.token_index.device
        num_rows = max(len(s.rows) for s in sequences)
        num_live = max(s.num_live for s in sequences)
        num_pages = -(-num_live // size)
        pages, rows, row_index, query_rows = [], [], [], []
        out_rows: list[int] = []
        out_flat: list[int] = []
        for b, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            count = len(sequence.rows)
            padding = num_rows - count
            pages.append((sequence.pages + [sequence.pages[0]] * num_pages)[:num_pages])
            rows += [*sequence.rows, *([sequence.rows[0]] * padding)]
            row_index.append(sequence.indices + [sequence.indices[0]] * padding)
            query_rows.append([*range(start, start + count), *([start] * padding)])
            out_rows += range(start, start + count)
            out_flat += range(b * num_rows, b * num_rows + count)

        def tensor(data: object) -> torch.Tensor:
            return torch.tensor(data, dtype=torch.long, device=device)

        slots = tensor(pages)[:, :, None] * size + torch.arange(size, device=device)
        slots = slots.flatten(1)[:, :num_live]
        column = torch.arange(num_live, device=device)
        live = column < tensor([s.num_live for s in sequences])[:, None]
        slots = torch.where(live, slots, slots[:, :1])
        lower, upper, excl_lo, excl_hi = tensor(rows).view(len(sequences), num_rows, 4, 1).unbind(2)
        visible = (column >= lower) & (column < upper) & ~((column >= excl_lo) & (column < excl_hi))
        return _Group(
            tensor(query_rows),
            slots,
            visible,
            tensor(row_index),
            self.pool.token_index[slots],
            tensor(out_rows),
            tensor(out_flat),
        )


def _chunks(members: list[int], batch: PagedBatch) -> list[list[int]]:
    """Cut sequences, ordered by length, so that no group gathers too many tokens."""
    chunks: list[list[int]] = []
    for i in members:
        length = batch.sequences[i].num_live
        if not chunks or (len(chunks[-1]) + 1) * length > MAX_GATHERED_TOKENS:
            chunks.append([])
        chunks[-1].append(i)
    return chunks
