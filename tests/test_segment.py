from __future__ import annotations

import re
import subprocess
import sys
import time
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.errors import ConfigError
from lightthinker.segment import SegmentConfig, approximate_tokens, segment

NASTY = "\n\r\t \u2028\u2029\u3000\x0b\x1c\x85.!?…。！？”)*12aBé\u0301\u200d👩🏽"
UNICODE = st.lists(st.one_of(st.sampled_from(NASTY), st.characters()), max_size=60).map("".join)
PLAIN = st.text("ab.\n 。", max_size=200)


def letters(text: str) -> int:
    return len(re.findall(r"\S", text))


def offsets_of_pairs(text: str) -> list[tuple[int, int]]:
    return [(at, min(at + 2, len(text))) for at in range(0, len(text), 2)]


CONFIGS = st.one_of(
    st.builds(
        lambda by, least, extra, bounded: SegmentConfig(
            by=by, min_tokens=least, max_tokens=max(1, 2 * least) + extra if bounded else None
        ),
        st.sampled_from(["paragraph", "sentence", "line"]),
        st.integers(0, 6),
        st.integers(0, 5),
        st.booleans(),
    ),
    st.builds(lambda n: SegmentConfig(by="tokens", num_tokens=n), st.integers(1, 5)),
    st.builds(
        lambda p: SegmentConfig(by="regex", pattern=p), st.sampled_from([r"\n", r"\s", r"[a.]+"])
    ),
)


@given(UNICODE, CONFIGS)
def test_pieces_join_to_the_text_and_none_is_blank(text: str, config: SegmentConfig) -> None:
    pieces = segment(text, config, count=letters, offsets=offsets_of_pairs)
    assert "".join(pieces) == text
    assert all(piece.strip() for piece in pieces) or pieces == [text]


@given(UNICODE, CONFIGS.filter(lambda config: config.by != "tokens"))
def test_white_space_belongs_to_the_piece_before_it(text: str, config: SegmentConfig) -> None:
    for before, after in pairwise(segment(text, config, count=letters)):
        indentation = after[: len(after) - len(after.lstrip())]
        assert not set(indentation) & set("\n\r\u2028\u2029")
        assert not indentation or before[-1] in "\n\r\u2028\u2029"


@given(PLAIN, st.integers(1, 6), st.integers(0, 6), st.sampled_from(["paragraph", "sentence"]))
def test_every_piece_keeps_the_bounds(text: str, least: int, extra: int, by: str) -> None:
    config = SegmentConfig(by=by, min_tokens=least, max_tokens=2 * least + extra)
    lengths = [letters(piece) for piece in segment(text, config, count=letters)]
    assert all(length <= 2 * least + extra for length in lengths)
    if letters(text) >= least:
        assert all(length >= least for length in lengths)


@given(UNICODE, st.sampled_from(["paragraph", "sentence", "line"]))
def test_no_character_is_parted_from_its_combining_marks(text: str, by: str) -> None:
    for before, after in pairwise(segment(text, SegmentConfig(by=by, max_tokens=1), count=len)):
        if not before[-1].isspace():
            assert not unicodedata.category(after[0]).startswith("M")
            assert "\u200d" not in (before[-1], after[0])


def test_empty_text_has_no_pieces_and_blank_text_has_one() -> None:
    assert segment("") == []
    assert segment(" \n\n \t") == [" \n\n \t"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one\n\ntwo", ["one\n\n", "two"]),
        ("one\ntwo\n\n\n\nthree\n\n", ["one\ntwo\n\n\n\n", "three\n\n"]),
        ("one\r\n\r\ntwo\r\nthree", ["one\r\n\r\n", "two\r\nthree"]),
        ("one\n \t\ntwo", ["one\n \t\n", "two"]),
        ("\n\none", ["\n\none"]),
        ("code:\n\n    x = 1\n    y = 2", ["code:\n\n", "    x = 1\n    y = 2"]),
        ("one\u2029\u2029two\u2028three", ["one\u2029\u2029", "two\u2028three"]),
    ],
)
def test_paragraphs(text: str, pieces: list[str]) -> None:
    assert segment(text) == pieces


def test_lines() -> None:
    config = SegmentConfig(by="line")
    assert segment("a\r\nb\rc\n\n  d", config) == ["a\r\n", "b\r", "c\n\n", "  d"]


@pytest.mark.parametrize(
    "text",
    [
        "Pi is 3.14 or so. |Next one.",
        "Use a prime, e.g. 7. |Then i.e. that. |Done.",
        "Dr. Smith and Mrs. Jones agree. |Good.",
        "1. Add them. |2. Multiply.\n|3. Stop.",
        "Step 1. Add 2 and 3. |Step 2. Multiply.",
        "See https://a.org/b.html?c=d. |It works.",
        "Is it? |Yes! |It is... |Wait.",
        "No. |That is wrong. |See Fig. 3 and No. 5. |Good.",
        "5! = 120 and 3! - 2! = 4. |Right.",
        'He said "Stop." |(Really.) |**Bold.** |End.',
        "The U.S. Army left at 5 p.m. sharp. |So?",
        "Total:\n5.\n|Next",
        "A heading\n\n|And. |Text",
        "因为是3.5。|所以！|“真的？”|好。",
        "If $x=3.$ |Then stop.",
        "Dr.\n\n|Stop.\n|then go. and on.",
        "Not here... and not there. |Here.",
    ],
)
def test_sentences(text: str) -> None:
    assert segment(text.replace("|", ""), SegmentConfig(by="sentence")) == text.split("|")


