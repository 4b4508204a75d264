"""Registered masks: dense = sdpa = flex, packed = alone, and the traps that must not come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from lightthinker import masks
from lightthinker.data.packing import collate, pack, pack_row
from lightthinker.encode import IGNORE_INDEX, Example
from lightthinker.layout import LayoutRules, Role
from lightthinker.layout_builder import LayoutBuilder
from lightthinker.masks import LifetimeBatch, lifetimes
from lightthinker.testing.models import tiny_model
from lightthinker.testing.oracles import dense_logits

RULES = st.sampled_from(
    [
        LayoutRules(num_gists=2),
        LayoutRules(num_gists=3, bi_directional=True, see_current=True),
        LayoutRules(num_gists=2, diagonal=True, position_mode="compact"),
        LayoutRules(num_gists=2, retain_thoughts=1, position_mode="spread"),
        LayoutRules(method="anllm", num_gists=1),
        LayoutRules(method="full"),
    ]
)


def example_of(rules, lengths, rng):
    builder = LayoutBuilder(rules)
    builder.prompt(lengths[0])
    for length in lengths[1:]:
        builder.sampled(length)
        if rules.has_trigger:
            builder.sampled(role=Role.TRIGGER)
        if rules.method != "full":
            builder.compress()
    builder.sampled(2, role=Role.ANSWER)
    layout = builder.build()
    ids = rng.integers(3, 250, len(layout)).astype(np.int32)
    return Example(ids, np.where(layout.is_output, ids, IGNORE_INDEX).astype(np.int32), layout)


shapes = st.lists(st.lists(st.integers(1, 8), min_size=2, max_size=4), min_size=1, max_size=3)


@torch.no_grad()
def packed_logits(model, row):
    batch = collate([row])
    vectors = {k: batch[k] for k in ("expires", "first", "last", "skip") if k in batch}
    with lifetimes(LifetimeBatch(**vectors)):
        out = model(
            batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
        )
    return out.logits[0]


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mistral+window", "qwen3", "llama"])
@pytest.mark.parametrize("implementation", ["lt_sdpa", "lt_flex"])
@settings(max_examples=8)
@given(rules=RULES, shapes=shapes, seed=st.integers(0, 100))
def test_packed_documents_equal_each_document_alone(family, implementation, rules, shapes, seed):
    rng = np.random.default_rng(seed)
    examples = [example_of(rules, shape, rng) for shape in shapes]
    variants = not all(example.layout.is_plain for example in examples)
    row = pack_row(examples, 128, pad_id=0, variants=variants)
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    logits = packed_logits(model, row)
    assert logits.isfinite().all()
    oracle = tiny_model(family, attn_implementation="eager")
    begin = 0
    for example in examples:
        expected = dense_logits(oracle, example.input_ids, example.layout)
        assert (logits[begin : begin + len(example)] - expected).abs().max() < 1e-5
        begin += len(example)


def test_sdpa_and_flex_losses_agree():
    rng = np.random.default_rng(0)
    row = pack_row(
        [example_of(LayoutRules(num_gists=2), [5, 6, 7], rng)], 64, pad_id=0, variants=False
    )
    losses = []
    for implementation in ("lt_sdpa", "lt_flex"):
        model = tiny_model("qwen2")
        model.set_attn_implementation(implementation)
        logits = packed_logits(model, row)
        labels = torch.from_numpy(row["labels"]).long()
        losses.append(
            torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE_INDEX)
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def dense_flex(query, key, value, *, score_mod, block_mask, scale, enable_gqa):
    """FlexAttention with a backward pass on a CPU: the dense mask of its mask function."""
    row, place = torch.arange(query.shape[0]), torch.arange(key.shape[2])
    mask = block_mask.mask_mod(row[:, None, None, None], 0, place[:, None], place)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_keys_sorted_in_compiled_layers_give_the_gradients_of_dense_attention(
    checkpointing, monkeypatch
):
    """One program for all batches, whatever their order of keys."""
    monkeypatch.setattr(masks, "flex_attention", dense_flex)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    losses, gradients = [], []
    for implementation in ("lt_sdpa", "lt_flex"):
        model = tiny_model("qwen2").train()
        model.set_attn_implementation(implementation)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if implementation == "lt_flex":
            for layer in model.model.layers:
                layer.compile(dynamic=False, fullgraph=True, backend=counter)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            lengths = rng.integers(3, 30, (2, 6)).tolist()
            examples = [example_of(LayoutRules(num_gists=2), shape, rng) for shape in lengths]
            batch = collate([pack_row(examples, 384, pad_id=0, variants=False)])
            with lifetimes(LifetimeBatch(batch["expires"])):
                out = model(
                    batch["input_ids"],
                    position_ids=batch["position_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=batch["labels"],
                    use_cache=False,
                )
            out.loss.backward()
            losses.append(out.loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(losses[3:], losses[:3], rtol=1e-5, atol=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert counter.frame_count == 1


def test_without_lifetimes_they_are_plain_causal_masks():
    ids = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tiny_model("qwen2", attn_implementation="eager")(ids, use_cache=False).logits
        for implementation in ("lt_sdpa", "lt_flex"):
            model = tiny_model("qwen2")
            model.set_attn_implementation(implementation)
            assert (model(ids, use_cache=False).logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize("implementation", ["lt_sdpa", "lt_flex"])
def test_generation_with_a_kv_cache_is_transformers_own(implementation):
    prompt = torch.randint(3, 250, (1, 9), generator=torch.Generator().manual_seed(0))
    plain, ours = tiny_model("qwen2"), tiny_model("qwen2")
    ours.set_attn_implementation(implementation)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert ours.generate(prompt, **options).tolist() == plain.generate(prompt, **options).tolist()


def test_flex_refuses_attention_dropout():
    model = tiny_model("qwen2", attention_dropout=0.1).train()
    model.set_attn_implementation("lt_flex")
    with pytest.raises(ValueError, match="attention_dropout"):
        model(torch.ones(1, 8, dtype=torch.long))


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    num_open=st.integers(1, 8),
)
def test_packing_loses_and_cuts_nothing(lengths, num_open):
    rng = np.random.default_rng(0)
    examples = [example_of(LayoutRules(method="full"), [1, n], rng) for n in lengths]
    rows = list(pack(examples, 48, num_open=num_open))
    assert sorted(map(id, (e for row in rows for e in row))) == sorted(map(id, examples))
    assert all(sum(len(e) for e in row) <= 48 for row in rows)


def test_labels_never_cross_documents():
    rng = np.random.default_rng(0)
    example = example_of(LayoutRules(method="full"), [1, 3], rng)
    all_targets = Example(example.input_ids, example.input_ids, example.layout)
    row = pack_row([all_targets, all_targets], 32, pad_id=0, variants=False)
    assert row["labels"][0] == row["labels"][len(example)] == IGNORE_INDEX
    assert (row["labels"][2 * len(example) :] == IGNORE_INDEX).all()
