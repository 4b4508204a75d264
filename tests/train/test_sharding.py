"""accelerate's own FSDP2 path on two CPU processes trains, resumes and exports as one process does.

accelerate shards on accelerators only; here it is told that the CPU is one (testing/ranks.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import fsdp_utils
from safetensors.torch import load_file

from lightthinker.testing.ranks import become_rank, exit_codes, start_ranks
from lightthinker.testing.training import recipe_for_ranks, tiny_recipe, training_losses
from lightthinker.train import run as run_module
from lightthinker.train import sharding
from lightthinker.train.run import train


def train_sharded(recipe, *, world=2, **settings):
    assert exit_codes(start_ranks(recipe, world=world, **settings)) == [0] * world


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_full_fine_tuning_equals_one_process_and_resumes_on_one(tmp_path, tied):
    plain = recipe_for_ranks(tmp_path / "plain", tied=tied, use_cpu=True)
    sharded = recipe_for_ranks(tmp_path / "sharded", tied=tied)
    sharded.trainer.update(save_strategy="steps" if tied else "no", save_steps=4)
    sharded.trainer.update(gradient_checkpointing=True)
    train(plain)
    train_sharded(sharded)
    expected = training_losses(tmp_path / "plain")
    np.testing.assert_allclose(training_losses(tmp_path / "sharded"), expected, rtol=1e-5)
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("plain", "sharded")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)
    if not tied:
        return
    shutil.rmtree(tmp_path / "sharded" / "checkpoints" / "checkpoint-6")
    (tmp_path / "sharded" / "training_log.json").unlink()
    train_sharded(sharded, world=1, resume=True)
    np.testing.assert_allclose(training_losses(tmp_path / "sharded"), expected, rtol=1e-5)


def test_in_bfloat16_the_loss_itself_is_not_rounded(tmp_path):
    """Weights are gathered in bf16; loss and gradients are summed in float32."""
    plain = recipe_for_ranks(tmp_path / "plain", use_cpu=True)
    sharded = recipe_for_ranks(tmp_path / "sharded")
    for recipe in (plain, sharded):
        recipe.trainer.update(bf16=True)
    train(plain)
    train_sharded(sharded)
    curves = [training_losses(tmp_path / name) for name in ("plain", "sharded")]
    np.testing.assert_allclose(curves[1], curves[0], rtol=5e-4)
    assert all(float(torch.tensor(loss).bfloat16()) != loss for loss in curves[1])


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_lora_equals_one_process_and_resumes(tmp_path, tied):
    """Tied weights behind peft's wrappers stay one weight."""
    lora = {"rank": 4, "save_adapter": True}
    plain = recipe_for_ranks(tmp_path / "plain", tied=tied, use_cpu=True, lora=lora)
    sharded = recipe_for_ranks(tmp_path / "sharded", tied=tied, lora=lora)
    sharded.trainer.update(save_strategy="steps" if tied else "no", save_steps=4)
    train(plain)
    train_sharded(sharded)
    if tied:
        shutil.rmtree(tmp_path / "sharded" / "checkpoints" / "checkpoint-6")
        (tmp_path / "sharded" / "training_log.json").unlink()
        train_sharded(sharded, resume=True)
    expected = training_losses(tmp_path / "plain")
    np.testing.assert_allclose(training_losses(tmp_path / "sharded"), expected, rtol=1e-5)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        weights = [load_file(tmp_path / n / file) for n in ("plain", "sharded")]
        assert weights[0].keys() == weights[1].keys()
        for name, weight in weights[0].items():
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)


def test_rows_added_to_a_checkpoint_are_those_of_one_process(tmp_path):
    """Frozen bfloat16 weights, adapters and new rows are sent; embeddings grow on every rank."""
    base = recipe_for_ranks(
        tmp_path / "base", use_cpu=True, tied=False, compression={"method": "full"}
    )
    base.trainer.update(max_steps=1)
    train(base)
    config = tmp_path / "base" / "config.json"  # which is wrong about the head, as some are
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    for name, lora in (("full", None), ("lora", {"rank": 4})):
        runs = [tmp_path / f"{name}_plain", tmp_path / f"{name}_sharded"]
        model = {"path": str(tmp_path / "base"), "dtype": "bfloat16" if lora else "float32"}
        recipes = [
            tiny_recipe(
                run, model=model, lora=lora, distributed={"global_batch_size": 4},
                trainer__use_cpu=run is runs[0],
            )
            for run in runs
        ]  # fmt: skip
        for recipe in recipes:
            recipe.trainer.update(max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3)
            recipe.trainer.update(bf16=False)
        train(recipes[0])
        train_sharded(recipes[1])
        curves = [training_losses(run) for run in runs]
        np.testing.assert_allclose(curves[1], curves[0], rtol=1e-2 if lora else 1e-5)
        weights = [load_file(run / "model.safetensors") for run in runs]
        assert weights[0].keys() == weights[1].keys()
        assert len(weights[0]["lm_head.weight"]) > len(load_file(
            tmp_path / "base" / "model.safetensors")["lm_head.weight"])  # fmt: skip
        for key, weight in weights[0].items():
            torch.testing.assert_close(weights[1][key], weight, rtol=1e-3, atol=1e-3)


def _resident_bytes(field):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)[1])


def _measure_rank(rank, world, port, recipe, resume):
    become_rank(rank, world, port)
    load, before, measured = run_module.load_model, _resident_bytes("VmRSS"), {}
    shard = fsdp_utils.fsdp2_load_full_state_dict

    def load_with_buffer(recipe, **settings):
        model, *others = load(recipe, **settings)
        model.model.norm.register_buffer("kept", torch.tensor([rank + 1.0]))
        measured["on_meta"] = all(p.is_meta for p in model.parameters())
        measured["weights"] = 4 * sum(p.numel() for p in model.parameters())
        return model, *others

    def measured_shard(*args, **settings):
        measured["unsharded"] = _resident_bytes("VmRSS") - before
        return shard(*args, **settings)

    def first_step(self, model, *_args, **_kwargs):
        measured["peak"] = _resident_bytes("VmHWM") - before
        measured["kept"] = float(model.state_dict()["model.norm.kept"])
        state = sharding.gathered_state(model, dtype=torch.bfloat16)
        measured["gathered"] = sum(t.nbytes for n, t in state.items() if n != "lm_head.weight")
        Path(recipe.output_dir, f"rank{rank}.json").write_text(json.dumps(measured))
        torch.distributed.barrier()
        os._exit(0)

    run_module.load_model = load_with_buffer
    fsdp_utils.fsdp2_load_full_state_dict = measured_shard
    run_module.LightThinkerTrainer.training_step = first_step
    train(recipe)


def test_other_ranks_never_hold_the_weights(tmp_path):
    recipe = recipe_for_ranks(tmp_path / "run")
    recipe.model.config.update(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=8,
        head_dim=64,
    )  # fmt: skip
    train_sharded(recipe, target=_measure_rank)
    first, other = (
        json.loads((tmp_path / "run" / f"rank{rank}.json").read_text()) for rank in range(2)
    )
    assert (first["on_meta"], other["on_meta"]) == (False, True)
    assert first["weights"] == other["weights"] > 2e8
    assert first["unsharded"] > first["weights"]
    assert other["unsharded"] < 0.5 * other["weights"], "and that is imported code"
    assert other["peak"] < first["peak"] - 0.3 * first["weights"]
    assert first["kept"] == other["kept"] == 1.0
    assert first["gathered"] == pytest.approx(first["weights"] / 2, rel=0.01)
    assert other["gathered"] == 0
