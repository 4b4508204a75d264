"""`SamplingParams.retain_thoughts`: what an engine made for that number does, beside others."""

from __future__ import annotations

import dataclasses

import pytest

from lightthinker import LLM, SamplingParams
from lightthinker.compression import CompressionConfig
from lightthinker.errors import ConfigError, RequestError
from lightthinker.testing.models import tiny_checkpoint

PARAMS = SamplingParams(max_tokens=70, ignore_eos=True, max_thought_tokens=8)
PROMPTS = ["one", "two and two", "three"]


def test_requests_of_one_batch_retain_as_engines_of_their_own_would(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    shared = LLM(folder, device="cpu", num_kv_tokens=4096)
    numbers = [0, 1, 3]
    params = [dataclasses.replace(PARAMS, retain_thoughts=n) for n in numbers]
    mixed = [o.outputs[0] for o in shared.generate(PROMPTS, params)]
    for prompt, number, got in zip(PROMPTS, numbers, mixed, strict=True):
        settings = dataclasses.replace(shared.compression, retain_thoughts=number)
        alone = LLM(folder, device="cpu", num_kv_tokens=4096, compression=settings)
        assert alone.generate(prompt, PARAMS)[0].outputs[0] == got
    assert mixed[0].stats.tokens_freed > mixed[1].stats.tokens_freed > mixed[2].stats.tokens_freed


def test_it_is_refused_where_it_would_do_nothing(tmp_path):
    llm = LLM(tiny_checkpoint(tmp_path / "a"), device="cpu", num_kv_tokens=1024)
    off = dataclasses.replace(PARAMS, retain_thoughts=1, compression=False)
    with pytest.raises(RequestError, match="requests that compress"):
        llm.generate("x", off)
    with pytest.raises(RequestError, match="retain_thoughts is -1"):
        SamplingParams(retain_thoughts=-1)
    without = CompressionConfig(num_gists=2, keep_continue=False)
    folder = tiny_checkpoint(tmp_path / "b", compression=without)
    llm = LLM(folder, device="cpu", num_kv_tokens=1024)
    with pytest.raises(ConfigError, match="retain_thoughts"):
        llm.generate("x", SamplingParams(retain_thoughts=1))
