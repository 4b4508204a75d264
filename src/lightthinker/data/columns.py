"""Flat rows -> Trace: question, reasoning and answer columns under their many names, and GSM8K.

Which column is which is looked up in `ALIASES`, first name first, unless the user says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lightthinker.data.rows import Row
from lightthinker.data.tags import has_reasoning_tags, split_reasoning
from lightthinker.data.trace import DropReason, Trace, TraceError, check_unicode

ALIASES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "problem", "instruction"),
    "reasoning": (
        "reasoning",
        "reasoning_content",
        "thinking",
        "cot",
        "rationale",
        "solution",
    ),
    "answer": ("response", "completion", "output", "answer", "final_answer"),
    "system": ("system", "system_prompt"),
    "thoughts": ("thoughts",),
    "reference": ("reference", "ground_truth", "final_answer", "answer"),
}
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = "####"


def find_columns(row: Row, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return which column of a row holds each field of a trace.

    Args:
        row: The row; a column that is None or empty counts as absent.
        chosen: Field -> column, where the user has said; those are not looked up.
    """
    found = dict(chosen)
    for field, aliases in ALIASES.items():
        names = [name for name in aliases if row.get(name) not in (None, "")]
        if field == "reference":
            names = [name for name in names if _may_be_reference(name, row[name], found)]
        if field not in found and names:
            found[field] = names[0]
    return found


def has_columns(row: Row) -> bool:
    """Return whether the row has a question and a place for reasoning, maybe inside the answer.

    Whether this row's answer has reasoning in it is not asked: the next one's may.
    """
    has_answer = any(isinstance(row.get(name), str) for name in ALIASES["answer"])
    has_question = not row.keys().isdisjoint(ALIASES["question"])
    return has_question and (has_answer or _has_reasoning_column(row))


def _has_reasoning_column(row: Row) -> bool:
    return not row.keys().isdisjoint((*ALIASES["reasoning"], *ALIASES["thoughts"]))


def parse_columns(row: Row, source: str, *, columns: Mapping[str, str]) -> Trace:
    """Read a trace from question, reasoning and answer columns.

    Reasoning and answer may also be one text with reasoning tags. `thoughts`, a list of strings, is
    reasoning in pieces; a blank line is put between pieces that no white space parts.

    Args:
        row: The row.
        source: The trace's `file:line`.
        columns: Field -> column, for columns that no alias names.

    Returns:
        The trace.

    Raises:
        TraceError: A column is missing or no text.
    """
    found = find_columns(row, columns)
    texts = {
        field: (_answer_text if field in ("answer", "reference") else _text)(row, column)
        for field, column in found.items()
        if field != "thoughts"
    }
    question = texts.get("question", "")
    if found.get("question") == "instruction" and row.get("input"):
        question = f"{question}\n\n{_text(row, 'input')}"
    thoughts = _thoughts(row, found["thoughts"]) if "thoughts" in found else None
    reasoning, answer = _reasoning_and_answer(texts)
    return Trace(
        question=question.strip(),
        reasoning=reasoning or "".join(thoughts or ()),
        answer=answer,
        system=texts.get("system") or None,
        thoughts=thoughts,
        reference=texts.get("reference"),
        source=source,
    )


def _reasoning_and_answer(texts: Mapping[str, str]) -> tuple[str, str]:
    in_answer, answer = split_reasoning(texts.get("answer", ""))
    reasoning = texts.get("reasoning", "")
    if not has_reasoning_tags(reasoning):
        return reasoning.strip() or in_answer, answer
    reasoning, after = split_reasoning(reasoning)
    return reasoning, answer or after


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        raise TraceError(DropReason.MISSING_FIELD, f"there is no {column}.")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return check_unicode(column, value)


def _answer_text(row: Row, column: str) -> str:
    value = row.get(column)
    return str(value) if _is_number(value) else _text(row, column)


def _may_be_reference(name: str, value: object, found: Mapping[str, str]) -> bool:
    return name != found.get("answer") and (isinstance(value, str) or _is_number(value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _thoughts(row: Row, column: str) -> tuple[str, ...]:
    pieces = row.get(column)
    if not isinstance(pieces, list):
        raise TraceError(DropReason.NOT_TEXT, f"{column} is not a list of strings.")
    kept = [piece for piece in pieces if check_unicode(column, piece).strip()]
    if not kept:
        raise TraceError(DropReason.NO_REASONING, f"{column} is empty.")
    inner = [piece if piece[-1].isspace() else f"{piece}\n\n" for piece in kept[:-1]]
    first, *rest = [*inner, kept[-1].rstrip()]
    return (first.lstrip(), *rest)


def is_gsm8k(row: Row) -> bool:
    """Return whether the row has GSM8K's question and `rationale #### number`."""
    answer = row.get("answer")
    if "question" not in row or not isinstance(answer, str) or _FINAL_ANSWER not in answer:
        return False
    return not _has_reasoning_column(row)


def parse_gsm8k(row: Row, source: str, *, keep_calculator: bool) -> Trace:
    """Read a trace in GSM8K's own format.

    The answer keeps the set's own form, `#### 72`; the bare number is the reference.

    Args:
        row: Has `question` and `answer`, the latter one step a line, then `#### 72`.
        source: The trace's `file:line`.
        keep_calculator: Keep annotations such as `<<48/2=24>>`.

    Returns:
        The trace.

    Raises:
        TraceError: A field is missing or no text, or there is no final answer.
    """
    question, answer = _text(row, "question"), _text(row, "answer")
    rationale, mark, final = answer.rpartition(_FINAL_ANSWER)
    if not mark or not final.strip():
        raise TraceError(DropReason.NO_ANSWER, f"no {_FINAL_ANSWER} with a final answer.")
    reasoning = rationale if keep_calculator else _CALCULATOR.sub("", rationale)
    return Trace(
        question=question.strip(),
        reasoning=reasoning.strip(),
        answer=f"{_FINAL_ANSWER} {final.strip()}",
        reference=final.strip(),
        source=source,
    )
