"""The whole engine on the Triton kernels, in the interpreter: the torch backend's logits.

Compression on, freed slots full of NaN, prefill tiles, gists and continue rows of two sequences.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightthinker import policies
from lightthinker.attention.selection import resolve_backend
from lightthinker.attention.torch_backend import TorchBackend
from lightthinker.attention.triton_backend import TritonBackend
from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sampler import Sampler
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
CPU = torch.device("cpu")


class RecordingSampler(Sampler):
    """Greedy, with a trigger at fixed places; keeps the logits it saw."""

    def __init__(self, config: CompressionConfig):
        super().__init__(config.never_sampled)
        self.config = config
        self.logits: list[torch.Tensor] = []

    def sample(self, logits: torch.Tensor, sequences: list[Any]) -> list[int]:
        self.logits.append(logits.clone())
        tokens = super().sample(logits, sequences)
        assert self.config.trigger_id is not None
        return [
            self.config.trigger_id if len(s.sampled_ids) in (3, 5) else token
            for s, token in zip(sequences, tokens)
        ]


def generate(family: str, backend: str) -> tuple[list[torch.Tensor], list[list[int]], Any]:
    # Two layers: one of each kind in gemma2 (window and full), with softcap.
    model, tokenizer = tiny_model(family, num_hidden_layers=2), byte_tokenizer()
    config = add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
    sampler = RecordingSampler(config)
    engine = LLMEngine(
        model,
        tokenizer,
        config,
        config=EngineConfig(
            page_size=4, num_kv_tokens=256, poison_freed_pages=True, attention_backend=backend
        ),
        sampler=sampler,
    )
    for name, prompt in (("long", range(20, 60)), ("short", range(70, 73))):
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        engine.add_request(name, list(prompt), params, stream=False)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.scheduler.check_integrity()
    outputs.sort(key=lambda o: o.request_id)
    freed = [o.outputs[0].stats.tokens_freed for o in outputs]
    assert all(n > 0 for n in freed), "nothing was compressed"
    return sampler.logits, [o.outputs[0].token_ids for o in outputs], engine.backend


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_same_tokens_and_logits_as_the_torch_backend(family):
    expected_logits, expected_tokens, reference = generate(family, "torch")
    logits, tokens, backend = generate(family, "triton")
    assert isinstance(backend, TritonBackend)
    assert isinstance(reference, TorchBackend)
    assert tokens == expected_tokens
    for a, b in zip(logits, expected_logits, strict=True):
        assert (a - b)[~a.isinf()].abs().max() < 1e-5


@pytest.mark.parametrize(
    "policy",
    [
        policies.StreamingLLM(budget=12, sinks=2),
        policies.H2O(budget=12),
        policies.TOVA(budget=12),
        policies.SnapKV(budget=16, window=4, buffer=4),
        policies.RKV(budget=16, window=4, buffer=4),
    ],
    ids=lambda p: p.name,
)
def test_policies_evict_as_on_the_torch_backend(policy):
    expected_tokens, expected_keys, _ = evict("torch", policy)
    tokens, keys, scores = evict("triton", policy)
    assert tokens == expected_tokens
    for a, b in zip(keys, expected_keys, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, equal_nan=True)
    assert (scores is not None) == (policy.observation is not None)


def evict(backend: str, policy: Any) -> tuple[list[list[int]], list[torch.Tensor], Any]:
    """Two sequences under a policy; the pool's keys before the last one ends."""
    engine = LLMEngine(
        tiny_model("qwen2", num_hidden_layers=2),
        byte_tokenizer(),
        None,
        config=EngineConfig(
            page_size=4, num_kv_tokens=128, poison_freed_pages=True, attention_backend=backend
        ),
        sampler=Sampler(),
    )
    for name, prompt in (("long", range(20, 40)), ("short", range(70, 73))):
        params = SamplingParams(max_tokens=20, ignore_eos=True, policy=policy)
        engine.add_request(name, list(prompt), params, stream=False)
    outputs: list[Any] = []
    keys: list[torch.Tensor] = []
    while engine.has_unfinished_requests():
        keys = [layer.clone() for layer in engine.pool.keys]
        outputs += engine.step()
        engine.scheduler.check_integrity()
    outputs.sort(key=lambda o: o.request_id)
    freed = sum(o.outputs[0].stats.tokens_freed for o in outputs)
    assert engine.scheduler.num_tokens_freed == freed > 10
    return [o.outputs[0].token_ids for o in outputs], keys, engine.pool.scores


def test_auto_is_torch_on_a_cpu():
    assert resolve_backend("auto", CPU) == "torch"
    assert resolve_backend("triton", CPU) == "triton"


def test_triton_on_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        resolve_backend("triton", CPU)
    with pytest.raises(ConfigError, match="must be one of auto, torch, triton"):
        resolve_backend("flash", CPU)
