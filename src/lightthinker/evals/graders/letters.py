r"""Multiple choice: which letter did the text choose?

Strict: the last stated answer (see `marks`) begins with an option letter: `\boxed{B}`, `(B)`,
`B. the option's text`. Flexible: that, or the option whose text is stated, or else the last letter
in the text: in parentheses, else alone in emphasis or on a line, else standing free (`A` before a
lower-case word is an article, `I` a pronoun). Two letters stated (`A or B`) are no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightthinker.evals.graders.marks import marked_answer, undecorated
from lightthinker.evals.graders.verdict import Grade, shown

_STATED = re.compile(
    r"(?:option|choice)?\s*[(\[]?([A-Za-z])(?:[)\]]|(?=[\s.:,/&]|$))", re.IGNORECASE
)
_PARENTHESISED = re.compile(r"\(([A-Z])\)")
_ALONE = re.compile(
    r"(?:^|\n)[ \t]*[*_(\[]{0,4}([A-Z])[*_)\].:]{0,4}[ \t]*(?=\n|$)|\*\*([A-Z])\*\*"
)
_FREE = re.compile(r"(?<![A-Za-z0-9_'’\\])([A-Z])(?![A-Za-z0-9_'’])")
_ARTICLE = re.compile(r"[ \t]+[a-z]")
_ANOTHER = re.compile(r"\s*(?:,|/|&|and\b|or\b)\s*[(\[]?[A-Z](?![A-Za-z])")


def grade_letter(prediction: str, reference: str, *, options: Sequence[str]) -> Grade:
    """Grade a text that should choose one of several options.

    Args:
        prediction: What the model wrote after its reasoning.
        reference: The right letter, `A` for the first option.
        options: The options' texts, first to last.

    Returns:
        The grade; extracted answers are letters.
    """
    letters = [chr(ord("A") + index) for index in range(len(options))]
    stated = marked_answer(prediction) or ""
    is_hedged = bool((first := _STATED.match(stated)) and _ANOTHER.match(stated, first.end()))
    strict = flexible = None
    if not is_hedged:
        strict = _stated_letter(stated, letters)
        flexible = (
            strict or _option_letter(stated, options, letters) or _last_letter(prediction, letters)
        )
    return Grade(
        strict=strict == reference,
        flexible=flexible == reference,
        extracted_strict=shown(strict),
        extracted_flexible=shown(flexible),
    )


def _stated_letter(stated: str, letters: Sequence[str]) -> str | None:
    match = _STATED.match(stated)
    if match is None:
        return None
    rest = stated[match.end() :]
    is_article = match[1] in "Aa" and match[0][-1] in "Aa" and _ARTICLE.match(rest)
    is_word = match[1].islower() and rest.strip() and match[0][-1] not in ")]"
    letter = match[1].upper()
    return letter if letter in letters and not (is_article or is_word) else None


def _option_letter(stated: str, options: Sequence[str], letters: Sequence[str]) -> str | None:
    wanted = _plain(stated)
    matching = [
        letter for letter, text in zip(letters, options, strict=True) if _plain(text) == wanted
    ]
    return matching[0] if len(matching) == 1 else None


def _plain(text: str) -> str:
    return " ".join(undecorated(text).casefold().split())


def _last_letter(text: str, letters: Sequence[str]) -> str | None:
    for pattern in (_PARENTHESISED, _ALONE):
        found = [group for match in pattern.finditer(text) for group in match.groups() if group]
        if allowed := [letter for letter in found if letter in letters]:
            return allowed[-1]
    free = [
        match[1]
        for match in _FREE.finditer(text)
        if match[1] in letters
        and match[1] != "I"
        and not (match[1] == "A" and _ARTICLE.match(text, match.end()))
    ]
    return free[-1] if free else None
