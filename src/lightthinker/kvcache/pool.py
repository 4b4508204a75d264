"""The KV memory: per layer, keys and values in slots; a page is `page_size` consecutive slots.

A slot also remembers which token (original index in its sequence) it holds: sliding windows are
measured there. Keys are stored after RoPE, so a token can move to another slot as it is. Shapes: N
slots, H KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from lightthinker.kvcache.allocator import PageAllocator
from lightthinker.kvcache.upload import Integers, download, upload

if TYPE_CHECKING:
    from lightthinker.kvcache.triton_compact import SlotMover


class LayerShape(NamedTuple):
    """What one layer stores per token, and how far it sees, as a probe forward has shown it."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None


def bytes_per_token(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Return the bytes of keys and values that one token takes in all layers."""
    return sum(s.num_kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize


class PagePool:
    """Keys and values of all layers, and the pages they live in.

    Args:
        shapes: One per layer.
        num_pages: Pages in the pool.
        page_size: Tokens per page.
        dtype: Of keys and values.
        device: Where the pool lives.
        poison: Fill freed slots with NaN, so that reading one is seen (for tests).
        kernels: Move slots with the Triton kernel rather than by torch indexing.
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
        kernels: bool = False,
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
        self.scores: torch.Tensor | None = None
        self.bytes_per_token = bytes_per_token(shapes, dtype)
        self._mover: SlotMover | None = None
        if kernels:
            from lightthinker.kvcache.triton_compact import SlotMover

            self._mover = SlotMover(
                [*self.keys, *self.values], self.token_index, check_order=poison
            )

    @property
    def num_slots(self) -> int:
        """Tokens that fit."""
        return len(self.token_index)

    def free(self) -> None:
        """Let go of all memory; the pool holds nothing from now on."""
        self.keys.clear()
        self.values.clear()
        self.scores, self._mover = None, None

    def keep_scores(self) -> None:
        """Keep attention scores beside the keys from now on: `scores`, [L, N, H].

        All layers must have equally many KV heads.
        """
        if self.scores is None:
            num_layers, num_heads = len(self.keys), self.keys[0].shape[1]
            dtype = torch.promote_types(self.keys[0].dtype, torch.float32)
            shape = (num_layers, self.num_slots, num_heads)
            self.scores = torch.zeros(shape, dtype=dtype, device=self.token_index.device)

    def move(
        self, source: Integers, target: Integers, group_sizes: list[int] | None = None
    ) -> None:
        """Copy slots `source` to slots `target` in every layer; they may overlap.

        Args:
            source: Slots to read.
            target: Slots to write.
            group_sizes: Moves of each sequence, in order; they run side by side. Different
                sequences move different slots; within one, no move writes a slot that a later one
                reads (tokens move down, in order). None: one group.
        """
        tensors = [*self._scores, self.token_index, *self.keys, *self.values]
        if self._mover is not None:
            self._mover.move(source, target, group_sizes or [len(source)])
            tensors = self._scores
        if tensors:
            src, dst = self.index(source), self.index(target)
            for tensor in tensors:
                tensor[dst] = tensor[src]

    def move_heads(self, source_LHn: torch.Tensor, target_n: torch.Tensor, group_size: int) -> None:
        """Copy to slots `target_n` what each layer and head has in slots of its own.

        Slots may overlap. The token index stays: it cannot tell heads apart.

        Args:
            source_LHn: Slots [L, H, n] to copy from.
            target_n: The n slots to copy to.
            group_size: Moves of each sequence, in order; they run side by side. Different sequences
                move different slots; within one, tokens move down, in order.
        """
        if self._mover is not None and self.scores is not None:
            self._mover.move_heads(source_LHn, target_n, group_size, self.scores)
            return
        dst = target_n[:, None]
        head = torch.arange(source_LHn.shape[1], device=source_LHn.device)
        groups = [self.keys, self.values, *([self._scores] if self._scores else [])]
        for tensors in groups:
            for tensor_NHD, source_Hn in zip(tensors, source_LHn, strict=True):
                tensor_NHD[dst, head] = tensor_NHD[source_Hn.T, head]

    def clear(self, slots: list[int]) -> None:
        """Poison freed slots, if this pool does so."""
        if self.poison and slots:
            index = self.index(slots)
            for tensor in (*self.keys, *self.values, *self._scores):
                tensor[index] = float("nan")

    def release(self, pages: list[int]) -> None:
        """Let go of pages; what became free is poisoned, if this pool does so."""
        for page in self.allocator.release(pages):
            self._clear_page(page)

    def _clear_page(self, page: int) -> None:
        if self.poison:
            self.clear(list(range(page * self.page_size, (page + 1) * self.page_size)))

    def read(self, slots: list[int]) -> list[torch.Tensor]:
        """Copy slots to host memory: all keys, all values, scores if kept, the token index.

        On a GPU the copies are queued, into pinned memory; `write` may follow at any time.
        """
        index = self.index(slots)
        tensors = (*self.keys, *self.values, *self._scores, self.token_index)
        return [download(tensor[index]) for tensor in tensors]

    def write(self, slots: list[int], saved: list[torch.Tensor]) -> None:
        """Put back what `read` returned, into any slots."""
        index = self.index(slots)
        *kv, token_index = saved
        self.token_index[index] = token_index.to(self.token_index.device, non_blocking=True)
        # What was read before scores were kept has none, and needs none.
        for tensor, data in zip((*self.keys, *self.values, *self._scores), kv, strict=False):
            tensor[index] = data.to(tensor.device, non_blocking=True)

    @property
    def _scores(self) -> list[torch.Tensor]:
        return [] if self.scores is None else list(self.scores)

    def index(self, slots: Integers) -> torch.Tensor:
        """Return slots as a tensor on the pool's device."""
        return upload(slots, self.token_index.device)
