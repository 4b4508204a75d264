"""Training rows of zjunlp/LightThinker -> Trace.

A row has `system_prompt`, `question`, `gt_output` (reasoning and answer with their tags) and
`thoughts_list`, the pieces that upstream ends with a trigger each. `system_list` and
`question_list`, the same prompt in sentences, are not needed here.
"""

from __future__ import annotations

from itertools import pairwise

from lightthinker.data.rows import Row
from lightthinker.data.tags import has_reasoning_tags, reasoning_start, split_reasoning
from lightthinker.data.trace import DropReason, Trace, TraceError, check_unicode


def is_upstream(row: Row) -> bool:
    """Return whether the row has upstream's two telling keys."""
    return "thoughts_list" in row and "gt_output" in row


def parse_upstream(row: Row, source: str) -> Trace:
    """Read a trace from upstream's training format.

    The pieces of `thoughts_list` are found again in `gt_output`; where a piece begins, a thought
    begins, in the reasoning as in the answer. Without tags in `gt_output` the last piece is the
    answer.

    Args:
        row: The row.
        source: The trace's `file:line`.

    Returns:
        The trace; `thoughts` and `answer_pieces` are None if `thoughts_list` is empty.

    Raises:
        TraceError: A field is missing or no text, the output is marked unfinished, or the pieces
            do not occur in the output in their order.
    """
    if row.get("add_eos") is False:
        raise TraceError(DropReason.UNFINISHED, "add_eos is false: the output goes on elsewhere.")
    for name in ("question", "gt_output", "thoughts_list"):
        if row.get(name) is None:
            raise TraceError(DropReason.MISSING_FIELD, f"there is no {name}.")
    output = check_unicode("gt_output", row["gt_output"])
    begins = _piece_begins(output, row["thoughts_list"])
    if has_reasoning_tags(output):
        reasoning, answer = split_reasoning(output)
    elif len(begins) > 1:
        reasoning, answer = output[: begins[-1]].strip(), output[begins[-1] :].strip()
    else:
        raise TraceError(DropReason.NO_REASONING, "gt_output has neither tags nor pieces.")
    thoughts = _cut(reasoning, reasoning_start(output), begins) if begins and reasoning else None
    answer_pieces = _cut(answer, output.rindex(answer), begins) if begins and answer else None
    return Trace(
        question=check_unicode("question", row["question"]).strip(),
        reasoning=reasoning,
        answer=answer,
        system=row.get("system_prompt") or None,
        thoughts=thoughts,
        answer_pieces=answer_pieces,
        source=source,
    )


def _piece_begins(output: str, pieces: object) -> list[int]:
    if not isinstance(pieces, list):
        raise TraceError(DropReason.NOT_TEXT, "thoughts_list is not a list of strings.")
    begins, at = [], 0
    for number, piece in enumerate(pieces, start=1):
        text = check_unicode("thoughts_list", piece).strip()
        if not text:
            continue
        begin = output.find(text, at)
        if begin < 0:
            raise TraceError(
                DropReason.THOUGHTS_MISMATCH,
                f"piece {number} is not in gt_output after the others.",
            )
        begins.append(begin)
        at = begin + len(text)
    return begins


def _cut(reasoning: str, offset: int, begins: list[int]) -> tuple[str, ...]:
    inner = [begin - offset for begin in begins if 0 < begin - offset < len(reasoning)]
    return tuple(reasoning[a:b] for a, b in pairwise([0, *inner, len(reasoning)]))
