"""What the KV pool gets of a GPU, told without one; what is said where the rest is too little."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightthinker.engine import memory
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.engine import LLMEngine
from lightthinker.engine.memory import num_kv_tokens_that_fit
from lightthinker.errors import RequestError
from lightthinker.testing.models import byte_tokenizer, tiny_model

GIB = 2**30


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 80 GiB: 20 in use, 3 of them cached by torch, and a largest step of 2."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 18 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15 * GIB)
    monkeypatch.setattr(memory, "_largest_step", lambda runner, config: 2 * GIB)
    return SimpleNamespace(device=torch.device("cuda", 0))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
def test_the_pool_gets_what_the_share_leaves_beside_weights_and_the_largest_step(gpu, share):
    per_token = 56 * 1024
    config = EngineConfig(gpu_memory_utilization=share)
    num_tokens = num_kv_tokens_that_fit(gpu, config, per_token)
    left = share * 80 * GIB - (17 + 2) * GIB
    assert num_tokens * per_token <= left < (num_tokens + 2) * per_token


def test_a_share_that_leaves_nothing_is_refused_with_what_takes_it(gpu):
    with pytest.raises(RequestError, match=r"80\.0 GiB.*17\.0 GiB are in use.*takes 2\.0 GiB"):
        num_kv_tokens_that_fit(gpu, EngineConfig(gpu_memory_utilization=0.2), 56 * 1024)


class Graphs:
    """Stands for graphs whose capture fails."""

    def __init__(self, *errors):
        self.errors = errors

    def warm_up(self, say):
        first, *later = self.errors
        try:
            raise first
        finally:
            if later:  # As the end of a capture that an error has left open.
                raise later[0]


@pytest.mark.parametrize(
    ("sizes", "knob"),
    [({}, "gpu_memory_utilization=0.9"), ({"num_kv_tokens": 640}, "num_kv_tokens=640")],
)
@pytest.mark.parametrize(
    ("error", "later"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), []),
        (torch.OutOfMemoryError("CUDA out of memory."), [RuntimeError("the capture is invalid")]),
        (RuntimeError("Triton Error [CUDA]: out of memory"), []),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), []),
    ],
)
def test_a_start_without_memory_for_graphs_says_what_to_lower(sizes, knob, error, later):
    config = EngineConfig(**sizes)
    engine = LLMEngine(tiny_model("llama"), byte_tokenizer(), None, config=config)
    engine.graphs = Graphs(error, *later)
    tokens = f"{config.num_kv_tokens or 65_536:,} tokens"
    with pytest.raises(RequestError, match=f"CUDA graphs.*{tokens}.*{knob} or max_num_seqs=256"):
        engine.warm_up()


def test_other_failures_of_a_start_are_told_as_they_are():
    engine = LLMEngine(tiny_model("llama"), byte_tokenizer(), None)
    engine.graphs = Graphs(RuntimeError("no kernel image"))
    with pytest.raises(RuntimeError, match="no kernel image"):
        engine.warm_up()
