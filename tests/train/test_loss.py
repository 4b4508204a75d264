"""The chunked loss and its gradients are the model's own; distillation is what it says."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from lightthinker.compression import CompressionConfig
from lightthinker.data.packing import collate, pack_row
from lightthinker.encode import IGNORE_INDEX, Encoder
from lightthinker.errors import ConfigError
from lightthinker.masks import LifetimeBatch, lifetimes
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens
from lightthinker.train.loss import install, resolve_chunk

FAMILIES = {
    "qwen2": {},
    "llama": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gpt_neox": {},
    "phi3": {},
}


def batch_and_model(family="qwen2", *, teacher=False, compress=True, **overrides):
    model, tokenizer = tiny_model(family, **overrides), byte_tokenizer()
    config = add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
    model.set_attn_implementation("lt_sdpa")
    encoder = Encoder(tokenizer, config)
    question = [{"role": "user", "content": "2+2?"}]
    examples = [
        encoder.encode(question, ["two and two. ", "is four."], "4", compress=compress),
        encoder.encode(question, ["four"], "5", compress=compress),
    ]
    row = pack_row(examples, 256, pad_id=0, variants=False, teacher=teacher)
    return collate([row, row]), model.train(), config


def loss_of(model, batch, **kwargs):
    with lifetimes(LifetimeBatch(batch["expires"])):
        return model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            use_cache=False,
            **kwargs,
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("items", [None, 1000])
def test_loss_and_gradients_are_the_models_own(family, items):
    results = []
    for chunk_tokens in (None, 7):
        batch, model, _ = batch_and_model(family, **FAMILIES[family])
        if chunk_tokens:
            install(model, chunk_tokens=chunk_tokens)
        loss = loss_of(model, batch, num_items_in_batch=items).loss
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (own, own_gradients), (ours, our_gradients) = results
    torch.testing.assert_close(ours, own, rtol=1e-6, atol=1e-6)
    for name, gradient in own_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("family", "distillation"), [*((f, 0.0) for f in FAMILIES), ("gemma2", 0.5)]
)
def test_compiled_it_is_one_program_for_chunks_of_several_tokens(family, distillation, monkeypatch):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    results = []
    for compiled in (False, True):
        teaches = distillation > 0
        batch, model, _ = batch_and_model(family, teacher=teaches, **FAMILIES[family])
        install(model, chunk_tokens=7, distillation=distillation, compiled=compiled)
        for row in (1, 0):  # The last chunk has another size each time.
            part = {name: tensor[: row + 1, :] for name, tensor in batch.items()}
            part["labels"][:, : 10 + row] = IGNORE_INDEX
            names = ("input_ids", "position_ids", "expires", "query")
            teacher = {name: part[f"teacher_{name}"] for name in names} if teaches else None
            loss = loss_of(model, part, teacher=teacher).loss
            loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (plain, plain_gradients), (ours, our_gradients) = results
    assert counter.frame_count == 1
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_logits_exist_only_for_a_chunk_of_labelled_tokens():
    batch, model, _ = batch_and_model()
    seen = []
    head = model.get_output_embeddings()
    project = head.forward
    head.forward = lambda states: seen.append(states.shape) or project(states)
    install(model, chunk_tokens=16)
    seen.clear()
    loss_of(model, batch).loss.backward()
    labelled = int((batch["labels"] != IGNORE_INDEX).sum())
    assert max(shape[0] for shape in seen) == 16
    assert sum(shape[0] for shape in seen) == 2 * labelled  # forward, and again in backward


def test_a_batch_without_labels_still_has_a_gradient():
    batch, model, _ = batch_and_model()
    install(model, chunk_tokens=16)
    batch["labels"].fill_(IGNORE_INDEX)
    loss = loss_of(model, batch, num_items_in_batch=5).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_without_labels_the_model_is_as_before():
    batch, model, _ = batch_and_model()
    before = model.eval()(batch["input_ids"]).logits
    install(model, chunk_tokens=16)
    torch.testing.assert_close(model(batch["input_ids"]).logits, before, rtol=0, atol=0)


def test_distillation_is_the_divergence_from_the_full_cot_logits():
    batch, model, config = batch_and_model(teacher=True)
    own = batch_and_model()[1]
    install(model, chunk_tokens=10, distillation=0.5)
    teacher = {
        "input_ids": batch["teacher_input_ids"],
        "position_ids": batch["teacher_position_ids"],
        "expires": batch["teacher_expires"],
        "query": batch["teacher_query"],
    }
    out = loss_of(model, batch, teacher=teacher)
    plain = loss_of(own, batch)
    with torch.no_grad(), lifetimes(LifetimeBatch(batch["teacher_expires"])):
        expected = own(
            input_ids=batch["teacher_input_ids"],
            position_ids=batch["teacher_position_ids"],
            attention_mask=batch["attention_mask"],
        ).logits
    inserted = {*config.gist_ids, config.continue_id}
    divergences = []
    for row in range(2):
        # The i-th visible token of the student is the i-th token of the teacher.
        ids, ids_t = batch["input_ids"][row].tolist(), batch["teacher_input_ids"][row].tolist()
        visible = [i for i, token in enumerate(ids) if token not in inserted]
        for place, index in enumerate(visible):
            if batch["labels"][row, index] == IGNORE_INDEX:
                continue
            assert ids[index] == ids_t[place]
            p = expected[row, place - 1].log_softmax(-1)
            q = plain.logits[row, index - 1].log_softmax(-1)
            divergences.append((p.exp() * (p - q)).sum())
    divergence = torch.stack(divergences).mean()
    torch.testing.assert_close(out.distillation, divergence.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.loss, plain.loss + 0.5 * divergence, rtol=1e-5, atol=1e-6)
    out.loss.backward()


def test_full_cot_examples_have_nothing_to_distil():
    batch, model, _ = batch_and_model(teacher=True, compress=False)
    install(model, chunk_tokens=64, distillation=1.0)
    teacher = {
        "input_ids": batch["teacher_input_ids"],
        "position_ids": batch["teacher_position_ids"],
        "expires": batch["teacher_expires"],
        "query": batch["teacher_query"],
    }
    assert float(loss_of(model, batch, teacher=teacher).distillation) < 1e-6


def test_auto_chunks_only_where_logits_are_large():
    small = {"num_tokens": 65_536, "vocab_size": 1200, "distillation": 0.0}
    assert resolve_chunk("auto", **small) is None
    assert resolve_chunk("auto", **{**small, "vocab_size": 150_000}) == 4096
    assert resolve_chunk("auto", **{**small, "distillation": 0.1}) == 4096
    assert resolve_chunk(100, **small) == 100


def test_a_head_that_is_more_than_known_is_refused():
    _, model, _ = batch_and_model()
    forward = model.forward

    def doubled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out

    model.forward = doubled
    with pytest.raises(ConfigError, match="chunk_tokens to null"):
        install(model, chunk_tokens=16)