def test_regex_splits_after_each_match() -> None:
    config = SegmentConfig(by="regex", pattern=r"\bso\b,?")
    assert segment("a so, b so c", config) == ["a so, ", "b so ", "c"]


def test_regex_that_matches_empty_text_inside_is_an_error() -> None:
    with pytest.raises(ConfigError, match="matches the empty string"):
        segment("ab cd", SegmentConfig(by="regex", pattern=r"\b"))


def test_tokens_are_counted_from_the_first_and_keep_their_leading_space() -> None:
    ends = [(0, 2), (2, 5), (5, 8), (8, 11), (11, 14)]
    text = "ab cd ef gh ij"
    assert segment(text, SegmentConfig(by="tokens", num_tokens=2), offsets=lambda _: ends) == [
        "ab cd",
        " ef gh",
        " ij",
    ]


def test_characters_of_several_tokens_stay_whole() -> None:
    bytewise = [(0, 1), (0, 1), (0, 1), (1, 2)]
    config = SegmentConfig(by="tokens", num_tokens=2)
    assert segment("👩a", config, offsets=lambda _: bytewise) == ["👩", "a"]


@pytest.mark.parametrize("offsets", [None, lambda _: [(0, 9)], lambda _: [(0, 2), (0, 1)]])
def test_tokens_need_usable_offsets(offsets: object) -> None:
    with pytest.raises(ConfigError, match="offsets"):
        segment("abc", SegmentConfig(by="tokens", num_tokens=1), offsets=offsets)


def test_short_pieces_join_the_next_and_the_last_joins_the_one_before() -> None:
    config = SegmentConfig(by="line", min_tokens=3)
    text = "a\nbbb\ncccc\ndd\nee\nf"
    assert segment(text, config, count=letters) == ["a\nbbb\n", "cccc\n", "dd\nee\nf"]


def test_the_length_of_joined_pieces_is_counted_not_summed() -> None:
    config = SegmentConfig(by="line", min_tokens=2)
    assert segment("a\n" * 8, config) == ["a\na\na\n", "a\na\na\na\na\n"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aa. bb\ncc. dd", ["aa. bb\n", "cc. dd"]),
        ("Aa bb. Cc dd", ["Aa bb. ", "Cc dd"]),
        ("aaa bbbb cc", ["aaa ", "bbbb cc"]),
        ("aaaaaaaa", ["aaaaaa", "aa"]),
    ],
)
def test_long_pieces_are_cut_at_line_sentence_space_or_anywhere(
    text: str, pieces: list[str]
) -> None:
    assert segment(text, SegmentConfig(max_tokens=6), count=letters) == pieces


def test_what_cannot_fit_is_still_cut_after_white_space() -> None:
    config = SegmentConfig(max_tokens=5)
    assert segment(" ab cd", config, count=lambda text: 10 * len(text)) == [" a", "b ", "c", "d"]


def test_a_long_piece_leaves_no_short_last_part() -> None:
    config = SegmentConfig(min_tokens=3, max_tokens=6)
    assert segment("aa bb cc d", config, count=letters) == ["aa bb ", "cc d"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "paragraf"}, r"by is 'paragraf'; allowed: .*Did you mean 'paragraph'"),
        ({"min_tokens": -1}, r"min_tokens is -1; allowed: an integer >= 0"),
        ({"min_tokens": True}, r"min_tokens is True"),
        ({"max_tokens": 0}, r"max_tokens is 0; allowed: an integer >= 1"),
        ({"min_tokens": 5, "max_tokens": 9}, r"max_tokens is 9; allowed: an integer >= 10"),
        ({"by": "tokens"}, r"num_tokens is None"),
        ({"by": "tokens", "num_tokens": 0}, r"num_tokens is 0; allowed: an integer >= 1"),
        ({"by": "tokens", "num_tokens": 6, "max_tokens": 9}, r"set num_tokens only"),
        ({"num_tokens": 6}, r"num_tokens is 6 .* only for by='tokens'"),
        ({"pattern": "a"}, r"pattern is 'a' .* only for by='regex'"),
        ({"by": "regex"}, r"pattern is None"),
        ({"by": "regex", "pattern": "("}, r"not a regular expression"),
        ({"by": "regex", "pattern": r"\n*"}, r"matches the empty string"),
    ],
)
def test_config_errors_name_field_value_and_what_is_allowed(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentConfig(**settings)


def test_approximate_tokens() -> None:
    assert [approximate_tokens(text) for text in ("", "a", "abcd", "abcde", "é" * 4, "\ud800")] == [
        0,
        1,
        1,
        2,
        2,
        1,
    ]


@pytest.mark.parametrize("text", ["\n", "\n ", ".", ".) ", "1. ", "a", "a ", "Ab cd. ", "e\u0301"])
@pytest.mark.parametrize("by", ["sentence", "line"])
def test_time_is_about_linear(text: str, by: str) -> None:
    config = SegmentConfig(by=by, min_tokens=10, max_tokens=30)
    long_text = text * 100_000 + "."
    start = time.perf_counter()
    assert "".join(segment(long_text, config)) == long_text
    assert time.perf_counter() - start < 5


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, lightthinker.segment, lightthinker.data.sources, lightthinker.evals.graders;"
        "print({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "set()", output.stderr
