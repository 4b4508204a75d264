"""Encoding.

The visible stream, the labels, and equality with what the engine writes for the same tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.compression import CompressionConfig
from lightthinker.encode import IGNORE_INDEX, Encoder
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.sequence import Sequence
from lightthinker.errors import CheckpointError, DataError
from lightthinker.layout import Role
from lightthinker.testing.models import byte_tokenizer
from lightthinker.tokens import resolve_tokens

MESSAGES = [{"role": "user", "content": "1+1?"}]


def make_encoder(**settings):
    config = CompressionConfig(**{"num_gists": 2, **settings})
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(config.special_tokens), special_tokens=True)
    return Encoder(tokenizer, resolve_tokens(tokenizer, config))


def targets(encoder, example):
    return encoder.tokenizer.decode([i for i in example.labels.tolist() if i != IGNORE_INDEX])


def test_thought_level_stream_and_labels():
    encoder = make_encoder()
    example = encoder.encode(MESSAGES, ["Add.\n\n", "Check. \n"], "2")
    prompt = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    gists = "<|gist_1|><|gist_2|><|continue|>"
    answer = "</think>\n\n2<|im_end|>"
    assert encoder.tokenizer.decode(example.input_ids.tolist()) == (
        f"{prompt}Add.\n<|trigger|>{gists}Check.\n<|trigger|>{gists}{answer}"
    )
    assert targets(encoder, example) == f"Add.\n<|trigger|>Check.\n<|trigger|>{answer}"


def test_full_cot_in_a_mixture_keeps_triggers_and_nothing_expires():
    encoder = make_encoder()
    example = encoder.encode(MESSAGES, ["Add.\n\n", "Check."], "2", compress=False)
    text = encoder.tokenizer.decode(example.input_ids.tolist())
    assert text.count("<|trigger|>") == 2
    assert "<|gist_1|>" not in text
    assert "<|continue|>" not in text
    assert example.layout.peak_tokens() == len(example)
    assert (
        targets(encoder, example) == "Add.\n<|trigger|>Check.\n<|trigger|></think>\n\n2<|im_end|>"
    )


def test_full_method_has_no_special_tokens():
    encoder = make_encoder(method="full")
    example = encoder.encode(MESSAGES, ["Add.\n\n", "Check."], "2")
    assert "Add.\n\nCheck.\n</think>\n\n2" in encoder.tokenizer.decode(example.input_ids.tolist())


def test_compress_answer_treats_the_answer_as_a_thought():
    encoder = make_encoder(compress_answer=True)
    example = encoder.encode(MESSAGES, ["Add."], "2")
    text = encoder.tokenizer.decode(example.input_ids.tolist())
    assert text.endswith("</think>\n\n2\n<|trigger|><|gist_1|><|gist_2|><|continue|><|im_end|>")


def test_anllm_anchor_is_a_target():
    encoder = make_encoder(method="anllm", num_gists=1)
    example = encoder.encode(MESSAGES, ["Add."], "2")
    assert targets(encoder, example) == "Add.\n<|gist_1|></think>\n\n2<|im_end|>"


def test_token_level_compresses_every_full_segment_and_no_tail():
    encoder = make_encoder(method="token", segment_tokens=6)
    example = encoder.encode(MESSAGES, ["abcdefghijklmnop"], "2")
    roles = "".join("PTxGCA"[r] for r in example.layout.role if r != Role.PROMPT)
    assert roles.startswith("TTTTTTGGC" * 4 + "TA")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "token", "segment_tokens": 4},
        {"method": "anllm", "num_gists": 1},
        {"prompt_chunk_tokens": 7},
        {"retain_thoughts": 1, "position_mode": "compact"},
        {"tokens_per_gist": 5.0, "position_mode": "spread"},
    ],
)
@given(thoughts=st.lists(st.text("ab\n ", min_size=1, max_size=12), min_size=1, max_size=4))
def test_the_engine_writes_the_same_tokens_and_layout(settings, thoughts):
    encoder = make_encoder(**settings)
    if not any(t.strip() for t in thoughts):
        return
    example = encoder.encode(MESSAGES, thoughts, "2")
    is_sampled = example.layout.is_output
    if settings.get("method") == "anllm":
        is_sampled = is_sampled | (example.layout.role == Role.GIST)
    marker = encoder.config.reasoning_end.strip()
    sequence = Sequence(
        "r", 0, encoder.prompt_ids(MESSAGES), SamplingParams(), encoder.config,
        lambda ids: marker in encoder.tokenizer.decode(ids), encoder.config.trigger_id,
    )  # fmt: skip
    for token in example.input_ids[is_sampled].tolist():
        if token != sequence.anchor_id:
            sequence.extend()
        if sequence.settle(token)[1]:
            sequence.insert_gists()
    layout = sequence.builder.build()
    assert sequence.token_ids == example.input_ids.tolist()
    for name in ("position", "expires", "first", "last", "skip"):
        np.testing.assert_array_equal(getattr(layout, name), getattr(example.layout, name))


def test_reasoning_begin_is_not_repeated_when_the_template_supplies_it():
    encoder = make_encoder()
    encoder.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    assert encoder.prompt_text(MESSAGES).count("<think>") == 1


def test_bad_input_is_named():
    encoder = make_encoder()
    with pytest.raises(DataError, match="no thoughts"):
        encoder.encode(MESSAGES, [" \n"], "2")
    encoder.tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        encoder.encode(MESSAGES, ["a"], "2")
    with pytest.raises(CheckpointError, match="not resolved"):
        Encoder(byte_tokenizer(), CompressionConfig())
    with pytest.raises(CheckpointError, match="num_gists"):
        resolve_tokens(byte_tokenizer(), CompressionConfig())
