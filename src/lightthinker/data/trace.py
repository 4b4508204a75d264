"""Trace: one question, the reasoning about it, and the answer.

Whatever file it came from, a trace that exists is fit for training: it has a question, reasoning
and an answer, and its thoughts add up to the reasoning. Knows no file format and no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lightthinker.errors import DataError


class DropReason(StrEnum):
    """Why a row of a data file yields no trace."""

    EMPTY_LINE = "empty line"
    INVALID_UTF8 = "invalid UTF-8"
    MALFORMED_JSON = "malformed JSON"
    NOT_AN_OBJECT = "not a JSON object"
    MISSING_FIELD = "missing field"
    NOT_TEXT = "field is not text"
    UNKNOWN_ROLE = "unknown role"
    NO_QUESTION = "no question"
    NO_REASONING = "no reasoning"
    NO_ANSWER = "no answer"
    UNCLOSED_TAG = "unclosed reasoning tag"
    MISPLACED_TAG = "misplaced reasoning tag"
    THOUGHTS_MISMATCH = "thoughts do not add up to the reasoning"
    UNFINISHED = "unfinished output"


class TraceError(DataError):
    """A row cannot become a trace.

    Attributes:
        reason: The kind of fault, under which a reader counts it.
        detail: A sentence about this row.
    """

    def __init__(self, reason: DropReason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Message:
    """One earlier turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A question, the reasoning about it, and the answer, as plain text.

    Attributes:
        question: The user's last turn.
        reasoning: The reasoning, without the markers around it.
        answer: What follows the reasoning.
        system: System prompt.
        history: Turns before the question, without their reasoning.
        thoughts: The reasoning in pieces, if the source comes segmented; they join to `reasoning`.
        answer_pieces: The answer in pieces, likewise; they join to `answer`.
        reference: The gold answer, for grading.
        source: Where it came from, as `file:line`.

    Raises:
        TraceError: A field is not text, is blank, or cannot be encoded as UTF-8; or the thoughts do
            not add up to the reasoning.
    """

    question: str
    reasoning: str
    answer: str
    system: str | None = None
    history: tuple[Message, ...] = ()
    thoughts: tuple[str, ...] | None = None
    answer_pieces: tuple[str, ...] | None = None
    reference: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        _check_text("question", self.question, DropReason.NO_QUESTION)
        if not check_unicode("reasoning", self.reasoning).strip():
            raise TraceError(
                DropReason.NO_REASONING,
                "reasoning is empty: neither a field of its own nor <think> tags hold any.",
            )
        _check_text("answer", self.answer, DropReason.NO_ANSWER)
        for name in ("system", "reference"):
            if getattr(self, name) is not None:
                check_unicode(name, getattr(self, name))
        for message in self.history:
            check_unicode("history", message.content)
        for pieces, whole, name in (
            (self.thoughts, self.reasoning, "thoughts join to another text than the reasoning"),
            (self.answer_pieces, self.answer, "pieces join to another text than the answer"),
        ):
            if pieces is not None and "".join(pieces) != whole:
                raise TraceError(DropReason.THOUGHTS_MISMATCH, f"{len(pieces)} {name}.")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation before the reasoning, as chat templates take it."""
        system = [] if self.system is None else [Message(role="system", content=self.system)]
        turns = [*system, *self.history, Message(role="user", content=self.question)]
        return [{"role": turn.role, "content": turn.content} for turn in turns]


def check_unicode(name: str, text: object) -> str:
    """Return `text` if it is a string that UTF-8 can encode.

    Raises:
        TraceError: It is no string, or holds a lone surrogate (half of a pair escaped in JSON).
    """
    if not isinstance(text, str):
        raise TraceError(DropReason.NOT_TEXT, f"{name} is {type(text).__name__}, not a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TraceError(
            DropReason.NOT_TEXT, f"{name} has a lone surrogate at character {error.start}."
        ) from None
    return text


def _check_text(name: str, text: object, if_blank: DropReason) -> None:
    if not check_unicode(name, text).strip():
        raise TraceError(if_blank, f"{name} is empty.")
