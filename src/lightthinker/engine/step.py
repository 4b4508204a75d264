"""One step: which tokens go through the model, and what becomes of the samples it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lightthinker.attention.batch import SequenceRows
from lightthinker.engine.eviction import observed_rows
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.scheduler import Scheduled
from lightthinker.engine.sequence import UNKNOWN, Sequence

Samples = list[int] | PendingTokens
"""One step's samples: on the host, or on their way there."""


@dataclass
class StepPlan:
    """The rows of a step, flat over its sequences.

    Attributes:
        token_ids: Of each row; `UNKNOWN` where the step before it is still sampling the token.
        positions: Position id of each row.
        sequences: Per sequence, its rows and pages.
        unknown_rows: Rows whose token is unknown.
        unknown_from: For each of them, its place among the previous step's samples.
        wanted_rows: Rows whose logits are wanted.
        sampling: The sequences that they belong to.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
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


def plan_step(scheduled: list[Scheduled], previous: InFlight | None) -> StepPlan:
    """Lay out the rows of what was scheduled, and count them as forwarded."""
    plan = StepPlan()
    token_ids, positions = plan.token_ids, plan.positions
    for sequence, num_tokens in scheduled:
        begin = sequence.num_forwarded
        end = begin + num_tokens
        observed = observed_rows(sequence, num_tokens) if sequence.params.policy else None
        num_live = len(sequence.live) + num_tokens
        known = sequence.token_ids
        if num_tokens == 1:
            indices = [begin]
            token_ids.append(known[begin])
            positions.append(sequence.builder.position[begin])
        else:
            indices = [*range(begin, end)]
            token_ids += known[begin:end]
            positions += sequence.builder.position[begin:end]
        rows = sequence.rows(num_tokens)
        plan.sequences.append(SequenceRows(rows, indices, sequence.pages, num_live, observed))
        if token_ids[-1] == UNKNOWN:
            assert previous is not None, "only the step before can know the token"
            plan.unknown_rows.append(len(token_ids) - 1)
            plan.unknown_from.append(previous.place[sequence])
        sequence.forwarded(num_tokens)
        if end == len(known):
            plan.wanted_rows.append(len(token_ids) - 1)
            plan.sampling.append(sequence)
    return plan
