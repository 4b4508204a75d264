"""What a sampled token does: it ends the sequence or a thought, or is simply written.

A token is written in two parts. `extend` gives it its place in the layout, which depends on what
came before it alone; `settle` fills in its id once that is known and acts on it. With asynchronous
scheduling a step is launched between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightthinker.engine.detokenizer import Detokenizer
from lightthinker.engine.intake import Request
from lightthinker.engine.outputs import ThoughtStats
from lightthinker.engine.pending import INVALID
from lightthinker.engine.scheduler import Scheduler
from lightthinker.engine.sequence import Sequence


@dataclass(frozen=True)
class TokenWriter:
    """Writes sampled tokens.

    Attributes:
        scheduler: Told of sequences that are finished.
        eos_ids: Ids that end a sequence.
        max_model_len: Positions that the model has.
    """

    scheduler: Scheduler
    eos_ids: frozenset[int]
    max_model_len: int

    def may_extend(self, sequence: Sequence) -> bool:
        """Whether the next token has a successor, unless it happens to end the sequence."""
        return (
            len(sequence.sampled_ids) + 1 < sequence.params.max_tokens
            and sequence.builder.next_position < self.max_model_len
        )

    def num_plain_steps(self, sequence: Sequence) -> int:
        """Return how often `extend` can follow before a limit of the request comes into play."""
        sampled, room = len(sequence.sampled_ids), self.max_model_len
        steps = min(sequence.params.max_tokens - sampled - 1, room - sequence.builder.next_position)
        limit, segment = sequence.params.max_thought_tokens, sequence.segment_tokens
        if limit is not None and not sequence.in_answer:
            steps = min(steps, limit - sequence.thought_length)
        if segment is not None and not sequence.in_answer:
            steps = min(steps, segment - sequence.thought_length - 1)
        return steps

    def extend(self, sequence: Sequence) -> None:
        """Give the next token its place; its id may be known already, because it is forced."""
        sequence.extend(self._forced_token(sequence))

    def settle(self, sequence: Sequence, request: Request, token: int) -> bool:
        """Fill in a token's id and act on it.

        Returns:
            Whether it ended a thought, so that gists are pending now.
        """
        params, detokenizer = sequence.params, request.detokenizers[sequence.index]
        if token == INVALID:
            detokenizer.flush()
            sequence.forget_unsettled()
            sequence.stop_reason = "the model's logits are not finite"
            self._finish(sequence, "error")
            return False
        is_anchor = token == sequence.anchor_id
        anchored = sequence.thought_length if is_anchor else 0
        if not is_anchor and sequence.unsettled is None:
            self.extend(sequence)
        token, ends_thought = sequence.settle(token)
        is_eos = token in self.eos_ids and not params.ignore_eos
        if is_eos or token in params.stop_token_ids:
            detokenizer.flush()
            sequence.stop_reason = None if is_eos else token
            self._finish(sequence, "stop")
            return False
        detokenizer.push(token)
        is_last = len(sequence.sampled_ids) >= params.max_tokens
        if is_last or sequence.finish_reason is not None:
            detokenizer.flush()
        if params.stop and self._hit_stop_string(sequence, detokenizer):
            self._finish(sequence, "stop")
            return False
        inserted = sequence.num_inserted_positions() if ends_thought else 0
        if (
            is_last
            or sequence.finish_reason is not None
            or sequence.builder.next_position + inserted > self.max_model_len
        ):
            detokenizer.flush()
            self._finish(sequence, "length")
            return False
        ended_plainly = sequence.compression is None and token == sequence.trigger_id
        if ends_thought or ended_plainly or is_anchor:
            _note_thought(sequence, request, anchored or sequence.thought_length)
        if ends_thought:
            sequence.insert_gists()
        elif ended_plainly:
            sequence.builder.thought_start = len(sequence.builder)
        return ends_thought

    def _finish(self, sequence: Sequence, reason: str) -> None:
        if sequence.finish_reason is None:
            self.scheduler.finish(sequence, reason)
        else:
            sequence.finish_reason = reason

    @staticmethod
    def _forced_token(sequence: Sequence) -> int | None:
        limit, trigger_id = sequence.params.max_thought_tokens, sequence.trigger_id
        if limit is None and sequence.budget is None:
            return None
        if sequence.budget is not None:
            open_thought = trigger_id if sequence.thought_length else None
            forced = sequence.budget.forced_token(sequence.sampled_ids, open_thought)
            if forced is not None:
                return forced
        if limit is None or sequence.in_answer or sequence.thought_length < limit:
            return None
        return trigger_id

    @staticmethod
    def _hit_stop_string(sequence: Sequence, detokenizer: Detokenizer) -> bool:
        text = detokenizer.text
        found = [(text.find(stop), stop) for stop in sequence.params.stop_strings if stop in text]
        if found:
            at, sequence.stop_reason = min(found)
            detokenizer.truncate(at)
            return True
        return False


def _note_thought(sequence: Sequence, request: Request, num_tokens: int) -> None:
    text = request.detokenizers[sequence.index].text
    begin = request.thought_begins[sequence.index]
    request.thought_begins[sequence.index] = len(text)
    compressed = sequence.compression is not None
    num_gists = sequence.builder.rules.gists_for(num_tokens) if compressed else 0
    freed = num_tokens if compressed else 0
    sequence.thoughts.append(ThoughtStats(text[begin:].strip(), num_tokens, num_gists, freed))
