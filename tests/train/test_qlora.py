"""QLoRA on a CPU: 4-bit weights are frozen, adapters and new rows are trained, merged and saved.

Where bitsandbytes is not installed, only what can be checked without it runs.
"""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightthinker import LLM, SamplingParams
from lightthinker.compression import CompressionConfig
from lightthinker.errors import ConfigError
from lightthinker.testing.ranks import exit_codes, start_ranks, train_ddp_rank
from lightthinker.testing.training import TINY_MODEL, tiny_recipe, training_losses
from lightthinker.train.adapters import add_adapters, compression_token_ids, quantization
from lightthinker.train.checkpoint import load_model
from lightthinker.train.plan import NF4_BYTES, make_plan
from lightthinker.train.run import train
from lightthinker.train.trainer import COMPLETE_FILE

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
LORA = {"rank": 8, "alpha": 32.0, "save_adapter": True, "quantize": True}


def qlora_recipe(base, folder, **changes):
    settings = {
        "model": {"path": str(base)}, "lora": LORA, "distributed": {"strategy": "ddp"},
        "trainer__max_steps": 12,
    }  # fmt: skip
    recipe = tiny_recipe(folder, **(settings | changes))
    recipe.trainer.update(learning_rate=3e-3)
    return recipe


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    """A model that has learned a little, so that its weights matter."""
    config = TINY_MODEL["config"] | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}
    config["tie_word_embeddings"] = request.param
    folder = tmp_path_factory.mktemp("models") / "base"
    model = TINY_MODEL | {"config": config}
    return train(
        tiny_recipe(folder, model=model, compression={"method": "full"}, trainer__max_steps=20)
    )


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_layers_are_in_four_bits_as_planned(base, tmp_path, dtype):
    recipe = qlora_recipe(base, tmp_path / "run", model={"path": str(base), "dtype": dtype})
    model, _, compression = load_model(recipe, seed=0)
    sizes = {name: p.element_size() * p.numel() for name, p in model.named_parameters()}
    layers = [name for name in sizes if name.endswith("_proj.weight")]
    whole = load_file(base / "model.safetensors")
    for name in layers:
        assert sizes[name] == whole[name].numel() / 2
    others = {n: p for n, p in model.named_parameters() if n not in layers}
    assert {p.dtype for p in others.values()} == {getattr(torch, dtype)}
    adapted = add_adapters(model, recipe, compression)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "token_adapter" in name for name in trained)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    plan = make_plan(recipe)
    adapters = 4 * plan.size.num_trainable
    packed = sum(whole[name].numel() for name in layers) * NF4_BYTES
    expected = adapters + packed + sum(sizes[name] for name in others)
    assert plan.weights_gb * 1e9 == pytest.approx(expected, rel=0.1)


@needs_bitsandbytes
def test_qlora_learns_and_is_merged_into_the_weights_as_they_were(base, tmp_path):
    folder = train(qlora_recipe(base, tmp_path / "run"))
    idle = qlora_recipe(base, tmp_path / "idle")
    idle.trainer.update(learning_rate=0.0)
    plain = train(qlora_recipe(base, tmp_path / "plain", lora=LORA | {"quantize": False}))
    curve, unquantized = training_losses(folder), training_losses(plain)
    np.testing.assert_allclose(curve, unquantized, rtol=0.03)
    assert curve != unquantized
    assert np.mean(curve[-6:]) < np.mean(training_losses(train(idle))[-6:]) - 0.05
    before = load_file(base / "model.safetensors")
    merged = load_file(folder / "model.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert adapter.keys() == load_file(plain / "adapter" / "adapter_model.safetensors").keys()
    assert merged.keys() == before.keys()
    new = compression_token_ids(CompressionConfig.from_pretrained(folder))
    for name, weight in merged.items():
        inside = "base_model.model." + name.removesuffix(".weight")
        if name.endswith("_proj.weight"):
            update = adapter[f"{inside}.lora_B.weight"] @ adapter[f"{inside}.lora_A.weight"]
            assert update.abs().max() > 1e-3
            torch.testing.assert_close(weight, before[name] + 4 * update, rtol=0, atol=1e-6)
        elif "embed" in name or "lm_head" in name:
            rows = adapter[f"{inside}.token_adapter.trainable_tokens_delta"]
            assert torch.equal(weight[new], rows)
            assert torch.equal(weight[: len(before[name])], before[name])
            untrained = load_model(qlora_recipe(base, folder), seed=0, quantize=False)[0]
            assert (untrained.state_dict()[name][new] - rows).abs().max() > 1e-3
        else:
            assert torch.equal(weight, before[name])
    answer = LLM(str(folder)).generate(["1+1?"], SamplingParams(max_tokens=4))
    assert answer[0].outputs[0].token_ids


@needs_bitsandbytes
def test_qlora_resumes_exactly(base, tmp_path):
    recipe = qlora_recipe(base, tmp_path / "run")
    recipe.trainer.update(save_strategy="steps", save_steps=6, gradient_checkpointing=True)
    folder = train(recipe)
    expected, weights = training_losses(folder), load_file(folder / "model.safetensors")
    (folder / "checkpoints" / "checkpoint-12" / COMPLETE_FILE).unlink()
    train(recipe, resume=True)
    assert training_losses(folder) == expected
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name


@needs_bitsandbytes
def test_two_ranks_equal_one(base, tmp_path):
    changes = {"distributed": {"strategy": "ddp", "global_batch_size": 2}, "trainer__max_steps": 4}
    one, two = (qlora_recipe(base, tmp_path / name, **changes) for name in ("one", "two"))
    two.trainer.update(per_device_train_batch_size=1)
    train(one)
    assert exit_codes(start_ranks(two, target=train_ddp_rank)) == [0, 0]
    curves = [training_losses(tmp_path / name) for name in ("one", "two")]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)


def test_bitsandbytes_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        quantization(qlora_recipe("base", tmp_path / "run"))


def test_bitsandbytes_says_which_devices_it_supports(tmp_path, monkeypatch):
    recipe = qlora_recipe("base", tmp_path / "run")
    for devices in ({"cuda"}, {"cuda", "cpu"}):
        stand_in = SimpleNamespace(__version__="0.1", supported_torch_devices=devices)
        monkeypatch.setitem(sys.modules, "bitsandbytes", stand_in)
        if "cpu" in devices:
            assert quantization(recipe)["device_map"] == {"": "cpu"}
        else:
            with pytest.raises(ConfigError, match=r"0\.1 has no 4-bit layers for cpu"):
                quantization(recipe)
    assert quantization(qlora_recipe("base", tmp_path / "run", lora={"rank": 4})) == {}
