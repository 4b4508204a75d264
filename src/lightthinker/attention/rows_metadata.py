"""One step's rows as flat int32 arrays: filled on the host, copied into static device buffers.

`fill` builds a step on the host and uploads it in one copy (`StagedBuffer`); the kernels read
nothing else. Unused rows are padded with slot -1 (nothing is stored) and an empty range (the output
is zero).

Knows nothing of kernels, heads or layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from lightthinker.attention.batch import PagedBatch, SequenceRows
from lightthinker.attention.staging import StagedBuffer
from lightthinker.kvcache.page_list import PageList

TILE_ROWS = 64
"""Most query rows of one prefill tile."""

MIN_TILED_ROWS = 32
"""A sequence with at least this many rows in a step is computed in tiles, a shorter one by row."""

MAX_ROW_KEYS = 1 << 20
"""Most pairs of a row and a key of a step that does without tiles; see `may_attend_by_row`."""


class RowField(IntEnum):
    """Lines of `RowsMetadata.rows`; the kernels use the same numbers.

    `SEQUENCE` is the row's line in the page table; `LOWER`, `UPPER`, `EXCL_LO` and `EXCL_HI` its
    range over the live tokens; `TOKEN_INDEX` its original token index; `LIVE_POSITION` its own
    place among the live tokens; `SLOT` where its KV goes (-1: nowhere); `LAUNCH` lists the rows
    that the split-KV kernel computes; `FIRST_NEW` is the place of the first token that the row's
    sequence forwards in this step.
    """

    SEQUENCE = 0
    LOWER = 1
    UPPER = 2
    EXCL_LO = 3
    EXCL_HI = 4
    TOKEN_INDEX = 5
    LIVE_POSITION = 6
    SLOT = 7
    LAUNCH = 8
    FIRST_NEW = 9


class TileField(IntEnum):
    """Lines of `RowsMetadata.tiles`: a tile's first row and how many rows it has."""

    FIRST_ROW = 0
    NUM_ROWS = 1


