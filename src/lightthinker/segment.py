"""Reasoning text -> thoughts: consecutive pieces of text, the paper's S_1 .. S_n (section 3.2).

The law is `"".join(segment(text)) == text`, for any text. A piece owns the white space after it, up
to the last line break; indentation stays with the line it indents. No piece is only white space
unless the whole text is.

Short pieces join the one after them; long ones are cut at the best place inside. Knows no
tokenizer: lengths come from a counting function, token ends from one that gives character offsets.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Literal, get_args

from lightthinker.errors import ConfigError, suggestion

SegmentBy = Literal["paragraph", "sentence", "line", "tokens", "regex"]
TokenCount = Callable[[str], int]
TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]

_BREAK = r"(?>\r\n|[\n\r\u2028\u2029])"
_LINE_BREAK = re.compile(_BREAK)
_BLANK_LINE = re.compile(rf"{_BREAK}[^\S\n\r\u2028\u2029]*{_BREAK}")
_SPACE = re.compile(r"\s+")
_NON_SPACE = re.compile(r"\S")
_ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    r"""Where one thought ends and the next begins.

    Attributes:
        by: `paragraph` cuts after blank lines (the paper's thought level), `line` after every line,
            `sentence` after every sentence, `tokens` after every `num_tokens` tokens, `regex` after
            every match of `pattern`.
        num_tokens: Tokens in a piece, for `tokens` only. The last piece may be shorter.
        pattern: Python regular expression, for `regex` only, e.g. `r"\n(?=Step \d+)"`.
        min_tokens: Shorter pieces join the following one (the last one joins the one before).
        max_tokens: Longer pieces are cut at the best inner place: line, sentence, space, then
            anywhere but before a combining mark. At least twice `min_tokens`. None: no limit.
    """

    by: SegmentBy = "paragraph"
    num_tokens: int | None = None
    pattern: str | None = None
    min_tokens: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        allowed = get_args(SegmentBy)
        if self.by not in allowed:
            raise ConfigError(
                f"segment.by is {self.by!r}; allowed: {', '.join(allowed)}."
                f"{suggestion(str(self.by), allowed)}"
            )
        _check_integer("min_tokens", self.min_tokens, 0)
        least_maximum = max(1, 2 * self.min_tokens)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, least_maximum)
        self._check_tokens()
        self._check_pattern()

    def _check_tokens(self) -> None:
        if self.by != "tokens":
            if self.num_tokens is not None:
                raise ConfigError(_only_for("num_tokens", self.num_tokens, "tokens", self.by))
            return
        if self.num_tokens is None:
            raise ConfigError("segment.num_tokens is None; by='tokens' needs an integer >= 1.")
        _check_integer("num_tokens", self.num_tokens, 1)
        if self.min_tokens or self.max_tokens is not None:
            raise ConfigError(
                f"segment.min_tokens is {self.min_tokens} and segment.max_tokens is "
                f"{self.max_tokens}; with by='tokens' set num_tokens only."
            )

    def _check_pattern(self) -> None:
        if self.by != "regex":
            if self.pattern is not None:
                raise ConfigError(_only_for("pattern", self.pattern, "regex", self.by))
            return
        if not isinstance(self.pattern, str):
            raise ConfigError(
                f"segment.pattern is {self.pattern!r}; by='regex' needs a regular expression."
            )
        try:
            compiled = re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"segment.pattern is {self.pattern!r}, not a regular expression: {error}."
            ) from error
        if compiled.search(""):
            raise ConfigError(_matches_empty(self.pattern))


def approximate_tokens(text: str) -> int:
    """Return about the number of tokens: UTF-8 bytes / 4, rounded up. Good to a factor of two."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def _check_integer(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"segment.{field} is {value!r}; allowed: an integer >= {least}.")


def _only_for(field: str, value: object, by: str, actual: str) -> str:
    return f"segment.{field} is {value!r} but segment.by is {actual!r}; it is only for by={by!r}."


def _matches_empty(pattern: str) -> str:
    return (
        f"segment.pattern is {pattern!r}, which matches the empty string; "
        "allowed: a pattern that matches at least one character, e.g. r'\\n\\n'."
    )


_PARAGRAPHS = SegmentConfig()


def segment(
    text: str,
    config: SegmentConfig = _PARAGRAPHS,
    *,
    count: TokenCount = approximate_tokens,
    offsets: TokenOffsets | None = None,
) -> list[str]:
    """Cut a reasoning text into thoughts.

    Args:
        text: The reasoning; any Unicode.
        config: Where to cut.
        count: Length of a text in tokens, for `min_tokens` and `max_tokens`. It is given pieces
            without their outer white space, and should grow with the text.
        offsets: For `by="tokens"`: the `(start, end)` characters of each token of a text, without
            special tokens (a fast tokenizer's `offset_mapping`).

    Returns:
        Pieces whose concatenation is `text`: none for an empty text, one for white space only.

    Raises:
        ConfigError: `by="tokens"` without usable offsets, or a pattern that matches empty text.
    """
    if config.by == "tokens":
        cuts = _token_cuts(text, config, offsets)
    else:
        cuts = _after_white_space(text, _boundaries(text, config))
    cuts = _without_blank_pieces(text, cuts)
    measured = _MeasuredText(text, count)
    if config.min_tokens:
        cuts = _merge_short(measured, cuts, config.min_tokens)
    if config.max_tokens is not None:
        cuts = _split_long(measured, cuts, config.min_tokens, config.max_tokens)
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])] if text else []


