"""Telling reasoning from answer in one assistant text.

Known marks: `<think>…</think>` (DeepSeek-R1, Qwen3) and `<|begin_of_thought|>…<|end_of_thought|>`,
the latter with `<|begin_of_solution|>…<|end_of_solution|>` around the answer (Sky-T1,
Bespoke-Stratos, OpenThoughts).
"""

from __future__ import annotations

from lightthinker.data.trace import DropReason, TraceError

REASONING_TAGS = (("<|begin_of_thought|>", "<|end_of_thought|>"), ("<think>", "</think>"))
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")


def has_reasoning_tags(text: str) -> bool:
    """Return whether any mark that begins or ends reasoning occurs in the text."""
    return any(tag in text for pair in REASONING_TAGS for tag in pair)


def split_reasoning(text: str) -> tuple[str, str]:
    """Split an assistant text into reasoning and answer.

    The opening mark may be missing, as in outputs whose chat template supplied it.

    Args:
        text: The whole assistant text.

    Returns:
        Reasoning and answer, without marks and outer white space; no marks: all is answer.

    Raises:
        TraceError: A mark is not closed, repeated, out of order, or has text before it.
    """
    for begin, end in REASONING_TAGS:
        if begin in text or end in text:
            return _split(text, begin, end)
    return "", strip_solution_tags(text)


def reasoning_start(text: str) -> int:
    """Return the position at which the reasoning that `split_reasoning` returns begins."""
    after = next((text.index(tag) + len(tag) for tag, _ in REASONING_TAGS if tag in text), 0)
    return len(text) - len(text[after:].lstrip())


def strip_solution_tags(answer: str) -> str:
    """Return the answer inside the solution marks, or the whole text if there are none.

    Raises:
        TraceError: A mark is not closed, repeated, out of order, or has text around it.
    """
    begin, end = SOLUTION_TAGS
    if begin not in answer and end not in answer:
        return answer.strip()
    if end not in answer:
        raise TraceError(DropReason.UNCLOSED_TAG, f"{begin} has no {end}.")
    before, _, rest = answer.partition(begin)
    solution, _, after = rest.partition(end)
    if before.strip() or after.strip() or begin in solution:
        raise TraceError(DropReason.MISPLACED_TAG, f"{begin} … {end} is not all of the answer.")
    return solution.strip()


def _split(text: str, begin: str, end: str) -> tuple[str, str]:
    if end not in text:
        raise TraceError(DropReason.UNCLOSED_TAG, f"{begin} has no {end}.")
    before, has_begin, opened = text.partition(begin)
    if has_begin and end in before:
        raise TraceError(DropReason.MISPLACED_TAG, f"{end} comes before {begin}.")
    if has_begin and before.strip():
        raise TraceError(DropReason.MISPLACED_TAG, f"There is text before {begin}.")
    reasoning, _, answer = (opened if has_begin else text).partition(end)
    if begin in reasoning or begin in answer or end in answer:
        raise TraceError(DropReason.MISPLACED_TAG, f"{begin} or {end} occurs more than once.")
    return reasoning.strip(), strip_solution_tags(answer)
