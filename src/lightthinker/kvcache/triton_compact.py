"""Move slots of every layer's keys and values, for all sequences of a step, in one launch.

All heads alike (`move`), or each head with moves of its own (`move_heads`).

A move copies one token from a source to a target slot. The moves of one sequence form a *group*;
groups touch different slots, and one program carries out all moves of a group for one tensor and
one block of columns. Within a group moves may overlap (a target may be the source of another move):

- moves are taken in blocks; a block is loaded whole, then a barrier, then stored, so inside a block
  any overlap is harmless;
- between blocks: compaction lists the surviving tokens in order and moves each one down, so targets
  rise strictly and every target lies below its own source, hence below the sources of all later
  moves. No store can hit a slot that is still to be read.

The tensors differ in address and row size only, so the launch gets a table of those, addresses
relative to the first tensor's (one flat address space, and the compiler knows the alignment); a row
is copied as plain 2- or 4-byte words, which keeps NaN payloads too. Imports triton at module level:
import it where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from lightthinker.kvcache.upload import Integers, upload

BLOCK_MOVES = 32
BLOCK_WORDS = 256


@triton.jit(do_not_specialize=["num_moves"])
def _compact_kernel(
    words,
    tensors,
    moves,
    group_start,
    num_moves,
    ALIGNED_WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Move the slots of one tensor, one group and one block of columns.

    `words` is the first tensor; `tensors` [n, 3] says where each begins relative to it, its words
    per row and from row to row; `moves` [2, M] holds sources, then targets.
    """
    entry = tensors + tl.program_id(0) * 3
    offset = tl.multiple_of(tl.load(entry), ALIGNED_WORDS)
    row_words = tl.load(entry + 1)
    stride = tl.multiple_of(tl.load(entry + 2), ALIGNED_WORDS)
    column = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    if tl.program_id(2) * BLOCK_W < row_words:
        begin = tl.load(group_start + tl.program_id(1))
        end = tl.load(group_start + tl.program_id(1) + 1)
        # A row has whole groups of aligned words, or the mask would cut the wide loads up.
        inside = column < tl.multiple_of(row_words, ALIGNED_WORDS)
        for start in tl.range(begin, end, BLOCK_M, num_stages=1):
            move = start + tl.arange(0, BLOCK_M)
            real = move < end
            source = tl.load(moves + move, mask=real, other=0)[:, None]
            target = tl.load(moves + num_moves + move, mask=real, other=0)[:, None]
            mask = real[:, None] & inside
            held = tl.load(words + offset + source * stride + column, mask=mask)
            tl.debug_barrier()
            tl.store(words + offset + target * stride + column, held, mask=mask)


