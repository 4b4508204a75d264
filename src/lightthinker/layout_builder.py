"""LayoutBuilder: writes a layout in the order in which its tokens are written.

The engine calls it while it generates, the encoder while it prepares training data: one builder, so
that training and inference cannot disagree. Invariant: a written token never changes, except that
its expiry is set once, from `NEVER` to the index where it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lightthinker.layout import NEVER, LayoutRules, Role, TokenLayout


class LayoutBuilder:
    """Writes a document's layout in the order in which its tokens are written.

    The engine calls it while it generates, the encoder while it prepares training data. Tokens are
    never rewritten; only `expires` of earlier tokens changes, from `NEVER` to the index where they
    are dropped.

    Attributes:
        expiring: (at, start, stop) of tokens `start <= i < stop` that expire at index `at`, until
            `forget_expired` is called.
        next_expiry: The least `at` among them.
    """

    def __init__(self, rules: LayoutRules):
        self.rules = rules
        self.role: list[int] = []
        self.thought: list[int] = []
        self.position: list[int] = []
        self.expires: list[int] = []
        self.first: list[int] = []
        self.last: list[int] = []
        self.skip: list[int] = []
        self.expiring: list[tuple[int, int, int]] = []
        self.next_expiry = NEVER
        self.num_thoughts = 0
        self.thought_start = 0
        self.next_position = 0
        self._group_position = 0
        self._retained: list[tuple[int, int]] = []
        self._prompt_chunks: list[tuple[int, int]] = []
        self._last_continue: int | None = None

    def __len__(self) -> int:
        return len(self.role)

    def prompt(self, num_tokens: int) -> list[int]:
        """Write the prompt. With prompt compression, chunks and gists alternate.

        Returns:
            For each token written, its source: an index into the prompt's tokens, or `-1 - j` for
            the j-th gist.
        """
        chunk = self.rules.prompt_chunk_tokens
        if chunk is None or self.rules.method == "full":
            return self.plain_prompt(num_tokens)
        sources: list[int] = []
        for begin in range(0, num_tokens, chunk):
            end = min(begin + chunk, num_tokens)
            start = len(self)
            self._group_position = self.next_position
            self._write(end - begin, Role.PROMPT)
            num_gists = self.rules.gists_for(end - begin)
            if self.rules.prefill_compress:
                self._write_gists(num_gists, start, thought=-1)
                self._expire(start, start + end - begin, len(self))
            else:
                self._write_gists(num_gists, start, thought=-1, variants=False)
                self._prompt_chunks.append((start, start + end - begin))
            sources += [*range(begin, end), *(-1 - j for j in range(num_gists))]
        self.thought_start = len(self)
        self._group_position = self.next_position
        return sources

    def plain_prompt(self, num_tokens: int) -> list[int]:
        """Write the prompt uncompressed; returns its sources, as `prompt` does."""
        self._write(num_tokens, Role.PROMPT)
        self.thought_start = len(self)
        return list(range(num_tokens))

    def sampled(self, num_tokens: int = 1, *, role: Role = Role.THOUGHT) -> None:
        """Write sampled tokens: thought, trigger or answer."""
        index = len(self.role)
        if self._prompt_chunks:
            for start, stop in self._prompt_chunks:
                self._expire(start, stop, index)
            self._prompt_chunks.clear()
        if self.thought_start == index:
            self._group_position = self.next_position
        thought = -1 if role is Role.ANSWER else self.num_thoughts
        if num_tokens != 1:
            self._write(num_tokens, role, thought=thought)
            return
        # What `_write` does, for the one token that the engine writes at every step.
        self.role.append(role)
        self.thought.append(thought)
        self.position.append(self.next_position)
        self.expires.append(NEVER)
        self.first.append(0)
        self.last.append(index)
        self.skip.append(index)
        self.next_position += 1

    def mark_trigger(self, index: int) -> None:
        """Note that a sampled token is the trigger, whose lifetime is its thought's."""
        self.role[index], self.thought[index] = Role.TRIGGER, self.num_thoughts

    def compress(self, *, num_recover: int = 0) -> tuple[int, bool]:
        """End the current thought: write its gists and continue token, and let it expire.

        For AnLLM this writes the anchor, which the model has just sampled.

        Args:
            num_recover: Tokens that reconstruct the thought (training only), written between gists
                and continue token. They see the gists and each other, nobody else ever sees them,
                and they take up no positions: all other tokens are as without them.

        Returns:
            The number of gists written, and whether a continue token follows them.
        """
        rules, start, stop = self.rules, self.thought_start, len(self)
        assert rules.method != "full", "full chain-of-thought compresses nothing"
        num_gists = rules.gists_for(stop - start)
        self._write_gists(num_gists, start, thought=self.num_thoughts)
        self._retained.append((start, stop))
        if len(self._retained) > rules.retain_thoughts:
            self._expire(*self._retained.pop(0), len(self))
        if rules.blank_gists:
            self._expire(stop, len(self), len(self))
        if num_recover:
            self._write_recovery(num_recover, stop)
        if rules.has_continue:
            if not rules.keep_continue and self._last_continue is not None:
                self._expire(self._last_continue, self._last_continue + 1, len(self))
            self._last_continue = len(self)
            self._write(1, Role.CONTINUE, thought=self.num_thoughts)
        self.num_thoughts += 1
        self.thought_start = len(self)
        return num_gists, rules.has_continue

    def drop(self, indices: Iterable[int]) -> None:
        """Let tokens expire now, unseen by whatever is written next (cache policies)."""
        for index in indices:
            self._expire(index, index + 1, len(self))

    def forget_expired(self, now: int) -> None:
        """Take what has expired at index `now` off `expiring`: it has been freed."""
        self.expiring = [span for span in self.expiring if span[0] > now]
        self.next_expiry = min((at for at, _, _ in self.expiring), default=NEVER)

    def build(self) -> TokenLayout:
        """Return the layout written so far, as arrays."""
        vectors = (
            self.role,
            self.thought,
            self.position,
            self.expires,
            self.first,
            self.last,
            self.skip,
        )
        return TokenLayout(*(np.array(v, dtype=np.int32) for v in vectors))

    def _write(
        self,
        num_tokens: int,
        role: Role,
        *,
        thought: int = -1,
        positions: Sequence[int] | None = None,
    ) -> None:
        begin = len(self.role)
        indices = range(begin, begin + num_tokens)
        if positions is None:
            positions = range(self.next_position, self.next_position + num_tokens)
            self.next_position += num_tokens
        self.role += [int(role)] * num_tokens
        self.thought += [thought] * num_tokens
        self.position += positions
        self.expires += [NEVER] * num_tokens
        self.first += [0] * num_tokens
        self.last += indices
        self.skip += indices

    def _write_gists(
        self, num_gists: int, thought_start: int, *, thought: int, variants: bool = True
    ) -> None:
        rules, begin = self.rules, len(self)
        positions: Sequence[int] | None = None
        if rules.position_mode == "compact":
            self.next_position = self._group_position
        elif rules.position_mode == "spread":
            span = self.next_position - self._group_position
            positions = [
                self._group_position + -(-(j + 1) * span // num_gists) - 1 for j in range(num_gists)
            ]
        self._write(num_gists, Role.GIST, thought=thought, positions=positions)
        if not variants:
            return
        group = slice(begin, begin + num_gists)
        if rules.see_current or rules.method == "anllm":
            self.first[group] = [thought_start] * num_gists
        if rules.diagonal:
            self.skip[group] = [begin] * num_gists
        elif rules.bi_directional:
            self.last[group] = [begin + num_gists - 1] * num_gists

    def _write_recovery(self, num_tokens: int, gists_start: int) -> None:
        begin = len(self)
        positions = range(self.next_position, self.next_position + num_tokens)
        self._write(num_tokens, Role.RECOVER, thought=self.num_thoughts, positions=positions)
        self.first[begin:] = [gists_start] * num_tokens
        self._expire(begin, len(self), len(self))

    def _expire(self, start: int, stop: int, at: int) -> None:
        self.expires[start:stop] = [at] * (stop - start)
        self.expiring.append((at, start, stop))
        self.next_expiry = min(self.next_expiry, at)
