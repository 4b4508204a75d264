"""The layout against a mask written the other way round.

Start from all-causal, then hide rectangle by rectangle.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.errors import ConfigError
from lightthinker.layout import NEVER, LayoutRules, Role, TokenLayout
from lightthinker.layout_builder import LayoutBuilder


@dataclass
class Document:
    """Token counts of a random document."""

    prompt: int
    thoughts: list[int]
    answer: int


documents = st.builds(
    Document,
    prompt=st.integers(1, 14),
    thoughts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    answer=st.integers(0, 6),
)


def write(rules: LayoutRules, document: Document) -> TokenLayout:
    builder = LayoutBuilder(rules)
    builder.prompt(document.prompt)
    for length in document.thoughts:
        builder.sampled(length)
        if rules.has_trigger:
            builder.sampled(role=Role.TRIGGER)
        if rules.method != "full":
            builder.compress()
    builder.sampled(document.answer, role=Role.ANSWER)
    return builder.build()


def upstream_mask(rules: LayoutRules, document: Document) -> np.ndarray:
    """What upstream's `create_attention_for_aug_data` computes (zjunlp/LightThinker, utils.py),
    rectangle by rectangle.
    """
    groups = []
    at = 0
    if rules.prompt_chunk_tokens:
        for begin in range(0, document.prompt, rules.prompt_chunk_tokens):
            end = min(begin + rules.prompt_chunk_tokens, document.prompt)
            groups.append((at, at + end - begin, rules.num_gists, 0))
            at += end - begin + rules.num_gists
    else:
        at = document.prompt
    num_prompt_groups = len(groups)
    for length in document.thoughts:
        groups.append((at, at + length + 1, rules.num_gists, 1))
        at += length + 1 + rules.num_gists + 1
    n = at + document.answer
    mask = np.tril(np.ones((n, n), dtype=bool))
    previous = None
    for number, (start, end, gists, continues) in enumerate(groups):
        is_prompt = number < num_prompt_groups
        mask[end + gists :, start:end] = False
        if not rules.keep_continue and previous is not None and previous[3]:
            mask[end + gists :, previous[1] + previous[2] : previous[1] + previous[2] + 1] = False
        if not rules.prefill_compress and is_prompt:
            mask[: end + gists, : end + gists] = np.tri(end + gists, dtype=bool)
        if not rules.prefill_compress and not is_prompt and number == num_prompt_groups:
            mask[:start, :start] = np.tri(start, dtype=bool)
        group = slice(end, end + gists)
        if rules.bi_directional:
            mask[group, group] = True
        if rules.diagonal:
            mask[group, group] = np.eye(gists, dtype=bool)
        if rules.see_current:
            mask[group, :start] = False
        previous = (start, end, gists, continues)
    return mask


FLAGS = ("bi_directional", "see_current", "diagonal", "keep_continue", "prefill_compress")


@pytest.mark.parametrize("values", list(itertools.product([False, True], repeat=len(FLAGS))))
@given(
    document=documents, num_gists=st.integers(1, 4), chunk=st.one_of(st.none(), st.integers(1, 6))
)
def test_all_flag_combinations_equal_upstreams_mask(values, document, num_gists, chunk):
    rules = LayoutRules(
        num_gists=num_gists, prompt_chunk_tokens=chunk, **dict(zip(FLAGS, values, strict=True))
    )
    np.testing.assert_array_equal(write(rules, document).visible(), upstream_mask(rules, document))


@given(document=documents)
def test_full_cot_is_causal(document):
    layout = write(LayoutRules(method="full"), document)
    assert layout.visible().sum() == len(layout) * (len(layout) + 1) // 2
    assert layout.peak_tokens() == len(layout)


@given(document=documents, retain=st.integers(0, 3))
def test_retained_thoughts_expire_that_many_thoughts_later(document, retain):
    layout = write(LayoutRules(num_gists=2, retain_thoughts=retain), document)
    visible = layout.visible()
    for i in range(len(document.thoughts)):
        tokens = np.flatnonzero((layout.thought == i) & layout.is_output)
        continues = np.flatnonzero((layout.role == Role.CONTINUE) & (layout.thought == i + retain))
        dies_at = continues[0] if len(continues) else len(layout)
        assert visible[tokens[-1] : dies_at, tokens].any(axis=0).all()
        assert not visible[dies_at:, tokens].any()


def test_anllm_anchor_sees_only_its_thought_and_stays():
    layout = write(LayoutRules(method="anllm", num_gists=1), Document(3, [2, 2], 1))
    roles = "".join("PTxGCA"[r] for r in layout.role)
    assert roles == "PPPTTGTTGA"
    visible = layout.visible()
    assert visible[5].nonzero()[0].tolist() == [3, 4, 5]
    assert visible[6].nonzero()[0].tolist() == [0, 1, 2, 5, 6]
    assert visible[9].nonzero()[0].tolist() == [0, 1, 2, 5, 8, 9]


@pytest.mark.parametrize(
    ("length", "per_gist", "cap", "expected"),
    [(1, 4, 9, 1), (8, 4, 9, 2), (9, 4, 9, 3), (400, 4, 9, 9)],
)
def test_gists_in_proportion_to_length_with_a_cap(length, per_gist, cap, expected):
    rules = LayoutRules(num_gists=cap, tokens_per_gist=per_gist)
    assert rules.gists_for(length) == expected
    layout = write(rules, Document(2, [length - 1] if length > 1 else [0], 1))
    assert (layout.role == Role.GIST).sum() == expected


def test_position_modes():
    document = Document(prompt=2, thoughts=[3, 2], answer=2)
    absolute = write(LayoutRules(num_gists=2), document)
    assert absolute.position.tolist() == list(range(len(absolute)))
    compact = write(LayoutRules(num_gists=2, position_mode="compact"), document).position.tolist()
    #               prompt  thought+trigger  gists   cont  thought+trigger  gists  cont  answer
    assert compact == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9]
    spread = write(LayoutRules(num_gists=2, position_mode="spread"), document).position.tolist()
    assert spread == [0, 1, 2, 3, 4, 5, 3, 5, 6, 7, 8, 9, 8, 9, 10, 11, 12]


@given(document=documents, num_gists=st.integers(1, 4))
def test_peak_and_dependency_equal_the_papers_formulas(document, num_gists):
    layout = write(LayoutRules(num_gists=num_gists), document)
    prompt, kept = document.prompt, num_gists + 1
    peaks = [prompt + length + 1 + kept + i * kept for i, length in enumerate(document.thoughts)]
    peaks.append(prompt + len(document.thoughts) * kept + document.answer)
    assert layout.peak_tokens() == max(peaks)
    dep = 0
    for i, length in enumerate([n + 1 for n in document.thoughts] + [document.answer]):
        dep += sum(prompt + i * kept + t for t in range(1, length + 1))
    assert layout.dep_paper() == dep
    inserted = sum(
        sum(prompt + i * kept + length + 1 + g for g in range(1, num_gists + 1))
        + prompt
        + i * kept
        + kept
        for i, length in enumerate(document.thoughts)
    )
    assert layout.dep_full() == dep + inserted


def test_full_cot_dependency_is_upstreams():
    prompt, output = 7, 11
    layout = write(LayoutRules(method="full"), Document(prompt, [output], 0))
    assert layout.dep_paper() == layout.dep_full() == prompt * output + output * (output + 1) // 2


@given(document=documents, see=st.booleans(), bi=st.booleans())
def test_dependency_without_the_dense_mask_equals_its_row_sums(document, see, bi):
    layout = write(LayoutRules(num_gists=2, see_current=see, bi_directional=bi), document)
    assert layout.dep_paper() == layout.visible()[layout.is_output].sum()
    assert layout.dep_full() == layout.visible()[layout.output_start :].sum()


def test_blank_gists_leave_nothing_but_the_continue_token():
    layout = write(LayoutRules(num_gists=2, blank_gists=True), Document(2, [3, 2], 1))
    final = set(layout.visible()[-1].nonzero()[0])
    roles = {Role(layout.role[k]) for k in final}
    assert roles == {Role.PROMPT, Role.CONTINUE, Role.ANSWER}


def test_nothing_expires_without_compression():
    assert (write(LayoutRules(method="full"), Document(3, [4], 2)).expires == NEVER).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "magic"}, "method"),
        ({"num_gists": 0}, "num_gists"),
        ({"retain_thoughts": -1}, "retain_thoughts"),
        ({"method": "anllm", "num_gists": 3}, "num_gists"),
        ({"keep_continue": False, "retain_thoughts": 1}, "retain_thoughts"),
        ({"position_mode": "rolling"}, "position_mode"),
        ({"tokens_per_gist": 0.0}, "tokens_per_gist"),
        ({"prompt_chunk_tokens": 0}, "prompt_chunk_tokens"),
    ],
)
def test_wrong_rules_name_the_field(settings, named):
    with pytest.raises(ConfigError, match=f"compression.{named} is"):
        LayoutRules(**settings)
