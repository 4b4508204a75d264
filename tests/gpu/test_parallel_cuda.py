"""Two GPUs give what one gives: a slice of every layer each, or whole replicas."""

from __future__ import annotations

import pytest
import torch

from lightthinker import LLM, SamplingParams
from lightthinker.bundled import bundled_model_path
from lightthinker.tasks import generate, verify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

SETTINGS = {"dtype": "float32", "num_kv_tokens": 32_768, "max_num_seqs": 16}
PARAMS = SamplingParams(max_tokens=600)


def problems():
    families = ("programs", "multiplication")
    return [generate(f, seed=seed, difficulty="demo") for f in families for seed in range(5)]


def answers(**settings):
    llm = LLM(bundled_model_path(), **SETTINGS, **settings)
    try:
        conversations = [[{"role": "user", "content": p.question}] for p in problems()]
        outputs = llm.chat(conversations, PARAMS)
        stats = llm.engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_pages_used) == (0, 0, 0)
        assert stats.num_compactions > 0
        return [o.outputs[0].token_ids for o in outputs], [o.outputs[0].text for o in outputs]
    finally:
        llm.shutdown()


@pytest.fixture(scope="module")
def one_gpu():
    return answers(enforce_eager=True)


@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "graphs"])
@pytest.mark.parametrize("kind", ["tensor", "data"])
def test_two_gpus_answer_as_one(one_gpu, kind, enforce_eager):
    token_ids, texts = answers(enforce_eager=enforce_eager, **{f"{kind}_parallel_size": 2})
    same = sum(a == b for a, b in zip(token_ids, one_gpu[0], strict=True))
    # Sums over two GPUs are rounded otherwise, which may flip a token of a close call.
    assert same >= len(token_ids) - 1
    right = [verify(p, text).correct for p, text in zip(problems(), texts, strict=True)]
    assert sum(right) >= 0.8 * len(right)
