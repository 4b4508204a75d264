r"""Answers that are words: one of a few (yes/no, valid/invalid, True/False), a list, any text.

Strict: the last stated answer (see `marks`) is the reference. Flexible: for one of a few words,
else the last of them in the text (`yes or no` is no answer); for lists and other texts, else the
last line. Letter case, white
space and outer punctuation do not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightthinker.evals.graders.marks import marked_answer, undecorated
from lightthinker.evals.graders.verdict import Grade, shown

_LIST_SEPARATOR = re.compile(r"[\s,;]+|\\n|\d+\.\s")
_QUOTES = str.maketrans(dict.fromkeys("[](){}\"'`*"))
_MAX_LINE_LENGTH = 4000


def grade_choice_word(prediction: str, reference: str, *, allowed: Sequence[str]) -> Grade:
    """Grade a text that should end in one of a few words.

    Args:
        prediction: What the model wrote after its reasoning.
        reference: The right word.
        allowed: All the words, e.g. `("Yes", "No")`.

    Returns:
        The grade; a stated answer counts if it begins with one of the words.
    """
    words = "|".join(re.escape(word) for word in allowed)
    whole = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)
    stated = marked_answer(prediction) or ""
    strict = flexible = None
    if not re.match(rf"(?:{words})\s*(?:,|/|and|or)\s*(?:{words})\b", stated, re.IGNORECASE):
        first, last = whole.match(stated), None
        for last in whole.finditer(prediction):  # noqa: B007
            pass
        strict = first[0] if first else None
        flexible = strict or (last[0] if last else None)
    expected = reference.casefold()
    return Grade(
        strict=strict is not None and strict.casefold() == expected,
        flexible=flexible is not None and flexible.casefold() == expected,
        extracted_strict=strict,
        extracted_flexible=flexible,
    )


def grade_word_list(prediction: str, reference: str) -> Grade:
    """Grade a list of words, in order, however separated.

    Args:
        prediction: What the model wrote after its reasoning.
        reference: The right list, separated by spaces.
    """
    expected = _word_list(reference)
    stated = marked_answer(prediction)
    line = stated or _last_line(prediction).rpartition(":")[2]
    return Grade(
        strict=stated is not None and _word_list(stated) == expected,
        flexible=_word_list(line) == expected,
        extracted_strict=shown(stated),
        extracted_flexible=shown(line) or None,
    )


def grade_exact(prediction: str, reference: str) -> Grade:
    """Grade any short text: equal but for case, white space and outer punctuation.

    Args:
        prediction: What the model wrote after its reasoning.
        reference: The right answer.
    """
    expected = _plain(reference)
    stated = marked_answer(prediction)
    line = stated or _last_line(prediction)
    return Grade(
        strict=stated is not None and _plain(stated) == expected,
        flexible=_plain(line) == expected,
        extracted_strict=shown(stated),
        extracted_flexible=shown(line) or None,
    )


def grade_symbols(prediction: str, reference: str) -> Grade:
    """Grade a sequence of symbols such as brackets, where only white space does not count."""
    expected = "".join(reference.split())
    line = _last_line(prediction)
    stated = _stated_symbols(prediction)
    found = stated if stated is not None else line.rpartition(":")[2]
    return Grade(
        strict=stated is not None and "".join(stated.split()) == expected,
        flexible="".join(found.split()) == expected,
        extracted_strict=shown(stated),
        extracted_flexible=shown(found) or None,
    )


_SYMBOLS_MARK = re.compile(r"\banswer(?: is|:)[ \t]*|\\boxed\{", re.IGNORECASE)
_SYMBOLS = re.compile(r"[ \t()\[\]{}<>]+")


def _stated_symbols(text: str) -> str | None:
    """Return the symbols after the last mark; brackets within a box need not be balanced."""
    last = None
    for last in _SYMBOLS_MARK.finditer(text):  # noqa: B007
        pass
    symbols = _SYMBOLS.match(text, last.end()) if last else None
    if last is None or symbols is None:
        return None
    found = symbols[0].rstrip()
    return found.removesuffix("}") if last[0].endswith("{") else found


def _word_list(text: str) -> list[str]:
    plain = undecorated_line(text).translate(_QUOTES).casefold()
    return [word for word in _LIST_SEPARATOR.split(plain) if word]


def _plain(text: str) -> str:
    return " ".join(undecorated_line(text).casefold().split())


def undecorated_line(text: str) -> str:
    """Return a line without decoration; a long one only without outer white space and stops."""
    return undecorated(text) if len(text) <= 500 else text[:_MAX_LINE_LENGTH].strip(" .*")


def _last_line(text: str) -> str:
    return text.rstrip()[-_MAX_LINE_LENGTH:].rpartition("\n")[2]
