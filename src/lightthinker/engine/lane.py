"""The fast lane: sequences that do nothing but decode, as arrays instead of objects.

Most steps of most sequences are alike: one token is forwarded, one is sampled, neither means
anything to the engine. In the lane such a step costs no Python per sequence. A sequence boards when
it is at rest (all its tokens forwarded, a sample on its way) and gets off as soon as a token of its
may mean something (it ends a thought or the sequence, or a limit is near), and then the ordinary
path takes it from there: the lane decides nothing.

While a sequence rides, its `Sequence` does not know its newest tokens; `write_back` tells it.
Invariant: after `write_back` it is in the state in which the ordinary path would have left it. Used
with asynchronous steps and graphs only. Shapes: m riders, in rows 0 to m - 1 of every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightthinker.engine.detokenizer import Detokenizer
from lightthinker.engine.sequence import Sequence
from lightthinker.kvcache.pool import PagePool
from lightthinker.layout import Role

Ints = npt.NDArray[np.int32]

MIN_STAY = 4
"""A sequence that must get off sooner does not board."""

MAX_UNWRITTEN = 64
"""Tokens that a rider's `Sequence` may lag behind."""


@dataclass(frozen=True)
class Riders:
    """The lane's rows of one step.

    Attributes:
        num_live: Live tokens with this row's, int32 [m].
        index: Original index of the row's token, int32 [m].
        position: Its position id, int32 [m].
        unknown_from: Its place among the previous step's samples, int32 [m].
        num_sampled: Tokens that the sequence has sampled, this row's included, int32 [m].
        page_table: int32 [m, p], for p pages at most.
        sampling: `RowSampling.words` of each, int32 [w, m].
    """

    num_live: Ints
    index: Ints
    position: Ints
    unknown_from: Ints
    num_sampled: Ints
    page_table: Ints
    sampling: Ints

    def __len__(self) -> int:
        return len(self.num_live)


class Off(NamedTuple):
    """A sequence that gets off with a token that the ordinary path must look at."""

    sequence: Sequence
    token: int
    place: int


