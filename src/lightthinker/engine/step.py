"""One step: which tokens go through the model, and what becomes of the samples it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lightthinker.attention.batch import SequenceRows
from lightthinker.engine.eviction import observed_rows
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.scheduler import Scheduled, Scheduler
from lightthinker.engine.sequence import UNKNOWN, Sequence

Samples = list[int] | PendingTokens
"""One step's samples: on the host, or on their way there."""


@dataclass
class StepPlan:
    """The rows of a step, flat over its sequences.

    Attributes:
        token_ids: Of each row; `UNKNOWN` where the step before it is still sampling the token.
        positions: Position id of each row.
        slots: Where each row's KV goes.
        sequences: Per sequence, its rows and pages.
        unknown_rows: Rows whose token is unknown.
        unknown_from: For each of them, its place among the previous step's samples.
        wanted_rows: Rows whose logits are wanted.
        sampling: The sequences that they belong to.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    sequences: list[SequenceRows] = field(default_factory=list)
    unknown_rows: list[int] = field(default_factory=list)
    unknown_from: list[int] = field(default_factory=list)
    wanted_rows: list[int] = field(default_factory=list)
    sampling: list[Sequence] = field(default_factory=list)


@dataclass
class InFlight:
    """A step that was launched and whose samples nobody has looked at.

    Attributes:
        place: Of each sequence that still wants its sample, the place among `tokens`.
        tokens: The samples; on a GPU they may not be there yet.
        logits: What they were drawn from [B, V], if a request wants log-probabilities.
    """

    place: dict[Sequence, int]
    tokens: Samples
    logits: torch.Tensor | None = None

    def token_list(self) -> list[int]:
        """Return the samples; waits for them."""
        return self.tokens if isinstance(self.tokens, list) else self.tokens.tolist()


def plan_step(
    scheduled: list[Scheduled], scheduler: Scheduler, previous: InFlight | None
) -> StepPlan:
    """Lay out the rows of what was scheduled, and count them as forwarded."""
    plan = StepPlan()
    for sequence, num_tokens in ((s.sequence, s.num_tokens) for s in scheduled):
        begin, first_live = sequence.num_forwarded, len(sequence.live)
        end, num_live = begin + num_tokens, first_live + num_tokens
        rows = sequence.rows(num_tokens)
        plan.slots += scheduler.slots(sequence, range(first_live, num_live))
        plan.sequences.append(
            SequenceRows(
                rows,
                [*range(begin, end)],
                sequence.pages,
                num_live,
                observed_rows(sequence, num_tokens) if sequence.params.policy else None,
            )
        )
        if sequence.token_ids[end - 1] == UNKNOWN:
            assert previous is not None, "only the step before can know the token"
            plan.unknown_rows.append(len(plan.token_ids) + num_tokens - 1)
            plan.unknown_from.append(previous.place[sequence])
        plan.token_ids += sequence.token_ids[begin:end]
        plan.positions += sequence.builder.position[begin:end]
        sequence.forwarded(num_tokens)
        if sequence.num_pending == 0:
            plan.wanted_rows.append(len(plan.token_ids) - 1)
            plan.sampling.append(sequence)
    return plan