def _boundaries(text: str, config: SegmentConfig) -> Iterable[int]:
    if config.by == "sentence":
        return _sentence_ends(text)
    if config.by == "regex":
        assert config.pattern is not None
        return _matches(text, config.pattern)
    pattern = _BLANK_LINE if config.by == "paragraph" else _LINE_BREAK
    return (match.end() for match in pattern.finditer(text))


def _matches(text: str, pattern: str) -> Iterable[int]:
    for match in re.finditer(pattern, text):
        if match.end() == match.start():
            raise ConfigError(_matches_empty(pattern))
        yield match.end()


def _token_cuts(text: str, config: SegmentConfig, offsets: TokenOffsets | None) -> list[int]:
    if offsets is None:
        raise ConfigError("segment.by is 'tokens': pass offsets, the characters of each token.")
    assert config.num_tokens is not None
    ends = [end for start, end in offsets(text) if end > start]
    if any(after < before for before, after in pairwise([0, *ends, len(text)])):
        raise ConfigError("The token offsets given for by='tokens' are not positions in the text.")
    cuts = ends[config.num_tokens - 1 :: config.num_tokens]
    return [cut for cut in dict.fromkeys(cuts) if cut < len(text)]


def _after_white_space(text: str, boundaries: Iterable[int]) -> list[int]:
    """Move each boundary to where its line's white space ends; drop those at either end."""
    cuts: list[int] = []
    passed = 0
    for boundary in boundaries:
        if boundary < passed:
            continue
        next_word = _NON_SPACE.search(text, boundary)
        if next_word is None:
            break
        passed = next_word.start()
        breaks = [match.end() for match in _LINE_BREAK.finditer(text, boundary, passed)]
        if breaks:
            cut = breaks[-1]
        elif boundary and _LINE_BREAK.match(text, boundary - 1):
            cut = boundary
        else:
            cut = passed
        is_inside = cut and (text[cut - 1].isspace() or _can_part(text[cut - 1], text[cut]))
        if is_inside and cut > max(cuts[-1:], default=0):
            cuts.append(cut)
    return cuts


def _without_blank_pieces(text: str, cuts: Sequence[int]) -> list[int]:
    kept: list[int] = []
    start, has_words = 0, False
    for end in [*cuts, len(text)]:
        has_words = has_words or not text[start:end].isspace()
        start = end
        if has_words:
            kept.append(end)
            has_words = False
    return kept[:-1]


@dataclass(frozen=True)
class _MeasuredText:
    text: str
    count: TokenCount

    def length(self, start: int, end: int) -> int:
        return self.count(self.text[start:end].strip())

    def last_fitting(self, start: int, end: int, maximum: int) -> int:
        """Return about the last position up to which the text fits, looking no further ahead."""
        low, step = start, maximum
        high = min(start + step, end)
        while self.length(start, high) <= maximum:
            if high == end:
                return end
            step *= 2
            low, high = high, min(high + step, end)
        while high - low > 1:
            middle = (low + high) // 2
            if self.length(start, middle) <= maximum:
                low = middle
            else:
                high = middle
        return low


