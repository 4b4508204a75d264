"""accelerate's own FSDP2 path on two CPU processes trains, resumes and exports as one process does.

accelerate shards on accelerators only; here it is told that the CPU is one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import training_args

from lightthinker.testing.training import TINY_MODEL, tiny_recipe, training_losses
from lightthinker.train import run as run_module
from lightthinker.train.run import train


def _train_rank(rank, world, port, recipe, resume):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_TORCH_DEVICE": "cpu",
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    training_args.is_torch_bf16_gpu_available = lambda: True
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    settings, form = run_module.training_settings, run_module.checkpoint_format
    run_module.training_settings = lambda recipe, on_gpu: settings(recipe, on_gpu=True)
    run_module.checkpoint_format = lambda recipe, on_gpu: form(recipe, on_gpu=True)
    train(recipe, resume=resume)


def train_sharded(recipe, *, world=2, resume=False):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_train_rank, args=(rank, world, port, recipe, resume))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    assert [process.exitcode for process in ranks] == [0] * world


def recipe_of(folder, *, tied=True, use_cpu=False, **changes):
    model = {**TINY_MODEL, "config": {**TINY_MODEL["config"], "tie_word_embeddings": tied}}
    recipe = tiny_recipe(
        folder, model=model, distributed={"global_batch_size": 4}, trainer__use_cpu=use_cpu,
        **changes,
    )  # fmt: skip
    recipe.trainer.update(per_device_train_batch_size=1, learning_rate=1e-3, bf16=False)
    return recipe


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_full_fine_tuning_equals_one_process_and_resumes_on_one(tmp_path, tied):
    plain = recipe_of(tmp_path / "plain", tied=tied, use_cpu=True)
    sharded = recipe_of(tmp_path / "sharded", tied=tied)
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
    plain = recipe_of(tmp_path / "plain", use_cpu=True)
    sharded = recipe_of(tmp_path / "sharded")
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
    plain = recipe_of(tmp_path / "plain", tied=tied, use_cpu=True, lora=lora)
    sharded = recipe_of(tmp_path / "sharded", tied=tied, lora=lora)
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