class FastLane:
    """Carries sequences through plain decode steps.

    Args:
        pool: The KV memory.
        capacity: Most riders.
        max_live_tokens: Most live tokens of a rider.
        num_words: Lines of a rider's sampling settings.
        may_mean_something: uint8 [V], 1 for ids that the ordinary path must see.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        capacity: int,
        max_live_tokens: int,
        num_words: int,
        may_mean_something: npt.NDArray[np.uint8],
    ):
        self.pool = pool
        self.capacity = capacity
        self.max_live_tokens = max_live_tokens
        self.may_mean_something = may_mean_something
        self.riders: list[Sequence] = []
        self._detokenizers: list[Detokenizer] = []
        self._line: dict[Sequence, int] = {}

        def array(*shape: int) -> Ints:
            return np.zeros(shape, dtype=np.int32)

        self._num_live, self._index, self._position = (array(capacity) for _ in range(3))
        self._num_sampled, self._num_pages, self._left = (array(capacity) for _ in range(3))
        self._place, self._before, self._num_unwritten = (array(capacity) for _ in range(3))
        self._tokens = array(capacity, MAX_UNWRITTEN)
        self._pages = array(capacity, -(-max_live_tokens // pool.page_size))
        self._sampling = array(capacity, num_words)
        self._columns: tuple[Ints, ...] = (
            self._num_live, self._index, self._position, self._num_sampled, self._num_pages,
            self._left, self._place, self._before, self._num_unwritten, self._tokens, self._pages,
            self._sampling,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.riders)

    def board(
        self, sequence: Sequence, detokenizer: Detokenizer, words: Any, place: int, max_stay: int
    ) -> bool:
        """Take on a sequence that is at rest, if it can stay for a while.

        Args:
            sequence: Whose sample is on its way.
            detokenizer: Gets its tokens.
            words: Its sampling settings.
            place: Of the sample, among its step's.
            max_stay: Plain steps before a limit of the request is met.
        """
        num_live = len(sequence.live)
        stay = min(max_stay, self.max_live_tokens - num_live)
        if stay < MIN_STAY or len(self.riders) == self.capacity:
            return False
        line = len(self.riders)
        self._line[sequence] = line
        sequence.rides = True
        self.riders.append(sequence)
        self._detokenizers.append(detokenizer)
        self._num_live[line] = num_live
        self._index[line] = len(sequence.token_ids)
        self._position[line] = sequence.builder.next_position
        self._num_sampled[line] = len(sequence.sampled_ids)
        self._num_pages[line] = len(sequence.pages)
        self._left[line] = stay
        self._place[line] = place
        self._num_unwritten[line] = 0
        self._pages[line, : len(sequence.pages)] = sequence.pages.numbers()
        self._sampling[line] = words
        return True

    def tired(self) -> list[Sequence]:
        """Return who may not take part in another step."""
        return [self.riders[i] for i in np.flatnonzero(self._left[: len(self)] == 0)]

    def reserve(self) -> bool:
        """Give every rider room for one more token; False, and nothing done, if there is none."""
        m = len(self)
        full = np.flatnonzero(self._num_live[:m] >= self._num_pages[:m] * self.pool.page_size)
        if len(full) > self.pool.allocator.num_free:
            return False
        for line, page in zip(full, self.pool.allocator.allocate(len(full)), strict=True):
            self._pages[line, self._num_pages[line]] = page
            self.riders[line].pages.append(page)
        self._num_pages[full] += 1
        return True

    def depart(self) -> Riders:
        """Write the tokens that are being sampled, ids unknown, and return the next step's rows."""
        m = len(self)
        self._before[:m] = self._place[:m]
        self._place[:m] = np.arange(m)
        self._num_live[:m] += 1
        self._num_sampled[:m] += 1
        self._left[:m] -= 1
        num_pages = int(self._num_pages[:m].max(initial=0))
        riders = Riders(
            self._num_live[:m].copy(),
            self._index[:m].copy(),
            self._position[:m].copy(),
            self._before[:m].copy(),
            self._num_sampled[:m].copy(),
            self._pages[:m, :num_pages],
            self._sampling[:m].T,
        )
        self._index[:m] += 1
        self._position[:m] += 1
        return riders

    def arrive(self, samples: npt.NDArray[np.int64]) -> list[Off]:
        """Look at the samples that were on their way when `depart` was called.

        Args:
            samples: The previous step's.

        Returns:
            Who gets off: with a token that was forwarded but is not written back, and the place of
            the sample that is on its way now.
        """
        m = len(self)
        tokens = samples[self._before[:m]]
        means_something = (tokens < 0) | (self.may_mean_something[np.maximum(tokens, 0)] != 0)
        lines = np.flatnonzero(~means_something)
        self._tokens[lines, self._num_unwritten[lines]] = tokens[lines]
        self._num_unwritten[lines] += 1
        for line in np.flatnonzero(self._num_unwritten[:m] == MAX_UNWRITTEN):
            self._write_back(int(line))
        off = [
            Off(self.riders[line], int(tokens[line]), int(self._place[line]))
            for line in np.flatnonzero(means_something)
        ]
        for sequence, _, _ in off:
            self.leave(sequence)
        return off

    def leave(self, sequence: Sequence) -> int:
        """Let a sequence off at rest, written back.

        Returns:
            The place of its sample that is on its way.
        """
        line, last = self._line.pop(sequence), len(self.riders) - 1
        self._write_back(line)
        sequence.rides = False
        place = int(self._place[line])
        if line != last:
            for column in self._columns:
                column[line] = column[last]
            self.riders[line], self._detokenizers[line] = (
                self.riders[last],
                self._detokenizers[last],
            )
            self._line[self.riders[line]] = line
        del self.riders[last], self._detokenizers[last]
        return place

    def num_unwritten(self) -> dict[Sequence, int]:
        """Return how many tokens each rider's sequence does not know of yet."""
        counts = self._num_unwritten[: len(self)].tolist()
        return dict(zip(self.riders, counts, strict=True))

    def write_back(self, sequences: Iterable[Sequence] | None = None) -> None:
        """Tell sequences what they have done so far.

        Args:
            sequences: Those that are meant if they ride; by default all riders.
        """
        for sequence in self.riders if sequences is None else sequences:
            if sequence.rides:
                self._write_back(self._line[sequence])

    def _write_back(self, line: int) -> None:
        count = int(self._num_unwritten[line])
        if not count:
            return
        sequence, ids = self.riders[line], self._tokens[line, :count].tolist()
        role = Role.ANSWER if sequence.in_answer else Role.THOUGHT
        sequence.builder.sampled(count, role=role)
        sequence.token_ids += ids
        sequence.sampled_ids += ids
        sequence.forwarded(count)
        self._detokenizers[line].push_plain(ids)
        self._num_unwritten[line] = 0
