"""Who runs in the next step, and who owns which pages.

Continuous batching: sequences join whenever there is room and leave when they finish. When pages
run out, the sequence that joined last is swapped to host memory and comes back as it was: a gist is
never computed again without its thought. Knows nothing of models or sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from lightthinker.engine.sequence import Sequence, Status
from lightthinker.kvcache.pool import PagePool


@dataclass(frozen=True)
class Scheduled:
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
    """

    def __init__(self, pool: PagePool, *, max_num_seqs: int, max_num_batched_tokens: int):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_compactions = 0
        self.num_tokens_freed = 0
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Scheduled]:
        """Choose the next step's tokens and allocate their pages.

        Sequences that cannot grow even alone are finished with reason `length`.
        """
        self._admit()
        budget, scheduled = self.max_num_batched_tokens, []
        for sequence in list(self.running):
            if sequence.status is not Status.RUNNING:
                continue
            if budget <= 0:
                break
            num_tokens = sequence.next_chunk(budget)
            if not self._reserve(sequence, num_tokens):
                continue
            budget -= num_tokens
            scheduled.append(Scheduled(sequence, num_tokens))
        return [s for s in scheduled if s.sequence.status is Status.RUNNING]

    def slots(self, sequence: Sequence, positions: Iterable[int]) -> list[int]:
        """Return the slots of a sequence's live tokens, given their positions in `live`."""
        size = self.pool.page_size
        return [sequence.pages[i // size] * size + i % size for i in positions]

    def compact(self, sequences: Iterable[Sequence]) -> None:
        """Free what expired: later live tokens move down, the pages left over go back."""
        source: list[int] = []
        target: list[int] = []
        vacated: list[int] = []
        for sequence in sequences:
            expired = sequence.expired()
            if not expired:
                continue
            self.num_compactions += 1
            self.num_tokens_freed += len(expired)
            gone = set(expired)
            kept = [i for i in range(len(sequence.live)) if i not in gone]
            moves = [(old, new) for new, old in enumerate(kept) if old != new]
            source += self.slots(sequence, (old for old, _ in moves))
            target += self.slots(sequence, (new for _, new in moves))
            vacated += self.slots(sequence, range(len(kept), len(sequence.live)))
            sequence.keep(kept)
            self._release(sequence, keep=self._pages_for(len(kept)))
        if source:
            self.pool.move(source, target)
        self.pool.clear(vacated)

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence and free all it holds."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        self._drop_kv(sequence)
        sequence.saved_kv = None
        sequence.status, sequence.finish_reason = Status.FINISHED, reason

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

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.status is Status.SWAPPED:
                needed = self._pages_for(len(sequence.live) + sequence.num_pending)
            else:
                needed = self._pages_for(min(sequence.num_pending, self.max_num_batched_tokens))
            # A spare page per runner, so that admitting does not preempt someone in the very next
            # step.
            spare = len(self.running) if self.running else 0
            if self.pool.allocator.num_free < needed + spare:
                if not self.running and self.pool.allocator.num_used == 0:
                    self.finish(sequence, "length")
                    continue
                return
            self.waiting.popleft()
            if sequence.saved_kv is not None:
                sequence.pages = self.pool.allocator.allocate(self._pages_for(len(sequence.live)))
                self.pool.write(self.slots(sequence, range(len(sequence.live))), sequence.saved_kv)
                sequence.saved_kv = None
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence pages for `num_tokens` more.

        False if it was preempted or finished instead.
        """
        missing = self._pages_for(len(sequence.live) + num_tokens) - len(sequence.pages)
        while missing > self.pool.allocator.num_free:
            victim = self.running[-1]
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
        sequence.saved_kv = self.pool.read(self.slots(sequence, range(len(sequence.live))))
        self._drop_kv(sequence)
        self.running.remove(sequence)
        self.num_preemptions += 1
        sequence.status = Status.SWAPPED
        self.waiting.appendleft(sequence)

    def _drop_kv(self, sequence: Sequence) -> None:
        size = self.pool.page_size
        self.pool.clear([page * size + i for page in sequence.pages for i in range(size)])
        self._release(sequence, keep=0)

    def _release(self, sequence: Sequence, *, keep: int) -> None:
        self.pool.allocator.release(sequence.pages[keep:])
        del sequence.pages[keep:]

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.page_size)
