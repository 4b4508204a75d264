"""Paged attention through our Triton kernels.

`prepare` fills static buffers (`RowsMetadata`); `attend` reads nothing else, so the launches can be
captured in a CUDA graph. A graph runner owns one `RowsMetadata` per captured size, assigns it to
`metadata` and fills it itself.
"""

from __future__ import annotations

from typing import Any

import torch

from lightthinker.attention.batch import PagedBatch
from lightthinker.attention.rows_metadata import RowsCapacity, RowsMetadata
from lightthinker.attention.triton.rows_attention import rows_attention
from lightthinker.attention.triton.store_kv import store_kv
from lightthinker.attention.triton.tiled_attention import tiled_attention
from lightthinker.kvcache.pool import PagePool


class TritonBackend:
    """Stores and attends on a GPU, or in Triton's interpreter.

    Attributes:
        metadata: The step that `attend` computes.

    Args:
        pool: The KV memory.
        capacity: The largest step expected; `prepare` grows the buffers for a larger one.
    """

    def __init__(self, pool: PagePool, capacity: RowsCapacity | None = None):
        self.pool = pool
        self.metadata = self.new_metadata(
            capacity or RowsCapacity(max_rows=256, max_sequences=16, max_pages=64)
        )

    def new_metadata(self, capacity: RowsCapacity) -> RowsMetadata:
        """Return buffers for steps of this size, as a CUDA graph would own them."""
        return RowsMetadata(
            capacity,
            page_size=self.pool.page_size,
            device=self.pool.token_index.device,
            counters_per_row=max(values.shape[1] for values in self.pool.values),
        )

    def prepare(self, batch: PagedBatch) -> None:
        """Note the step's rows; called once before the model's forward."""
        needed = RowsCapacity.of(batch)
        if not self.metadata.capacity.holds(needed):
            self.metadata = self.new_metadata(self.metadata.capacity.grown(needed))
        self.metadata.fill(batch)

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
        keys, values, index = self.pool.keys[layer], self.pool.values[layer], self.pool.token_index
        out_THD = query_THD.new_empty(*query_THD.shape[:2], value_THD.shape[2])
        step = (keys, values, index, self.metadata)
        settings: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "window": window}
        if self.metadata.num_tiles:
            store_kv(key_THD, value_THD, *step)
            rows_attention(query_THD, *step, out_THD, **settings)
            tiled_attention(query_THD, *step, out_THD, **settings)
        else:
            rows_attention(query_THD, *step, out_THD, store=(key_THD, value_THD), **settings)
        return out_THD
