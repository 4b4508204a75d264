"""Checkpoints that transformers quantises: weight-only int8 of torchao (tried with 0.18)."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from lightthinker import LLM, SamplingParams
from lightthinker.errors import CheckpointError
from lightthinker.testing.models import tiny_checkpoint

PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    quantization = pytest.importorskip("torchao.quantization")
    plain = tiny_checkpoint(tmp_path_factory.mktemp("plain"))
    quantised = tmp_path_factory.mktemp("int8")
    settings = TorchAoConfig(quant_type=quantization.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings)
    model.save_pretrained(quantised)
    AutoTokenizer.from_pretrained(plain).save_pretrained(quantised)
    return quantised


def test_the_engine_runs_it_as_transformers_does(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=20, min_new_tokens=20, do_sample=False
    )
    llm = LLM(folder)
    weight = llm.engine.runner.model.model.layers[0].mlp.gate_proj.weight
    assert type(weight).__name__ == "Int8Tensor"
    params = SamplingParams(max_tokens=20, ignore_eos=True, compression=False)
    output = llm.generate(PROMPT, params)[0].outputs[0]
    assert output.token_ids == expected[0, len(PROMPT) :].tolist()
    params = SamplingParams(max_tokens=40, ignore_eos=True, max_thought_tokens=6)
    assert llm.generate(PROMPT, params)[0].outputs[0].stats.tokens_freed > 10


def test_without_the_library_the_message_names_it(tmp_path, monkeypatch):
    file = tiny_checkpoint(tmp_path) / "config.json"
    settings = {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}
    quantised = {"quant_method": "torchao", "quant_type": settings}
    config = json.loads(file.read_text()) | {"quantization_config": quantised}
    file.write_text(json.dumps(config))
    for name in [n for n in sys.modules if n.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(CheckpointError, match="torchao"):
        LLM(tmp_path)
