"""What one engine step tells the attention function: rows, and where their keys live.

Every token is a *row*: it sees the live tokens `lower <= i < upper` of its sequence except `excl_lo
<= i < excl_hi`, where `i` counts the sequence's live tokens in order. Prefill, decode, gist and
continue tokens are all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from lightthinker.kvcache.upload import upload

Grouping = Literal["sum", "mean", "max_logit"]
"""How the query heads of a KV head become one: see `engine.policy.Observation`."""


class Row(NamedTuple):
    """Visibility of one token over its sequence's live tokens."""

    lower: int
    upper: int
    excl_lo: int
    excl_hi: int


class ObservedRows(NamedTuple):
    """Rows `first <= i < stop` of a sequence's step, whose attention a cache policy observes.

    They count attention to the live tokens below `upper` only.
    """

    first: int
    stop: int
    grouping: Grouping
    upper: int = 2**31 - 1


@dataclass(slots=True)
class SequenceRows:
    """The rows of one sequence in this step, and the pages that hold its live tokens.

    Attributes:
        rows: Its rows, in token order.
        indices: Original token index of each row.
        pages: Page numbers, in order; a `PageList` hands them to the kernels as an array.
        num_live: Live tokens once these rows are written.
        observed: Rows whose attention must be summed up, if any.
    """

    rows: list[Row]
    indices: list[int]
    pages: list[int]
    num_live: int
    observed: ObservedRows | None = None


@dataclass(frozen=True)
class PagedBatch:
    """One step.

    Attributes:
        sequences: The sequences in row order.
        page_size: Tokens per page.
        device: Where the model runs.
    """

    sequences: list[SequenceRows]
    page_size: int
    device: torch.device

    @cached_property
    def num_rows(self) -> int:
        """T."""
        return sum([len(s.rows) for s in self.sequences])

    @cached_property
    def max_live(self) -> int:
        """Live tokens of the sequence that has most."""
        return max([s.num_live for s in self.sequences], default=0)

    @cached_property
    def slots(self) -> list[int]:
        """The slot that each row's KV goes to."""
        size = self.page_size
        return [
            s.pages[i // size] * size + i % size
            for s in self.sequences
            for i in range(s.num_live - len(s.rows), s.num_live)
        ]

    @cached_property
    def slot_mapping(self) -> torch.Tensor:
        """`slots`, int64 [T] on the device."""
        return upload(self.slots, self.device)

    @cached_property
    def token_index(self) -> torch.Tensor:
        """Original index of each row's token, int64 [T] on the device."""
        indices = [i for sequence in self.sequences for i in sequence.indices]
        return upload(indices, self.device)
