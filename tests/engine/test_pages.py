"""Allocator and scheduler under random histories.

No page with two owners, nothing leaks, nothing starves.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightthinker.compression import CompressionConfig
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.scheduler import Scheduler
from lightthinker.engine.sequence import Sequence, Status
from lightthinker.kvcache.allocator import PageAllocator
from lightthinker.kvcache.pool import LayerShape, PagePool

TRIGGER, GISTS, CONTINUE = 1, (2, 3), 4
COMPRESSION = CompressionConfig(
    num_gists=2, trigger_id=TRIGGER, gist_ids=GISTS, continue_id=CONTINUE
)


class AllocatorMachine(RuleBasedStateMachine):
    """Keys are handed out in chains, as prompts do: key i+1 is only ever found after key i."""

    def __init__(self):
        super().__init__()
        self.evicted: list[int] = []
        self.allocator = PageAllocator(12, on_evict=self.evicted.append)
        self.owned: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(count=st.integers(0, 12))
    def allocate(self, count):
        if count <= self.allocator.num_free:
            before = len(self.evicted)
            pages = self.allocator.allocate(count)
            given_up = self.evicted[before:]
            assert set(given_up) <= set(pages), "a page was evicted and not used"
            assert self.content.keys() & set(pages) == set(given_up), "a page lost its content"
            for page in given_up:
                del self.content[page]
            self.owned.append(pages)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release_some(self, data):
        pages = self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1)))
        keep = data.draw(st.integers(0, len(pages)))
        self.owned.append(pages[:keep])
        freed = self.allocator.release(pages[keep:])
        held = {p for pages in self.owned for p in pages}
        assert set(freed) == set(pages[keep:]) - held - self.content.keys()

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), number=st.integers(0, 5))
    def publish(self, data, number):
        pages = self.owned[data.draw(st.integers(0, len(self.owned) - 1))]
        key = bytes([number])
        if pages and pages[0] not in self.content and key not in self.content.values():
            self.content[pages[0]] = key
        if pages:
            self.allocator.publish(pages[0], key)

    @rule(numbers=st.lists(st.integers(0, 5), max_size=3, unique=True))
    def hold(self, numbers):
        keys = [bytes([number]) for number in numbers]
        known = [key in self.content.values() for key in keys]
        expected = known.index(False) if False in known else len(known)
        found, idle = self.allocator.num_found(keys)
        assert found == expected
        before = self.allocator.num_idle
        pages = self.allocator.hold(keys[:found])
        assert [self.content[page] for page in pages] == keys[:found]
        assert self.allocator.num_idle == before - idle
        self.owned.append(pages)

    @invariant()
    def adds_up(self):
        self.allocator.check_integrity(p for pages in self.owned for p in pages)
        assert self.allocator.num_free + self.allocator.num_used == 12


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine without a model.

    Forwarded tokens write their sequence's number and index into the pool.
    """

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        num_pages=st.integers(6, 30),
        max_num_seqs=st.integers(1, 4),
        budget=st.integers(4, 20),
    )
    def start(self, page_size, num_pages, max_num_seqs, budget):
        self.pool = PagePool(
            [LayerShape(1, 2, 2)],
            num_pages=num_pages,
            page_size=page_size,
            dtype=torch.float64,
            device=torch.device("cpu"),
            poison=True,
        )
        self.scheduler = Scheduler(
            self.pool, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget
        )
        self.sequences: list[Sequence] = []
        self.idle_steps = 0

    @rule(
        length=st.integers(1, 12), kind=st.sampled_from([20, 21]), priority=st.sampled_from([0, 1])
    )
    def add(self, length, kind, priority):
        sequence = Sequence(
            str(len(self.sequences)),
            0,
            [kind] * length,
            SamplingParams(priority=priority),
            COMPRESSION,
            trigger_id=TRIGGER,
        )
        self.sequences.append(sequence)
        self.scheduler.add(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def abort(self, data):
        sequence = self.sequences[data.draw(st.integers(0, len(self.sequences) - 1))]
        if sequence.status is not Status.FINISHED:
            self.scheduler.finish(sequence, "abort")

    @rule(tokens=st.lists(st.sampled_from([9, 9, 9, TRIGGER, -1]), min_size=4, max_size=4))
    def step(self, tokens):
        scheduled = self.scheduler.schedule()
        assert scheduled or not self.scheduler.running, (
            "sequences run but none is scheduled: starvation"
        )
        for part in scheduled:
            self.forward(part.sequence, part.num_tokens)
        self.scheduler.publish(part.sequence for part in scheduled)
        for part, token in zip(scheduled, tokens * len(scheduled)):
            sequence = part.sequence
            if sequence.num_pending:
                continue
            if token == -1:
                self.scheduler.finish(sequence, "stop")
            else:
                sequence.extend()
                if sequence.settle(token)[1]:
                    sequence.insert_gists()
        self.scheduler.compact(
            [p.sequence for p in scheduled if p.sequence.status is Status.RUNNING]
        )

    def forward(self, sequence, num_tokens):
        first = len(sequence.live)
        slots = self.scheduler.slots(sequence, range(first, first + num_tokens))
        for slot, index in zip(
            slots, range(sequence.num_forwarded, sequence.num_forwarded + num_tokens)
        ):
            value = self.value(sequence, index)
            self.pool.keys[0][slot] = value
            self.pool.values[0][slot] = -value
            self.pool.token_index[slot] = index
        sequence.forwarded(num_tokens)

    @staticmethod
    def value(sequence, index):
        """What the model would write: the same for the same prompt."""
        in_prompt = index < len(sequence.prompt_ids)
        owner = sequence.prompt_ids[0] if in_prompt else 100 + int(sequence.request_id)
        return owner * 1000 + index

    @invariant()
    def no_page_is_lost_or_held_by_a_stranger(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    @invariant()
    def every_live_token_is_where_it_should_be(self):
        for sequence in getattr(self, "sequences", ()):
            if sequence.status is not Status.RUNNING:
                continue
            slots = self.scheduler.slots(sequence, range(len(sequence.live)))
            expected = [self.value(sequence, index) for index in sequence.live]
            assert self.pool.keys[0][slots, 0, 0].tolist() == expected
            assert self.pool.values[0][slots, 0, 0].tolist() == [-v for v in expected]
            assert self.pool.token_index[slots].tolist() == sequence.live

    @invariant()
    def only_unexpired_tokens_are_live(self):
        for sequence in getattr(self, "sequences", ()):
            if sequence.status is Status.RUNNING:
                assert not sequence.expired()

    def teardown(self):
        for sequence in getattr(self, "sequences", ()):
            if sequence.status is not Status.FINISHED:
                self.scheduler.finish(sequence, "abort")
        if hasattr(self, "pool"):
            assert self.pool.allocator.num_used == 0
            # Pages that a later prompt could still find keep their content, until it is needed.
            allocator = self.pool.allocator
            allocator.release(allocator.allocate(allocator.num_pages))
            assert self.pool.keys[0].isnan().all(), "freed slots were not poisoned"


TestAllocator = AllocatorMachine.TestCase
TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_releasing_twice_is_caught():
    allocator = PageAllocator(2)
    pages = allocator.allocate(1)
    allocator.release(pages)
    with pytest.raises(AssertionError, match="twice"):
        allocator.release(pages)


def test_a_leak_is_caught():
    allocator = PageAllocator(4)
    pages = allocator.allocate(3)
    with pytest.raises(AssertionError, match="leaked"):
        allocator.check_integrity(pages[:2])
    with pytest.raises(AssertionError, match="two owners"):
        allocator.check_integrity([*pages, pages[0]])
