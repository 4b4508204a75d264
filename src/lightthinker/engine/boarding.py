"""Who rides in the fast lane, and for how long: the engine's side of `FastLane`.

A rider's sample is always on its way, in the newest step. Whoever gets off is put among that step's
sequences (`InFlight.place`), where the ordinary path finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lightthinker.attention.rows_metadata import may_attend_by_row
from lightthinker.attention.triton.sampling_batch import SamplingField
from lightthinker.compression import CompressionConfig
from lightthinker.engine.graphs import GraphRunner
from lightthinker.engine.intake import Intake, Request
from lightthinker.engine.lane import FastLane, Off, Riders
from lightthinker.engine.scheduler import Scheduler
from lightthinker.engine.sequence import Sequence, Status
from lightthinker.engine.step import InFlight
from lightthinker.engine.writer import TokenWriter
from lightthinker.layout import NEVER


class Boarding:
    """Lets sequences on and off the fast lane.

    Args:
        graphs: Run the steps; without them there is no lane.
        scheduler: Its running sequences are those that may ride.
        writer: Knows a request's limits.
        requests: The engine's.
        may_mean_something: See `FastLane`.
    """

    def __init__(
        self,
        graphs: GraphRunner,
        scheduler: Scheduler,
        writer: TokenWriter,
        requests: Mapping[str, Request],
        may_mean_something: npt.NDArray[np.uint8],
    ):
        self.sampler, self.scheduler, self.writer = graphs.sampler, scheduler, writer
        self.requests = requests
        self.capacity = graphs.metadata.capacity
        self.max_live_tokens = self.capacity.max_pages * scheduler.pool.page_size
        self.lane = FastLane(
            scheduler.pool,
            capacity=min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens),
            max_live_tokens=self.max_live_tokens,
            num_words=int(SamplingField.FORBIDDEN),
            may_mean_something=may_mean_something,
        )
        self._newest: InFlight | None = None
        scheduler.on_removal = self.let_off

    def prepare(self, previous: InFlight | None) -> None:
        """Let off whom the next step cannot take: a few whose time is up, or all.

        Args:
            previous: The step whose samples are on their way.
        """
        lane = self.lane
        if not lane:
            return
        assert previous is not None, "a rider's sample is on its way"
        for sequence in lane.tired():
            self.let_off(sequence)
        if not (self._may_ride_on() and lane.reserve()):
            self.disband()

    def _may_ride_on(self) -> bool:
        """Whether a graph can run a step of the riders and of all the others that run."""
        others = [s for s in self.scheduler.running if not s.rides]
        num_riders = len(self.lane)
        pending = [s.num_pending + 1 for s in others]
        # Nobody who generates may be left out of a step because of the riders.
        generating = num_riders + sum(s.num_pending + 1 for s in others if s.sampled_ids)
        return (
            num_riders + sum(pending) <= self.capacity.max_rows
            and may_attend_by_row(
                (n, len(s.live) + n) for n, s in zip(pending, others, strict=True)
            )
            and generating <= self.scheduler.max_num_batched_tokens
            and all(self._fits_a_graph(s) for s in others)
        )

    def depart(self) -> Riders | None:
        """Return the riders' rows of the next step, if there are riders."""
        return self.lane.depart() if self.lane else None

    def arrive(self, previous: InFlight, launched: InFlight) -> list[Off]:
        """Look at the riders' samples of the step before the one that was launched.

        Returns:
            Who got off because of its token, which is written with its id unknown.
        """
        self._newest = launched
        off = self.lane.arrive(np.asarray(previous.token_list()))
        for sequence, _, place in off:
            sequence.extend()
            sequence.forwarded(1)
            launched.place[sequence] = place
        return off

    def board(self, launched: InFlight) -> None:
        """Take on whom of a step's sequences the lane can carry."""
        self._newest = launched
        if not self._may_ride_on():
            return
        for sequence, place in list(launched.place.items()):
            if not sequence.may_ride or not self._is_at_rest(sequence):
                continue
            request = self.requests[sequence.request_id]
            boarded = self.lane.board(
                sequence,
                request.detokenizers[sequence.index],
                np.array(self.sampler.row(sequence).words, dtype=np.uint32).view(np.int32),
                place,
                self.writer.num_plain_steps(sequence),
            )
            if boarded:
                del launched.place[sequence]
        if not self.lane:
            self._newest = None

    def let_off(self, sequence: Sequence) -> None:
        """Let a sequence off if it rides; its sample is the ordinary path's."""
        if sequence.rides:
            place = self.lane.leave(sequence)
            assert self._newest is not None, "a rider's sample is on its way"
            self._newest.place[sequence] = place

    def disband(self) -> list[Sequence]:
        """Let everybody off and return them."""
        riders = list(self.lane.riders)
        for sequence in riders:
            self.let_off(sequence)
        return riders

    def _fits_a_graph(self, sequence: Sequence) -> bool:
        num_live = len(sequence.live) + sequence.num_pending + 1
        return (
            not sequence.samples_with_logits
            and sequence.params.policy is None
            and num_live <= self.max_live_tokens
        )

    @staticmethod
    def _is_at_rest(sequence: Sequence) -> bool:
        """Whether all its tokens are forwarded and looked at, and nothing waits to be freed."""
        return (
            sequence.status is Status.RUNNING
            and sequence.finish_reason is None
            and bool(sequence.sampled_ids)
            and sequence.unsettled is None
            and sequence.num_pending == 0
            and sequence.builder.next_expiry == NEVER
            and sequence.num_published == len(sequence.page_keys)
        )


def open_lane(
    graphs: GraphRunner,
    scheduler: Scheduler,
    writer: TokenWriter,
    requests: Mapping[str, Request],
    intake: Intake,
) -> Boarding | None:
    """Return an engine's lane, unless any token at all may mean something.

    Arguments are those of `Boarding`, and what makes the engine's requests.
    """
    ids = meaningful_ids(intake.compression, writer.eos_ids, intake.tokenizer, intake.vocab_size)
    if ids.all():
        return None
    return Boarding(graphs, scheduler, writer, requests, ids)


def meaningful_ids(
    compression: CompressionConfig | None, eos_ids: Iterable[int], tokenizer: Any, vocab_size: int
) -> npt.NDArray[np.uint8]:
    """Return which ids the engine must look at when they are sampled: uint8 [V].

    Args:
        compression: The checkpoint's settings, or None.
        eos_ids: Ids that end a sequence.
        tokenizer: The checkpoint's.
        vocab_size: V.
    """
    table = np.zeros(vocab_size, dtype=np.uint8)
    ids = set(eos_ids)
    if compression is not None:
        marks = {compression.trigger_id, compression.continue_id, compression.separator_id}
        ids |= {i for i in (*marks, *compression.gist_ids) if i is not None}
        end = compression.reasoning_end.strip()[-1:]
        if not end.isascii():  # Byte-level tokenizers spell it in bytes.
            table[:] = 1
        elif end:
            as_byte = f"<0x{ord(end):02X}>"  # As tokenizers with byte fallback spell it.
            spelled = tokenizer.get_vocab().items()
            ids |= {i for token, i in spelled if end in token or token == as_byte}
    table[[i for i in ids if 0 <= i < vocab_size]] = 1
    return table