@dataclass(frozen=True, kw_only=True)
class RowsCapacity:
    """The largest step that a `RowsMetadata` can hold.

    Attributes:
        max_rows: Tokens forwarded in one step.
        max_sequences: Sequences in one step.
        max_pages: Pages of one sequence.
    """

    max_rows: int
    max_sequences: int
    max_pages: int

    @classmethod
    def of(cls, batch: PagedBatch) -> Self:
        """Return what `batch` needs."""
        return cls(
            max_rows=batch.num_rows,
            max_sequences=len(batch.sequences),
            max_pages=-(-batch.max_live // batch.page_size),
        )

    @property
    def max_tiles(self) -> int:
        """Tiles that `max_rows` rows can need, however they are spread over sequences."""
        # ceil(r / TILE_ROWS) <= r / MIN_TILED_ROWS for every r >= MIN_TILED_ROWS.
        return self.max_rows // MIN_TILED_ROWS

    def holds(self, other: RowsCapacity) -> bool:
        """Whether a step of size `other` fits."""
        return (
            other.max_rows <= self.max_rows
            and other.max_sequences <= self.max_sequences
            and other.max_pages <= self.max_pages
        )

    def grown(self, other: RowsCapacity) -> RowsCapacity:
        """Return a capacity that holds both, rounded up so that growing is rare."""

        def size(a: int, b: int) -> int:
            return a if b <= a else 1 << (b - 1).bit_length()

        return RowsCapacity(
            max_rows=size(self.max_rows, other.max_rows),
            max_sequences=size(self.max_sequences, other.max_sequences),
            max_pages=size(self.max_pages, other.max_pages),
        )


class DecodingRows(Protocol):
    """Sequences of which one token is forwarded that sees all that is live.

    Attributes:
        num_live: Live tokens, this one included, int32 [m].
        index: Original index of the token, int32 [m].
        page_table: Page numbers, int32 [m, p].
    """

    @property
    def num_live(self) -> npt.NDArray[np.int32]:
        """See above."""
        ...

    @property
    def index(self) -> npt.NDArray[np.int32]:
        """See above."""
        ...

    @property
    def page_table(self) -> npt.NDArray[np.int32]:
        """See above."""
        ...

    def __len__(self) -> int: ...


class RowsMetadata:
    """Static buffers of one step's rows.

    Attributes:
        rows: int32 [len(RowField), max_rows] on the device, see `RowField`.
        tiles: int32 [len(TileField), max_tiles] on the device, see `TileField`.
        page_table: int32 [max_sequences, max_pages] on the device.
        arrivals: int32 [max_rows * counters_per_row] on the device: zeros, for kernels that count
            in them and leave zeros behind.
        num_launch_rows: Rows that the split-KV kernel is launched for.
        num_tiles: Tiles that the prefill kernel is launched for.

    Args:
        capacity: The largest step; `fill` refuses a larger one.
        page_size: Tokens per page.
        device: Where the kernels run.
        counters_per_row: Counters that a kernel needs per row.
    """

    def __init__(
        self,
        capacity: RowsCapacity,
        *,
        page_size: int,
        device: torch.device,
        counters_per_row: int,
    ):
        self.capacity = capacity
        self.page_size = page_size
        self._row_words = len(RowField) * capacity.max_rows
        self._head_words = self._row_words + len(TileField) * capacity.max_tiles
        num_words = self._head_words + capacity.max_sequences * capacity.max_pages
        self._buffer = StagedBuffer(num_words, device)
        self.rows, self.tiles, self.page_table = self._views(self._buffer.device_words)
        num_counters = capacity.max_rows * counters_per_row
        self.arrivals = torch.zeros(num_counters, dtype=torch.int32, device=device)
        self.num_launch_rows = 0
        self.num_tiles = 0

    def fill(
        self,
        batch: PagedBatch,
        *,
        num_rows: int | None = None,
        use_tiles: bool = True,
        decoding: DecodingRows | None = None,
    ) -> None:
        """Build a step on the host and copy it to the device without waiting for it.

        Args:
            batch: The step.
            num_rows: Rows that the forward has, padding included (a CUDA graph's size); by default
                those of the batch.
            use_tiles: Whether long runs of rows go to the prefill kernel. A CUDA graph, whose
                launches are fixed, says no; then every row is launched by itself.
            decoding: Further sequences, one plain row each, whose rows come before the batch's.
        """
        needed, num_first = RowsCapacity.of(batch), 0 if decoding is None else len(decoding)
        used = needed.max_rows + num_first
        total = used if num_rows is None else num_rows
        assert self.capacity.holds(needed), f"{needed} does not fit {self.capacity}"
        assert used <= total <= self.capacity.max_rows, (used, total)
        assert len(batch.sequences) + num_first <= self.capacity.max_sequences
        rows, tiles, page_table = self._views(self._buffer.next_host())
        if decoding is not None:
            self._write_decoding(rows[:, :num_first], page_table, decoding)
        self._write_rows(rows[:, num_first:total], page_table, batch, first_line=num_first)
        tile_list, single = _split_launches(batch.sequences, use_tiles, num_first)
        launch = np.array([*range(num_first), *single, *range(used, total)], dtype=np.int32)
        self.num_tiles, self.num_launch_rows = len(tile_list), len(launch)
        # The row that sees most comes first: started last, it would finish alone.
        num_seen = rows[RowField.UPPER, launch] - rows[RowField.LOWER, launch]
        rows[RowField.LAUNCH, : len(launch)] = launch[np.argsort(-num_seen, kind="stable")]
        if tile_list:
            tiles[:, : len(tile_list)] = np.array(tile_list, dtype=np.int32).T
        num_lines = num_first + len(batch.sequences)
        self._buffer.upload(self._head_words + num_lines * self.capacity.max_pages)

    def _write_decoding(
        self,
        rows: npt.NDArray[np.int32],
        page_table: npt.NDArray[np.int32],
        decoding: DecodingRows,
    ) -> None:
        size, lines = self.page_size, np.arange(len(decoding))
        page_table[: len(lines), : decoding.page_table.shape[1]] = decoding.page_table
        live_position = decoding.num_live - 1
        page, place = np.divmod(live_position, size)
        rows[RowField.SEQUENCE] = lines
        rows[RowField.LOWER] = rows[RowField.EXCL_LO] = rows[RowField.EXCL_HI] = 0
        rows[RowField.UPPER] = decoding.num_live
        rows[RowField.TOKEN_INDEX] = decoding.index
        rows[RowField.LIVE_POSITION] = rows[RowField.FIRST_NEW] = live_position
        rows[RowField.SLOT] = decoding.page_table[lines, page] * size + place

    def _write_rows(
        self,
        rows: npt.NDArray[np.int32],
        page_table: npt.NDArray[np.int32],
        batch: PagedBatch,
        *,
        first_line: int,
    ) -> None:
        sequences, size = batch.sequences, self.page_size
        counts = np.array([len(s.rows) for s in sequences], dtype=np.int64)
        num_rows = int(counts.sum())
        rows[:, num_rows:] = 0
        rows[RowField.SLOT, num_rows:] = -1
        if not num_rows:
            return
        for line, sequence in enumerate(sequences, first_line):
            num_pages = -(-sequence.num_live // size)
            pages = sequence.pages
            numbers = pages.numbers() if isinstance(pages, PageList) else pages
            page_table[line, :num_pages] = numbers[:num_pages]
        line_of_row = np.repeat(np.arange(first_line, first_line + len(sequences)), counts)
        first_position = np.array([s.num_live for s in sequences]) - counts
        within = np.arange(num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
        position = np.repeat(first_position, counts) + within
        ranges = np.array([row for s in sequences for row in s.rows], dtype=np.int32)
        real = rows[:, :num_rows]
        real[RowField.SEQUENCE] = line_of_row
        real[RowField.LOWER : RowField.EXCL_HI + 1] = ranges.T
        real[RowField.TOKEN_INDEX] = [i for s in sequences for i in s.indices]
        real[RowField.LIVE_POSITION] = position
        real[RowField.FIRST_NEW] = np.repeat(first_position, counts)
        real[RowField.SLOT] = page_table[line_of_row, position // size] * size + position % size

    def _views(self, flat: Any) -> tuple[Any, Any, Any]:
        """Return `rows`, `tiles` and `page_table` as views of a flat tensor or array."""
        capacity = self.capacity
        return (
            flat[: self._row_words].reshape(len(RowField), capacity.max_rows),
            flat[self._row_words : self._head_words].reshape(len(TileField), capacity.max_tiles),
            flat[self._head_words :].reshape(capacity.max_sequences, capacity.max_pages),
        )


def may_attend_by_row(sequences: Iterable[tuple[int, int]]) -> bool:
    """Whether runs of rows that tiles would take are short enough to do without.

    Each row reads its own keys then, while a tile's rows share them.

    Args:
        sequences: Of each its rows in a step and its live tokens.
    """
    pairs = sum([rows * live for rows, live in sequences if rows >= MIN_TILED_ROWS])
    return pairs <= MAX_ROW_KEYS


def _split_launches(
    sequences: list[SequenceRows], use_tiles: bool, start: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the tiles (first row, number of rows), longest context first, and the other rows."""
    tiles: list[tuple[int, int]] = []
    launch: list[int] = []
    for sequence in sequences:
        stop = start + len(sequence.rows)
        if use_tiles and len(sequence.rows) >= MIN_TILED_ROWS:
            firsts = range(start, stop, TILE_ROWS)
            # The last tile sees most keys: started first, it does not finish alone.
            tiles += [(first, min(TILE_ROWS, stop - first)) for first in reversed(firsts)]
        else:
            launch += range(start, stop)
        start = stop
    return tiles, launch
