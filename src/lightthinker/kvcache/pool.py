"""The KV memory: per layer, keys and values in slots; a page is `page_size` consecutive slots.

A slot also remembers which token (original index in its sequence) it holds: sliding windows are
measured there. Keys are stored after RoPE, so a token can move to another slot as it is. Shapes: N
slots, H KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightthinker.kvcache.allocator import PageAllocator


class LayerShape(NamedTuple):
    """What one layer stores per token, as a probe forward has shown it."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


class PagePool:
    """Keys and values of all layers, and the pages they live in.

    Args:
        shapes: One per layer.
        num_pages: Pages in the pool.
        page_size: Tokens per page.
        dtype: Of keys and values.
        device: Where the pool lives.
        poison: Fill freed slots with NaN, so that reading one is seen (for tests).
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        poison: bool = False,
    ):
        self.page_size = page_size
        self.poison = poison
        self.allocator = PageAllocator(num_pages, on_evict=self._clear_page)
        num_slots = num_pages * page_size

        def slots(num_heads: int, dim: int) -> torch.Tensor:
            # Zeros cost nothing until they are written: the system hands out empty pages lazily.
            tensor = torch.zeros((num_slots, num_heads, dim), dtype=dtype, device=device)
            return tensor.fill_(float("nan")) if poison else tensor

        self.keys = [slots(s.num_kv_heads, s.key_dim) for s in shapes]
        self.values = [slots(s.num_kv_heads, s.value_dim) for s in shapes]
        self.token_index = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.bytes_per_token = (
            sum(s.num_kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize
        )

    @property
    def num_slots(self) -> int:
        """Tokens that fit."""
        return len(self.token_index)

    def move(self, source: list[int], target: list[int]) -> None:
        """Copy slots `source` to slots `target` in every layer; the lists may overlap."""
        src, dst = self._index(source), self._index(target)
        for tensor in (*self.keys, *self.values, self.token_index):
            tensor[dst] = tensor[src]

    def clear(self, slots: list[int]) -> None:
        """Poison freed slots, if this pool does so."""
        if self.poison and slots:
            index = self._index(slots)
            for tensor in (*self.keys, *self.values):
                tensor[index] = float("nan")

    def release(self, pages: list[int]) -> None:
        """Let go of pages; what became free is poisoned, if this pool does so."""
        for page in self.allocator.release(pages):
            self._clear_page(page)

    def _clear_page(self, page: int) -> None:
        if self.poison:
            self.clear(list(range(page * self.page_size, (page + 1) * self.page_size)))

    def read(self, slots: list[int]) -> list[torch.Tensor]:
        """Copy slots to host memory: all keys, all values, the token index."""
        index = self._index(slots)
        return [tensor[index].cpu() for tensor in (*self.keys, *self.values, self.token_index)]

    def write(self, slots: list[int], saved: list[torch.Tensor]) -> None:
        """Put back what `read` returned, into any slots."""
        index = self._index(slots)
        for tensor, data in zip((*self.keys, *self.values, self.token_index), saved, strict=True):
            tensor[index] = data.to(tensor.device)

    def _index(self, slots: list[int]) -> torch.Tensor:
        return torch.tensor(slots, dtype=torch.long, device=self.token_index.device)
