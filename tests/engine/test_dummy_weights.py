"""`load_format="dummy"`: a config and a tokenizer are enough to measure speed."""

from __future__ import annotations

import pytest

from lightthinker import LLM, SamplingParams
from lightthinker.errors import CheckpointError, RequestError
from lightthinker.testing.models import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tiny_checkpoint(tmp_path_factory.mktemp("dummy"))
    for file in made.glob("*.safetensors"):
        file.unlink()
    return made


def test_it_generates_the_same_every_time(folder):
    params = SamplingParams(max_tokens=30, ignore_eos=True, max_thought_tokens=10)
    got = []
    for _ in range(2):
        llm = LLM(folder, device="cpu", num_kv_tokens=1024, load_format="dummy")
        got.append(llm.generate("What is 2 + 2?", params)[0].outputs[0])
    assert got[0].token_ids == got[1].token_ids
    assert len(got[0].thoughts) >= 2
    assert got[0].stats.tokens_freed > 0


def test_weights_are_asked_for_otherwise(folder):
    with pytest.raises(CheckpointError, match="safetensors"):
        LLM(folder, device="cpu")


def test_another_format_is_refused(folder):
    with pytest.raises(RequestError, match="load_format is 'gguf'"):
        LLM(folder, device="cpu", load_format="gguf")
