r"""Finding the place where a text states its answer, in time linear in the text's length.

Marks are `\boxed{...}`, and without a box `the (final) answer is ...` and `Answer: ...`; the last
one counts. What comes before the end of the reasoning is not the answer. Knows nothing of what
answers look like.
"""

from __future__ import annotations

import re
from collections import deque

from lightthinker.data.tags import REASONING_TAGS

MAX_BOX_LENGTH = 500
_MAX_MARKS = 100
_MAX_SENTENCE_LENGTH = 500
_MARK = re.compile(
    r"(?P<box>\\(?:boxed|fbox)[ ]?\{)|\banswer\**(?: is| ?:)\**(?: ?:)?", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\n|(?<![A-Za-z(])\.\s|(?<=[a-z]{2})\.\s|;\s")
_WRAPPERS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|operatorname|mbox)\s?\{")
_OUTER = " \t\r\n*_`$\"'.,:;!?"


def after_reasoning(text: str) -> str:
    """Return what follows the last mark that ends reasoning; all of it if there is no such mark.

    A text cut off within its reasoning has no such mark and is judged as it is, as
    lm-evaluation-harness does with `think_end_token`.
    """
    for _, end in REASONING_TAGS:
        text = text.rpartition(end)[2]
    return text


def boxed(text: str, start: int, *, limit: int = MAX_BOX_LENGTH) -> str:
    r"""Return what stands between the brace before `start` and the one that closes it.

    Args:
        text: The text.
        start: Position after the opening brace of `\boxed{`.
        limit: Most characters to look at.

    Returns:
        The content, or an empty string if the brace is not closed within the limit.
    """
    depth = 1
    for at in range(start, min(start + limit, len(text))):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start:at]
    return ""


def last_boxed(text: str, *, limit: int = MAX_BOX_LENGTH) -> str | None:
    r"""Return the content of the last closed, non-empty `\boxed{...}`, or None."""
    starts = (mark.end() for mark in _MARK.finditer(text) if mark["box"])
    for start in reversed(deque(starts, maxlen=_MAX_MARKS)):
        if content := boxed(text, start, limit=limit):
            return content
    return None


def marked_answer(text: str) -> str | None:
    """Return the stated answer, without decoration, or None if none is stated.

    A box counts before a sentence. After `the answer is` and `Answer:` the answer goes to the end
    of the sentence or line.
    """
    if (content := last_boxed(text)) and (answer := undecorated(content)):
        return answer
    sentences = (mark.end() for mark in _MARK.finditer(text) if not mark["box"])
    for start in reversed(deque(sentences, maxlen=_MAX_MARKS)):
        rest = text[start : start + _MAX_SENTENCE_LENGTH].lstrip(" \t\n*:")
        if answer := undecorated(_SENTENCE_END.split(rest, maxsplit=1)[0]):
            return answer
    return None


def undecorated(text: str) -> str:
    r"""Return a short text without `\text{}`, emphasis, dollar signs and outer punctuation."""
    text = text[:MAX_BOX_LENGTH]
    for _ in range(5):
        wrapper = _WRAPPERS.search(text)
        if wrapper is None:
            break
        content = boxed(text, wrapper.end())
        text = text[: wrapper.start()] + content + text[wrapper.end() + len(content) + 1 :]
    return text.replace(r"\(", "").replace(r"\)", "").strip(_OUTER)
