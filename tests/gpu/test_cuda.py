"""On a GPU: compiled FlexAttention equals SDPA both ways, the engine equals the dense oracle.

Run by hand: `pytest tests/gpu -m gpu`; its output is committed under results/.
"""

from __future__ import annotations

import random

import pytest
import torch

from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.layout import LayoutRules, Role
from lightthinker.layout_builder import LayoutBuilder
from lightthinker.masks import LifetimeBatch, lifetimes
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.testing.oracles import ScriptedSampler, dense_logits
from lightthinker.tokens import add_tokens

pytestmark = pytest.mark.gpu

RULES = {
    "thought": LayoutRules(num_gists=3),
    "bi_directional": LayoutRules(num_gists=3, bi_directional=True),
    "see_current, diagonal": LayoutRules(num_gists=3, see_current=True, diagonal=True),
    "anllm": LayoutRules(method="anllm", num_gists=1),
}


def long_layout(rules):
    rng = random.Random(0)
    builder = LayoutBuilder(rules)
    builder.prompt(20)
    while len(builder) < 480:
        builder.sampled(rng.randint(3, 30))
        if rules.has_trigger:
            builder.sampled(role=Role.TRIGGER)
        builder.compress()
    builder.sampled(5, role=Role.ANSWER)
    return builder.build()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("heads", [4, 6])
def test_compiled_flex_equals_sdpa_forward_and_backward(name, heads):
    layout = long_layout(RULES[name])
    ids = torch.randint(3, 250, (1, len(layout)), device="cuda")
    positions = torch.from_numpy(layout.position).long()[None].cuda()
    results = []
    for implementation in ("lt_sdpa", "lt_flex"):
        model = tiny_model("qwen2", num_attention_heads=heads, hidden_size=heads * 16).cuda()
        model.set_attn_implementation(implementation)
        with lifetimes(LifetimeBatch.from_layouts([layout], "cuda")):
            out = model(
                ids, position_ids=positions, attention_mask=torch.ones_like(ids), labels=ids
            )
        out.loss.backward()
        results.append((out.logits.detach(), model.model.embed_tokens.weight.grad))
    (logits_a, grad_a), (logits_b, grad_b) = results
    assert (logits_a - logits_b).abs().max() < 1e-4
    assert (grad_a - grad_b).norm() / grad_a.norm() < 1e-4


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mistral+window", "llama"])
def test_engine_on_cuda_equals_the_dense_oracle(family):
    model, oracle = tiny_model(family), tiny_model(family, attn_implementation="eager")
    tokenizer = byte_tokenizer()
    config = add_tokens(model, tokenizer, CompressionConfig(num_gists=3))
    add_tokens(oracle, byte_tokenizer(), CompressionConfig(num_gists=3))
    rng = random.Random(1)
    scripts = {
        str(i): [
            config.trigger_id if rng.random() < 0.1 else rng.randint(3, 250) for _ in range(60)
        ]
        for i in range(6)
    }
    sampler = ScriptedSampler(scripts)
    engine = LLMEngine(
        model.cuda(),
        tokenizer,
        config,
        config=EngineConfig(max_num_seqs=4, num_kv_tokens=2048, poison_freed_pages=True),
        sampler=sampler,
    )
    for name in scripts:
        prompt = [rng.randint(3, 250) for _ in range(rng.randint(3, 50))]
        engine.add_request(
            name, prompt, SamplingParams(max_tokens=60, ignore_eos=True), stream=False
        )
    while engine.has_unfinished_requests():
        engine.step()
    worst = 0.0
    for name, sequence in sampler.sequences.items():
        expected = dense_logits(oracle, sequence.token_ids, sequence.builder.build())
        for index, logits in sampler.logits[name]:
            worst = max(worst, float((expected[index] - logits.cpu()).abs().max()))
    assert worst < 1e-4