@triton.jit(do_not_specialize=["num_moves", "group_moves"])
def _compact_heads_kernel(
    words,
    tensors,
    source_LHM,
    target_M,
    num_moves,
    group_moves,
    NUM_LAYERS: tl.constexpr,
    ALIGNED_WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Move what one head of one group has in one tensor.

    `tensors` is as above, NUM_LAYERS of each kind; rows have as many pieces of `head_words` as the
    launch has heads. Moves to the same slot, of which there are many, touch no memory.
    """
    entry = tensors + tl.program_id(0) * 3
    offset = tl.multiple_of(tl.load(entry), ALIGNED_WORDS)
    num_heads = tl.num_programs(2)
    head_words = tl.multiple_of(tl.load(entry + 1) // num_heads, ALIGNED_WORDS)
    stride = tl.multiple_of(tl.load(entry + 2), ALIGNED_WORDS)
    head = tl.program_id(2)
    layer = tl.program_id(0) % NUM_LAYERS
    begin = tl.program_id(1) * group_moves
    sources = source_LHM + (layer * num_heads + head).to(tl.int64) * num_moves
    base = words + offset + head * head_words
    for start in tl.range(begin, begin + group_moves, BLOCK_M, num_stages=1):
        move = start + tl.arange(0, BLOCK_M)
        real = move < begin + group_moves
        source = tl.load(sources + move, mask=real, other=0)
        target = tl.load(target_M + move, mask=real, other=0)
        real &= source != target
        for first in tl.range(0, head_words, BLOCK_W, num_stages=1):
            column = first + tl.arange(0, BLOCK_W)[None, :]
            mask = real[:, None] & (column < head_words)
            held = tl.load(base + source[:, None] * stride + column, mask=mask)
            tl.debug_barrier()
            tl.store(base + target[:, None] * stride + column, held, mask=mask)
            tl.debug_barrier()


class PackedMoves(NamedTuple):
    """A step's moves on the device: sources then targets, where each group starts (and the end)."""

    slots: torch.Tensor
    group_start: torch.Tensor
    num_moves: int


class SlotMover:
    """Moves slots in a fixed set of tensors.

    Args:
        slot_tensors: Keys and values of all layers, slots first, heads and elements contiguous.
        token_index: int64, what each slot holds.
        check_order: Check every call's promise on the host (for tests).
    """

    def __init__(
        self,
        slot_tensors: Sequence[torch.Tensor],
        token_index: torch.Tensor,
        *,
        check_order: bool = False,
    ):
        self.check_order = check_order
        self.device = token_index.device
        word = torch.int32 if slot_tensors[0].element_size() == 4 else torch.int16
        # Two launches: the index has rows of eight bytes, too narrow for 16-byte loads.
        self._launches = [_Launch(slot_tensors, word), _Launch([token_index], word)]
        self._scores: _Launch | None = None

    def move(self, source: Integers, target: Integers, group_sizes: list[int]) -> None:
        """Carry out the moves; the order argument above is the caller's promise.

        Args:
            source: Slots to read.
            target: Slots to write.
            group_sizes: Moves of each group, in order.
        """
        if not len(source):
            return
        if self.check_order:
            _check_order(list(source), list(target), group_sizes)
        self.launch(self.pack(source, target, group_sizes))

    def move_heads(
        self,
        source_LHM: torch.Tensor,
        target_M: torch.Tensor,
        group_size: int,
        scores_LNH: torch.Tensor,
    ) -> None:
        """Carry out moves that differ between layers and heads; the index stays as it is.

        Args:
            source_LHM: int64, slots to read, by layer and head.
            target_M: int64, slots to write.
            group_size: Moves of each group; among a group's tokens targets rise, and none comes
                after its source.
            scores_LNH: Moved along; the same tensor in every call.
        """
        if self._scores is None:
            self._scores = _Launch(list(scores_LNH), torch.int16)
        for launch in (self._launches[0], self._scores):
            launch.run_heads(source_LHM.contiguous(), target_M.contiguous(), group_size)

    def pack(self, source: Integers, target: Integers, group_sizes: list[int]) -> PackedMoves:
        """Bring a step's moves to the device in one asynchronous copy (arguments as in `move`)."""
        num_moves = len(source)
        assert num_moves == len(target) == sum(group_sizes), (num_moves, len(target), group_sizes)
        words = upload(np.concatenate([source, target, [0], np.cumsum(group_sizes)]), self.device)
        return PackedMoves(words[: 2 * num_moves], words[2 * num_moves :], num_moves)

    def launch(self, moves: PackedMoves) -> None:
        """Carry out packed moves: two kernel launches, whatever the number of sequences."""
        for launch in self._launches:
            launch.run(moves)


class _Launch:
    """One kernel launch over tensors that share an alignment."""

    def __init__(self, tensors: Sequence[torch.Tensor], word: torch.dtype):
        for tensor in tensors:
            assert tensor[0].is_contiguous(), "a slot's elements are adjacent"
        size, first = word.itemsize, tensors[0].data_ptr()
        table = [
            (
                (t.data_ptr() - first) // size,
                t[0].numel() * t.element_size() // size,
                t.stride(0) * t.element_size() // size,
            )
            for t in tensors
        ]
        wide = 16 // size
        aligned = first % 16 == 0 and all(number % wide == 0 for line in table for number in line)
        self.tensors = tensors
        self.words = tensors[0].view(word)
        self.aligned_words = wide if aligned else 1
        self.row_words = [words for _, words, _ in table]
        self.table = torch.tensor(table, dtype=torch.int64, device=tensors[0].device)

    def run(self, moves: PackedMoves) -> None:
        num_groups = len(moves.group_start) - 1
        grid = (len(self.tensors), num_groups, -(-max(self.row_words) // BLOCK_WORDS))
        _compact_kernel[grid](
            self.words,
            self.table,
            moves.slots,
            moves.group_start,
            moves.num_moves,
            ALIGNED_WORDS=self.aligned_words,
            BLOCK_M=BLOCK_MOVES,
            BLOCK_W=BLOCK_WORDS,
            num_warps=4,
            num_stages=1,
        )

    def run_heads(self, source_LHM: torch.Tensor, target_M: torch.Tensor, group_size: int) -> None:
        num_layers, num_heads, num_moves = source_LHM.shape
        pieces = [words // num_heads for words in self.row_words]
        aligned = all(words % self.aligned_words == 0 for words in pieces)
        grid = (len(self.tensors), num_moves // group_size, num_heads)
        _compact_heads_kernel[grid](
            self.words,
            self.table,
            source_LHM,
            target_M,
            num_moves,
            group_size,
            NUM_LAYERS=num_layers,
            ALIGNED_WORDS=self.aligned_words if aligned else 1,
            BLOCK_M=BLOCK_MOVES,
            BLOCK_W=min(BLOCK_WORDS, triton.next_power_of_2(max(pieces))),
            num_warps=4,
            num_stages=1,
        )


def _check_order(source: list[int], target: list[int], group_sizes: list[int]) -> None:
    """Raise AssertionError if moves break the promise of `SlotMover.move`."""
    owner: dict[int, int] = {}
    start = 0
    for group, size in enumerate(group_sizes):
        for slot in (*source[start : start + size], *target[start : start + size]):
            if owner.setdefault(slot, group) != group:
                raise AssertionError(f"slot {slot} is moved by two sequences")
        last_read = {slot: i for i, slot in enumerate(source[start : start + size])}
        for i, slot in enumerate(target[start : start + size]):
            if last_read.get(slot, -1) > i:
                raise AssertionError(f"move {i} writes slot {slot} before it is read")
        start += size
