"""The method: token lifetimes (LightThinker, arXiv 2502.15589, section 3).

Every token of a sequence gets a *lifetime*: token `k` is visible to query `q` exactly when

    k <= q  and  q < expires[k]

so one int per token says what a query sees, what the engine may free and when, and what the run
costs.

    prompt    thought 1, trigger   g1 .. gC   continue   thought 2, trigger   g1 .. gC   ...
    forever   until its continue   forever    forever    until its continue   forever

Three more ints per *query* express the paper's mask variants: `first` (a gist that looks no further
back than its own thought), `last` (gists that see their whole group, both ways) and `skip` (a gist
that does not see the others of its group). `LayoutRules` are the knobs, `LayoutBuilder` writes the
vectors token by token; training data and the engine use the same builder, so they cannot disagree.
`TokenLayout` counts live tokens, peak and dependency.

This module knows no token ids, no tensors, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightthinker.errors import ConfigError

NEVER = 2**31 - 1
"""Expiry of a token that is never dropped."""

Method = Literal["full", "thought", "token", "anllm"]
PositionMode = Literal["absolute", "compact", "spread"]
IntArray = NDArray[np.int32]


class Role(IntEnum):
    """What a token is for.

    `THOUGHT`, `TRIGGER` and `ANSWER` tokens are sampled (and AnLLM's gist).
    """

    PROMPT = 0
    THOUGHT = 1
    TRIGGER = 2
    GIST = 3
    CONTINUE = 4
    ANSWER = 5
    PADDING = 6


OUTPUT_ROLES = (Role.THOUGHT, Role.TRIGGER, Role.ANSWER)


@dataclass(frozen=True, kw_only=True)
class LayoutRules:
    """The method's knobs, as far as they decide what sees what.

    Attributes:
        method: `thought` ends a thought at a sampled trigger; `token` after every `segment_tokens`
            tokens; `anllm` at a sampled anchor, which is itself the only gist; `full` is full
            chain-of-thought.
        num_gists: The paper's C. With `tokens_per_gist` it is the cap.
        tokens_per_gist: If set, a thought of n tokens (trigger included) gets `ceil(n /
            tokens_per_gist)` gists, at least one and at most `num_gists`.
        segment_tokens: Length of a segment for `token` (paper: 6 tokens into 2 gists).
        retain_thoughts: How many finished thoughts stay visible in full before they expire.
        keep_continue: Whether a continue token stays after the next compression (paper: yes).
        see_current: Gists see only their own thought and group.
        bi_directional: Gists of a group see each other both ways.
        diagonal: A gist sees only itself among its group; wins over `bi_directional`, as upstream.
        prompt_chunk_tokens: If set, the prompt is compressed too, in chunks of this many tokens.
        prefill_compress: If false, prompt tokens all see each other and their chunks expire where
            the output begins.
        position_mode: `absolute` counts on; `compact` starts a thought and its gists at the same
            position; `spread` spaces the gists over their thought's span.
        blank_gists: A control, not a method: gists expire with their thought, so nothing of it is
            carried on.
    """

    method: Method = "thought"
    num_gists: int = 9
    tokens_per_gist: float | None = None
    segment_tokens: int = 6
    retain_thoughts: int = 0
    keep_continue: bool = True
    see_current: bool = False
    bi_directional: bool = False
    diagonal: bool = False
    prompt_chunk_tokens: int | None = None
    prefill_compress: bool = True
    position_mode: PositionMode = "absolute"
    blank_gists: bool = False

    def __post_init__(self) -> None:
        _check(
            self.method in ("full", "thought", "token", "anllm"),
            "method",
            self.method,
            "one of full, thought, token, anllm",
        )
        _check(
            self.position_mode in ("absolute", "compact", "spread"),
            "position_mode",
            self.position_mode,
            "one of absolute, compact, spread",
        )
        _check(1 <= self.num_gists <= 256, "num_gists", self.num_gists, "between 1 and 256")
        _check(self.segment_tokens >= 1, "segment_tokens", self.segment_tokens, "at least 1")
        _check(self.retain_thoughts >= 0, "retain_thoughts", self.retain_thoughts, "at least 0")
        if self.tokens_per_gist is not None:
            _check(self.tokens_per_gist > 0, "tokens_per_gist", self.tokens_per_gist, "positive")
        if self.prompt_chunk_tokens is not None:
            _check(
                self.prompt_chunk_tokens >= 1,
                "prompt_chunk_tokens",
                self.prompt_chunk_tokens,
                "at least 1, or null to leave the prompt alone",
            )
        if self.method == "anllm":
            _check(
                self.num_gists == 1,
                "num_gists",
                self.num_gists,
                "1 for method anllm, whose anchor is its gist",
            )
        if self.blank_gists:
            _check(
                self.retain_thoughts == 0,
                "retain_thoughts",
                self.retain_thoughts,
                "0 when blank_gists is true",
            )
        if not self.keep_continue:
            _check(
                self.retain_thoughts == 0,
                "retain_thoughts",
                self.retain_thoughts,
                "0 when keep_continue is false (a continue row can skip one range only)",
            )

    @property
    def has_trigger(self) -> bool:
        """Whether a sampled trigger token ends each thought."""
        return self.method == "thought"

    @property
    def has_continue(self) -> bool:
        """Whether a continue token follows each group of gists."""
        return self.method in ("thought", "token")

    def gists_for(self, num_tokens: int) -> int:
        """Number of gists for a thought of `num_tokens` tokens, its trigger included."""
        if self.tokens_per_gist is None:
            return self.num_gists
        return max(1, min(self.num_gists, -int(-num_tokens // self.tokens_per_gist)))


def _check(ok: bool, field: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"compression.{field} is {value!r}; it must be {allowed}.")


def sees(q: Any, k: Any, *, expires_k: Any, first_q: Any, last_q: Any, skip_q: Any) -> Any:
    """Return whether query `q` sees token `k`: the whole method in one expression.

    Works on ints, NumPy arrays and tensors alike (broadcasting); sources: paper section 3.3, and
    upstream's mask flags.
    """
    causal = (k <= q) | (k <= last_q)
    skipped = (k >= skip_q) & (k < q)
    return (
        causal
        & (q < expires_k)
        & (k >= first_q)
        & (~skipped if not isinstance(skipped, bool) else not skipped)
    )


@dataclass(frozen=True)
class TokenLayout:
    """The lifetimes of one document of `n` tokens; all arrays are int32 of shape [n].

    Attributes:
        role: `Role` of each token.
        thought: Number of the thought a token belongs to, from 0; -1 outside thoughts.
        position: Position id, fixed when the token is written.
        expires: First query index that no longer sees the token; `NEVER` if it stays.
        first: First token index that the query sees.
        last: Last token index that the query sees beyond itself (equal to the index itself, or the
            group's end).
        skip: The query does not see tokens `skip <= k < q` (equal to `q` itself: nothing skipped).
    """

    role: IntArray
    thought: IntArray
    position: IntArray
    expires: IntArray
    first: IntArray
    last: IntArray
    skip: IntArray

    def __len__(self) -> int:
        return len(self.role)

    @property
    def is_plain(self) -> bool:
        """Whether `expires` alone decides (no variant uses `first`, `last` or `skip`)."""
        index = np.arange(len(self))
        return bool(
            (self.first == 0).all() and (self.last == index).all() and (self.skip == index).all()
        )

    def visible(self) -> NDArray[np.bool_]:
        """Return the dense mask [n, n], query by key: the oracle, obvious and slow."""
        index = np.arange(len(self))
        mask: NDArray[np.bool_] = sees(
            index[:, None],
            index[None, :],
            expires_k=self.expires[None, :],
            first_q=self.first[:, None],
            last_q=self.last[:, None],
            skip_q=self.skip[:, None],
        )
        return mask

    def live_tokens(self) -> IntArray:
        """Return how many tokens are live once token `q` is written: written, not yet freed; [n].

        A continue token is written in the same step as its gists, before the thought is freed.
        """
        n = len(self)
        step = np.arange(n) - (self.role == Role.CONTINUE)
        gone = np.searchsorted(np.sort(self.expires), step, side="right")
        written: IntArray = np.arange(1, n + 1) - gone
        return written.astype(np.int32)

    def peak_tokens(self) -> int:
        """Return the most tokens that were live at once: the paper's Peak."""
        return int(self.live_tokens().max(initial=0))

    def dep_paper(self) -> int:
        """Return the paper's dependency.

        Tokens attended to, summed over the visible output tokens.
        """
        return self._dependency(self.is_output)

    def dep_full(self) -> int:
        """Return the dependency with gist and continue tokens of the output charged as well."""
        return self._dependency(np.arange(len(self)) >= self.output_start)

    @property
    def is_output(self) -> NDArray[np.bool_]:
        """Which tokens are visible output: thoughts, triggers and answer, bool [n]."""
        return np.isin(self.role, OUTPUT_ROLES)

    @property
    def output_start(self) -> int:
        """Index of the first token after the prompt."""
        output = np.flatnonzero(self.is_output)
        return int(output[0]) if len(output) else len(self)

    def _dependency(self, rows: NDArray[np.bool_]) -> int:
        if not self.is_plain:
            return int(self.visible()[rows].sum())
        n = len(self)
        gone = np.searchsorted(np.sort(self.expires), np.arange(n), side="right")
        return int((np.arange(1, n + 1) - gone)[rows].sum())


class LayoutBuilder:
    """Writes a document's layout in the order in which its tokens are written.

    The engine calls it while it generates, the encoder while it prepares training data. Tokens are
    never rewritten; only `expires` of earlier tokens changes, from `NEVER` to the index where they
    are dropped.
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
        for start, stop in self._prompt_chunks:
            self._expire(start, stop, len(self))
        self._prompt_chunks.clear()
        if self.thought_start == len(self):
            self._group_position = self.next_position
        self._write(num_tokens, role, thought=-1 if role is Role.ANSWER else self.num_thoughts)

    def compress(self) -> tuple[int, bool]:
        """End the current thought: write its gists and continue token, and let it expire.

        For AnLLM this writes the anchor, which the model has just sampled.

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
        if rules.has_continue:
            if not rules.keep_continue and self._last_continue is not None:
                self._expire(self._last_continue, self._last_continue + 1, len(self))
            self._last_continue = len(self)
            self._write(1, Role.CONTINUE, thought=self.num_thoughts)
        self.num_thoughts += 1
        self.thought_start = len(self)
        return num_gists, rules.has_continue

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
        begin = len(self)
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

    def _expire(self, start: int, stop: int, at: int) -> None:
        self.expires[start:stop] = [at] * (stop - start)
        self.next_expiry = min(self.next_expiry, at)
