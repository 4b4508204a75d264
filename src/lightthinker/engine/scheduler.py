"""Who runs in the next step, and who owns which pages.

Continuous batching: sequences join whenever there is room and leave when they finish; those that
generate go before those that still read their prompt, which take what is left of the step. When
pages run out, the least urgent sequence is swapped to host memory and comes back as it was: a gist
is never computed again without its thought. Prompts that begin alike share their full pages, and of
several that are new and alike one goes ahead. Knows nothing of models or sampling.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightthinker.engine.sequence import Sequence, Status
from lightthinker.kvcache.pool import PagePool
from lightthinker.kvcache.prompt_keys import prompt_page_keys

BY_ORDER = attrgetter("order")


class Scheduled(NamedTuple):
    """One sequence's part of a step: how many of its pending tokens are forwarded."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """Admission, page allocation, preemption.

    Args:
        pool: The KV memory.
        max_num_seqs: Most sequences running at once.
        max_num_batched_tokens: Most tokens forwarded in one step; longer prompts are prefilled in
            chunks.
        share_prompts: Whether prompts that begin alike share pages.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        share_prompts: bool = True,
    ):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.share_prompts = share_prompts
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_compactions = 0
        self.num_tokens_freed = 0
        self.num_preemptions = 0
        self.num_finished = 0
        self.on_removal: Callable[[Sequence], None] = lambda sequence: None
        """Told of a sequence before it is swapped out or finished."""
        self._num_arrived = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        sequence.order = (sequence.params.priority, self._num_arrived)
        self._num_arrived += 1
        if self.share_prompts and sequence.has_plain_prompt:
            sequence.page_keys = prompt_page_keys(sequence.prompt_ids, self.pool.page_size)
        insort(self.waiting, sequence, key=BY_ORDER)

    def schedule(self) -> list[Scheduled]:
        """Choose the next step's tokens and allocate their pages.

        Sequences that cannot grow even alone are finished with reason `length`.
        """
        self.admit()
        return self.choose()

    def choose(self) -> list[Scheduled]:
        """`schedule` without admitting anybody; riders of the fast lane have their tokens."""
        chosen = self._by_urgency()
        num_riders = len(self.running) - len(chosen)
        budget, size = self.max_num_batched_tokens - num_riders, self.pool.page_size
        scheduled: list[Scheduled] = []
        num_preemptions = self.num_preemptions
        for sequence in chosen:
            num_pending = len(sequence.token_ids) - sequence.num_forwarded
            if sequence.status is not Status.RUNNING or not num_pending:
                continue
            if budget <= 0:
                break
            num_tokens = 1 if num_pending == 1 else sequence.next_chunk(budget)
            num_live = len(sequence.live) + num_tokens
            if num_live > len(sequence.pages) * size and not self._reserve(sequence, num_live):
                continue
            budget -= num_tokens
            scheduled.append(Scheduled(sequence, num_tokens))
        if self.num_preemptions == num_preemptions:
            return scheduled
        return [s for s in scheduled if s.sequence.status is Status.RUNNING]

    def publish(self, sequences: Iterable[Sequence]) -> None:
        """Let others find the prompt pages that these sequences have now filled."""
        for sequence in sequences:
            if sequence.num_published == len(sequence.page_keys):
                continue
            full = min(len(sequence.page_keys), sequence.num_forwarded // self.pool.page_size)
            for i in range(sequence.num_published, full):
                self.pool.allocator.publish(sequence.pages[i], sequence.page_keys[i])
            sequence.num_published = max(sequence.num_published, full)

    def slots(self, sequence: Sequence, positions: Iterable[int]) -> list[int]:
        """Return the slots of a sequence's live tokens, given their positions in `live`."""
        slots: list[int] = self._slot_array(sequence, np.fromiter(positions, np.int64)).tolist()
        return slots

    def compact(self, sequences: Iterable[Sequence]) -> None:
        """Free what expired: later live tokens move down, the pages left over go back."""
        source: list[npt.NDArray[np.int64]] = []
        target: list[npt.NDArray[np.int64]] = []
        vacated: list[int] = []
        group_sizes: list[int] = []
        shrunk: list[Sequence] = []
        for sequence in sequences:
            if sequence.builder.next_expiry > sequence.num_forwarded:
                continue
            expired, num_live = sequence.expired(), len(sequence.live)
            if not expired:
                continue
            self.num_compactions += 1
            self.num_tokens_freed += len(expired)
            first = expired[0]
            assert first >= len(sequence.page_keys) * self.pool.page_size, "a shared page"
            moved = sequence.forget(expired)
            num_kept = first + len(moved)
            source.append(self._slot_array(sequence, np.array(moved, dtype=np.int64)))
            target.append(self._slot_array(sequence, np.arange(first, num_kept)))
            group_sizes.append(len(moved))
            if self.pool.poison:
                vacated += self.slots(sequence, range(num_kept, num_live))
            shrunk.append(sequence)
        if source:
            self.pool.move(np.concatenate(source), np.concatenate(target), group_sizes)
        self.pool.clear(vacated)
        for sequence in shrunk:
            self._release(sequence, keep=self._pages_for(len(sequence.live)))

    def _slot_array(
        self, sequence: Sequence, positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """`slots`, as arrays."""
        page, place = np.divmod(positions, self.pool.page_size)
        slots: npt.NDArray[np.int64] = sequence.pages.numbers()[page] * self.pool.page_size + place
        return slots

    def slot_table(self, sequences: list[Sequence]) -> torch.Tensor:
        """Return the slots of sequences with equally many live tokens, on the device: [B, n]."""
        live = np.arange(len(sequences[0].live))
        return self.pool.index(np.stack([self._slot_array(s, live) for s in sequences]))

    def compact_heads(
        self, sequences: list[Sequence], slots_Bn: torch.Tensor, kept_BLHm: torch.Tensor
    ) -> None:
        """Free, head by head, all but the positions that sequences keep.

        The m kept tokens of each head move to the first m slots; the pages left over go back.

        Args:
            sequences: B of them, with n live tokens each.
            slots_Bn: Their slots, as `slot_table` has them.
            kept_BLHm: int64, ascending positions among the live tokens.
        """
        num_live, num_kept = slots_Bn.shape[1], kept_BLHm.shape[-1]
        source = slots_Bn[:, None, None].expand(*kept_BLHm.shape[:3], -1).gather(-1, kept_BLHm)
        self.pool.move_heads(
            source.permute(1, 2, 0, 3).flatten(2), slots_Bn[:, :num_kept].flatten(), num_kept
        )
        if self.pool.poison:
            self.pool.clear(slots_Bn[:, num_kept:].flatten().tolist())
        self.num_compactions += len(sequences)
        self.num_tokens_freed += len(sequences) * (num_live - num_kept)
        gone = range(num_live - num_kept)
        for sequence in sequences:
            sequence.drop(gone)
            sequence.forget(list(gone))
            self._release(sequence, keep=self._pages_for(num_kept))

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence and free all it holds."""
        self.on_removal(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        self._drop_kv(sequence)
        sequence.saved_kv = None
        sequence.status, sequence.finish_reason = Status.FINISHED, reason
        self.num_finished += 1

    def check_integrity(self) -> None:
        """Raise AssertionError if a page is leaked, shared or held by a stranger."""
        owners = [*self.running, *self.waiting]
        self.pool.allocator.check_integrity(page for s in owners for page in s.pages)
        for sequence in owners:
            if (
                len(sequence.pages) < self._pages_for(len(sequence.live))
                and sequence.saved_kv is None
            ):
                raise AssertionError("a sequence has live tokens without pages")

    def _by_urgency(self) -> list[Sequence]:
        """Return who runs and does not ride: generating before reading, each by order."""
        running = sorted((s for s in self.running if not s.rides), key=BY_ORDER)
        reading = [s for s in running if not s.sampled_ids]
        return [s for s in running if s.sampled_ids] + reading if reading else running

    def admit(self) -> None:
        """Let waiting sequences join while there is room."""
        if not self.waiting or len(self.running) >= self.max_num_seqs:
            return
        for sequence in self._candidates():
            found, idle = self.pool.allocator.num_found(sequence.page_keys)
            if sequence.status is Status.SWAPPED:
                found = idle = 0
                last = len(sequence.live) + sequence.num_pending
            else:
                cached = found * self.pool.page_size
                last = cached + min(sequence.num_pending - cached, self.max_num_batched_tokens)
            needed = self._pages_for(last) - found
            # A spare page per runner, so that admitting does not preempt someone in the very next
            # step.
            if self.pool.allocator.num_free - idle < needed + len(self.running):
                if not self.running and self.pool.allocator.num_used == 0:
                    self.finish(sequence, "length")
                    continue
                return
            self.waiting.remove(sequence)
            if sequence.saved_kv is not None:
                sequence.pages += self.pool.allocator.allocate(self._pages_for(len(sequence.live)))
                self.pool.write(self.slots(sequence, range(len(sequence.live))), sequence.saved_kv)
                sequence.saved_kv = None
            elif found:
                sequence.pages += self.pool.allocator.hold(sequence.page_keys[:found])
                sequence.adopt(found * self.pool.page_size)
                sequence.num_published = found
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _candidates(self) -> Iterator[Sequence]:
        """Yield who may join, in order.

        A prompt that begins with a page that somebody is filling right now waits for it.
        """
        being_filled = {key for s in self.running for key in s.page_keys[s.num_published :]}
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_num_seqs:
                return
            keys = sequence.page_keys if sequence.status is Status.WAITING else []
            found, _ = self.pool.allocator.num_found(keys)
            if found < len(keys) and keys[found] in being_filled:
                continue
            yield sequence
            being_filled.update(keys[found:])

    def _reserve(self, sequence: Sequence, num_live: int) -> bool:
        """Give the sequence pages for `num_live` tokens.

        False if it was preempted or finished instead.
        """
        missing = self._pages_for(num_live) - len(sequence.pages)
        while missing > self.pool.allocator.num_free:
            victim = max(self.running, key=BY_ORDER)
            if victim is sequence:
                if len(self.running) == 1:
                    self.finish(sequence, "length")
                else:
                    self._swap_out(sequence)
                return False
            self._swap_out(victim)
        if missing > 0:
            sequence.pages += self.pool.allocator.allocate(missing)
        return True

    def _swap_out(self, sequence: Sequence) -> None:
        self.on_removal(sequence)
        sequence.saved_kv = self.pool.read(self.slots(sequence, range(len(sequence.live))))
        self._drop_kv(sequence)
        self.running.remove(sequence)
        sequence.status = Status.SWAPPED
        self.num_preemptions += 1
        insort(self.waiting, sequence, key=BY_ORDER)

    def _drop_kv(self, sequence: Sequence) -> None:
        self._release(sequence, keep=0)

    def _release(self, sequence: Sequence, *, keep: int) -> None:
        self.pool.release(sequence.pages.cut(keep))

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.page_size)