class _LongPiece:
    """Cuts one piece that is too long, at the kind of place that comes first in `_kinds`."""

    def __init__(self, measured: _MeasuredText, start: int, end: int, minimum: int, maximum: int):
        self.measured = measured
        self.text = measured.text
        self._piece = self.text[start:end]
        self.start, self.end = start, end
        self.minimum, self.maximum = minimum, maximum

    def cuts(self) -> list[int]:
        bounds = [self.start]
        while bounds[-1] < self.end:
            bounds.append(self._next_cut(bounds[-1]))
        if len(bounds) > 2 and self.measured.length(bounds[-2], self.end) < self.minimum:
            bounds[-2] = self._balanced_cut(bounds[-3], bounds[-2])
        return bounds[1:-1]

    def _next_cut(self, start: int) -> int:
        limit = self.measured.last_fitting(start, self.end, self.maximum)
        if limit == self.end:
            return limit
        for cuts in self._kinds():
            at = bisect_right(cuts, limit) - 1
            cut = cuts[at] if at >= 0 else start
            if cut > start and self.measured.length(start, cut) >= self.minimum:
                return cut
        word = _NON_SPACE.search(self.text, start)
        assert word is not None
        nearest = chain(
            range(limit, word.start(), -1), range(max(limit, word.start()) + 1, self.end)
        )
        return next(self._between_characters(nearest), self.end)

    def _balanced_cut(self, start: int, cut: int) -> int:
        """Move the last cut left until what follows it is long enough."""
        characters = sorted(self._between_characters(range(start + 1, cut)))
        for cuts in (*self._kinds(), characters):
            for earlier in reversed(cuts[bisect_right(cuts, start) : bisect_left(cuts, cut)]):
                if self.measured.length(start, earlier) < self.minimum:
                    break
                if self.minimum <= self.measured.length(earlier, self.end) <= self.maximum:
                    return earlier
        return cut

    def _kinds(self) -> Iterator[list[int]]:
        yield self._lines
        yield self._sentences
        yield self._spaces

    @cached_property
    def _lines(self) -> list[int]:
        return self._inner(match.end() for match in _LINE_BREAK.finditer(self._piece))

    @cached_property
    def _sentences(self) -> list[int]:
        return self._inner(_sentence_ends(self._piece))

    @cached_property
    def _spaces(self) -> list[int]:
        return self._inner(match.start() for match in _SPACE.finditer(self._piece))

    def _inner(self, boundaries: Iterable[int]) -> list[int]:
        cuts = _without_blank_pieces(self._piece, _after_white_space(self._piece, boundaries))
        return [self.start + cut for cut in cuts]

    def _between_characters(self, positions: Iterable[int]) -> Iterator[int]:
        return (at for at in positions if _can_part(self.text[at - 1], self.text[at]))


def _merge_short(measured: _MeasuredText, cuts: Sequence[int], minimum: int) -> list[int]:
    kept: list[int] = []
    start = previous = length = 0
    for end in [*cuts, len(measured.text)]:
        length += measured.length(previous, end)
        if length >= minimum and previous > start:
            length = measured.length(start, end)  # the sum of the parts may overstate it
        previous = end
        if length >= minimum:
            kept.append(end)
            start, length = end, 0
    return kept[:-1]


def _split_long(
    measured: _MeasuredText, cuts: Sequence[int], minimum: int, maximum: int
) -> list[int]:
    split: list[int] = []
    for start, end in pairwise([0, *cuts, len(measured.text)]):
        if measured.length(start, end) > maximum:
            split += _LongPiece(measured, start, end, minimum, maximum).cuts()
        split.append(end)
    return split[:-1]


def _can_part(before: str, after: str) -> bool:
    if before.isspace() or after.isspace():
        return not after.isspace()
    return _ZERO_WIDTH_JOINER not in (before, after) and unicodedata.category(after)[0] != "M"


_SENTENCE_END = re.compile(
    r"[。！？｡]+[」』”’）】》]*"
    r"|(?<![.!?…।؟])(?P<mark>(?>[.!?…।؟]+))(?>[\"'”’»)\]}*_$`]*)(?P<gap>\s+)"
    rf"|{_BLANK_LINE.pattern}"
)
_ABBREVIATION = re.compile(
    r"approx|cf|dr|mrs?|ms|prof|resp|st|viz|vs|(?:[a-z]{1,2}\.)+[a-z]{1,2}", re.IGNORECASE
)
_BEFORE_NUMBERS = re.compile(r"ch|def|eqs?|ex|figs?|nos?|pp?|sec|thm|vol", re.IGNORECASE)
_LIST_NUMBER = re.compile(
    r"[\s*_#>(-]*(?:(?:case|example|option|part|problem|question|step)\s+)?"
    r"(?:\d{1,3}|[a-z]|[ivx]{1,5})",
    re.IGNORECASE,
)
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘*_]*\Z")
_CONTINUES = re.compile(r"[=+/<>^,;:)\]}|&%×÷·≤≥≈]|[*-]\s")
_LOOK_BACK = 40


def _sentence_ends(text: str) -> Iterator[int]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match["mark"] is None:
            start = match.end()
            yield start
        elif _ends_sentence(text, match, start):
            start = match.end()
            yield match.start("gap")


def _ends_sentence(text: str, match: re.Match[str], sentence_start: int) -> bool:
    if _BLANK_LINE.search(match["gap"]):
        return True
    ends_line = _LINE_BREAK.search(match["gap"]) is not None
    following = text[match.end() : match.end() + 1]
    if match["mark"] == ".":
        before = text[max(sentence_start, match.start() - _LOOK_BACK) : match.start()]
        if _LIST_NUMBER.fullmatch(_LINE_BREAK.split(before)[-1]) and not ends_line:
            return False
        if _is_abbreviation(before, following):
            return False
    return ends_line or not (following.islower() or _CONTINUES.match(text, match.end()))


def _is_abbreviation(before: str, following: str) -> bool:
    word = _LAST_WORD.search(before)
    assert word is not None
    if following.isdigit() or following == "(":
        return bool(_ABBREVIATION.fullmatch(word[0]) or _BEFORE_NUMBERS.fullmatch(word[0]))
    return _ABBREVIATION.fullmatch(word[0]) is not None
