r"""Grading of numeric answers, as on GSM8K: is the number right, and was it given as the answer?

`strict` looks at the last number marked as answer (`#### 72`, `The answer is 72`, `\boxed{72}`),
`flexible` at the last number of all. Numbers are compared exactly, as fractions; currency and
percent signs do not count. Text is matched, never evaluated, in time linear in its length.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

from lightthinker.errors import DataError
from lightthinker.evals.graders.marks import boxed
from lightthinker.evals.graders.verdict import Grade

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]++)?|\.[0-9]++)"
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_])(?P<minus>(?<![)\]}}])-)?[$€£]?"
    rf"(?:(?P<units>[0-9]++)(?: (?=[0-9]+/[0-9])|(?=\\[dt]?frac)))?"
    rf"(?:\\[dt]?frac\{{(?P<above>[0-9]++)\}}\{{(?P<below>[0-9]++)\}}"
    rf"|(?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[+-]?[0-9]++)| ?/ ?(?P<divisor>{_DECIMAL}))?)"
)
_MARK = re.compile(r"####|\bthe (?:final )?answer is|(?P<box>\\boxed\{)", re.IGNORECASE)
_FILLER = re.compile(r"(?:[\s:*_(\[{$=+]|\\[(\[]){0,20}")
_PLAIN = {"−": "-", "{,}": ",", r"\!": "", r"\,": "", r"\$": "$"}
_MAX_NUMBER_LENGTH = 200
_MAX_EXPONENT = 99
_MAX_MARKS = 100


def grade(prediction: str, reference: str) -> Grade:
    """Grade a model's text against a numeric reference.

    Args:
        prediction: What the model wrote; anything at all.
        reference: One number, e.g. `1,234`, `$18.00`, `3/4`, or a GSM8K answer with `#### 72`.

    Returns:
        Both verdicts and the numbers found: the last marked one, and the last of all.

    Raises:
        DataError: The reference holds no number or several.
    """
    plain = _plain(reference)
    expected = _marked_number(plain) or _only_number(plain)
    if expected is None:
        raise DataError(f"The reference {reference[:80]!r} is not one number.")
    plain = _plain(prediction)
    marked, last = _marked_number(plain), _last_number(plain)
    return Grade(
        strict=marked is not None and _value(marked) == _value(expected),
        flexible=last is not None and _value(last) == _value(expected),
        extracted_strict=marked and marked[0],
        extracted_flexible=last and last[0],
    )


def _plain(text: str) -> str:
    for written, plain in _PLAIN.items():
        text = text.replace(written, plain)
    return text


def _marked_number(text: str) -> re.Match[str] | None:
    for mark in reversed(deque(_MARK.finditer(text), maxlen=_MAX_MARKS)):
        if mark["box"]:
            number = _only_number(boxed(text, mark.end()))
        else:
            filler = _FILLER.match(text, mark.end())
            assert filler is not None
            number = _NUMBER.match(text, filler.end())
        if number and _has_value(number):
            return number
    return None


def _only_number(text: str) -> re.Match[str] | None:
    numbers = list(_NUMBER.finditer(text))
    return numbers[0] if len(numbers) == 1 and _has_value(numbers[0]) else None


def _last_number(text: str) -> re.Match[str] | None:
    last = None
    for number in _NUMBER.finditer(text):
        if _has_value(number):
            last = number
    return last


def _has_value(number: re.Match[str]) -> bool:
    if len(number[0]) > _MAX_NUMBER_LENGTH or abs(int(number["exponent"] or 0)) > _MAX_EXPONENT:
        return False
    below = number["below"] or number["divisor"]
    return below is None or bool(below.strip("0.,"))


def _value(number: re.Match[str]) -> Fraction:
    if number["above"]:
        size = Fraction(int(number["above"]), int(number["below"]))
    else:
        size = _decimal(number["decimal"]) * Fraction(10) ** int(number["exponent"] or 0)
        size /= _decimal(number["divisor"] or "1")
    size += int(number["units"] or 0)
    return -size if number["minus"] else size


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
