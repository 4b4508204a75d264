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
vectors token by token (layout_builder.py); training data and the engine use the same builder, so
they cannot disagree. `TokenLayout` counts live tokens, peak and dependency.

This module knows no token ids, no tensors, no model.
"""

from __future__ import annotations

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

    `THOUGHT`, `TRIGGER` and `ANSWER` tokens are sampled (and AnLLM's gist). `RECOVER` tokens exist
    in training only: a copy of a thought, to be written from its gists alone.
    """

    PROMPT = 0
    THOUGHT = 1
    TRIGGER = 2
    GIST = 3
    CONTINUE = 4
    ANSWER = 5
    PADDING = 6
    RECOVER = 7


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

    def attended_pairs(self) -> int:
        """Return how many (query, key) pairs attention computes, by `expires` alone.

        Variants (`first`, `last`, `skip`) see a little less; this counts in O(n log n).
        """
        gone = np.searchsorted(np.sort(self.expires), np.arange(len(self)), side="right")
        return int((np.arange(1, len(self) + 1) - gone).sum())

    def without_recovery(self) -> TokenLayout:
        """Return the layout of the same document without its `RECOVER` tokens, as it is run."""
        kept = np.flatnonzero(self.role != Role.RECOVER)

        def moved(index: IntArray) -> IntArray:
            return np.where(
                index == NEVER, NEVER, np.searchsorted(kept, index, side="left")
            ).astype(np.int32)

        role, thought, position = self.role[kept], self.thought[kept], self.position[kept]
        indices = (self.expires, self.first, self.last, self.skip)
        return TokenLayout(role, thought, position, *(moved(vector[kept]) for vector in indices))

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
