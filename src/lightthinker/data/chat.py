"""Conversations -> Trace: ShareGPT `conversations` and OpenAI `messages`, single or multi-turn.

The last assistant turn is the target, the user turn before it the question, everything earlier is
history, from which reasoning is dropped as chat templates drop it.
"""

from __future__ import annotations

from typing import Any

from lightthinker.data.rows import Row
from lightthinker.data.tags import split_reasoning
from lightthinker.data.trace import DropReason, Message, Trace, TraceError

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def parse_chat(row: Row, source: str, *, column: str) -> Trace:
    """Read a trace from a list of turns.

    Args:
        row: Has a list of turns under `column`, each `{"role", "content"}` or `{"from", "value"}`.
            Reasoning is inside in tags, or beside it as `reasoning_content` or `reasoning`. There
            may be a `system` column.
        source: The trace's `file:line`.
        column: `messages` or `conversations`.

    Returns:
        The trace.

    Raises:
        TraceError: The turns are not of this form, or there is no question, reasoning or answer.
    """
    turns = row.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise TraceError(DropReason.NOT_TEXT, f"{column} is not a list of turns.")
    messages = [Message(role=_role(turn), content=_content(turn)) for turn in turns]
    targets = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if not targets:
        raise TraceError(DropReason.NO_ANSWER, f"{column} has no assistant turn.")
    target = targets[-1]
    if target == 0 or messages[target - 1].role != "user":
        raise TraceError(DropReason.NO_QUESTION, "no user turn comes before the last answer.")
    reasoning, answer = _reasoning_and_answer(turns[target], messages[target].content)
    history = [_without_reasoning(message) for message in messages[: target - 1]]
    system = row.get("system") or None
    if history and history[0].role == "system":
        first = history.pop(0)
        system = system or first.content
    return Trace(
        question=messages[target - 1].content.strip(),
        reasoning=reasoning,
        answer=answer,
        system=system,
        history=tuple(history),
        source=source,
    )


def _role(turn: dict[str, Any]) -> str:
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise TraceError(
            DropReason.UNKNOWN_ROLE, f"{role!r} is no role; allowed: {', '.join(_ROLES)}."
        )
    return _ROLES[role]


def _content(turn: dict[str, Any]) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TraceError(
            DropReason.NOT_TEXT, f"the content of a turn is {type(content).__name__}, not a string."
        )
    return content


def _reasoning_and_answer(turn: dict[str, Any], content: str) -> tuple[str, str]:
    tagged, answer = split_reasoning(content)
    separate = turn.get("reasoning_content") or turn.get("reasoning") or tagged
    if not isinstance(separate, str):
        raise TraceError(DropReason.NOT_TEXT, "the reasoning of the last turn is not a string.")
    return separate.strip(), answer


def _without_reasoning(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return Message(role=message.role, content=split_reasoning(message.content)[1])
