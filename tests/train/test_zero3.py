"""DeepSpeed ZeRO-3 on two CPU processes trains, resumes and exports as one process does.

Where DeepSpeed is not installed, only what can be checked without it runs. Its operators for CPUs
are compiled when they are first used, which takes half a minute, and minutes for Adam of
`cpu_offload`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from lightthinker import LLM, SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.testing.models import tiny_model
from lightthinker.testing.ranks import become_rank, exit_codes, start_ranks
from lightthinker.testing.training import recipe_for_ranks, tiny_recipe, training_losses
from lightthinker.train import run as run_module
from lightthinker.train.distributed import deepspeed_config
from lightthinker.train.resume import check_resumable, last_complete_checkpoint
from lightthinker.train.run import train
from lightthinker.train.trainer import (
    COMPLETE_FILE,
    LightThinkerTrainer,
    NonFiniteError,
    compile_layers,
    first_nonfinite,
)
from lightthinker.train.zero3 import build_whole_models, move_buffers

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"
)
ZERO3 = {"strategy": "deepspeed_zero3"}


@pytest.fixture
def on_cpu(monkeypatch):
    """DeepSpeed chooses its accelerator when it is first imported."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed")


def train_zero3(recipe, **settings):
    assert exit_codes(start_ranks(recipe, **settings)) == [0, 0]


def assert_same_weights(one, other, file="model.safetensors", *, atol=1e-4):
    weights = [load_file(folder / file) for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=atol)


@needs_deepspeed
@pytest.mark.parametrize("tied", [True, False])
def test_zero3_equals_one_process_and_a_killed_run_goes_on_exactly(on_cpu, tmp_path, tied):
    """Two ranks x two micro-batches of one row are one rank x four; the loss is in chunks."""
    loss = {"chunk_tokens": 16, "distillation": 0.0 if tied else 0.5}
    plain = recipe_for_ranks(
        tmp_path / "plain", tied=tied, use_cpu=True, loss=loss, trainer__max_steps=8
    )
    straight, killed = (
        recipe_for_ranks(tmp_path / name, tied=tied, loss=loss, trainer__max_steps=8, **ZERO3)
        for name in ("straight", "killed")
    )
    for recipe in (straight, killed):
        recipe.trainer.update(gradient_checkpointing=True)
    killed.trainer.update(save_strategy="steps", save_steps=2)
    train(plain)
    train_zero3(straight)
    expected = training_losses(tmp_path / "straight")
    np.testing.assert_allclose(expected, training_losses(tmp_path / "plain"), rtol=1e-5)
    assert_same_weights(tmp_path / "plain", tmp_path / "straight")
    answer = LLM(str(tmp_path / "straight")).generate(["1+1?"], SamplingParams(max_tokens=4))
    assert answer[0].outputs[0].token_ids

    ranks = start_ranks(killed)
    checkpoints, deadline = tmp_path / "killed" / "checkpoints", time.monotonic() + 120
    while last_complete_checkpoint(checkpoints) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    for process in ranks:
        os.kill(process.pid, signal.SIGKILL)
    exit_codes(ranks)
    assert last_complete_checkpoint(checkpoints) is not None
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    train_zero3(killed, resume=True)
    assert training_losses(tmp_path / "killed") == expected
    assert_same_weights(tmp_path / "straight", tmp_path / "killed")


@needs_deepspeed
def test_zero3_lora_equals_one_process_and_resumes(on_cpu, tmp_path):
    """Rows added to a checkpoint are trained with the adapters; evaluation disturbs nothing."""
    base = recipe_for_ranks(tmp_path / "base", use_cpu=True, compression={"method": "full"})
    base.trainer.update(max_steps=1)
    train(base)
    evaluate = {"every_steps": 4, "num_problems": 1, "max_tokens": 8, "difficulty": "tiny"}
    changes = {
        "model": {"path": str(tmp_path / "base")},
        "lora": {"rank": 4, "save_adapter": True},
    }
    plain = recipe_for_ranks(tmp_path / "plain", use_cpu=True, **changes)
    zero3 = recipe_for_ranks(tmp_path / "zero3", evaluate=evaluate, **changes, **ZERO3)
    zero3.trainer.update(save_strategy="steps", save_steps=4)
    train(plain)
    train_zero3(zero3)
    expected = training_losses(tmp_path / "zero3")
    np.testing.assert_allclose(expected, training_losses(tmp_path / "plain"), rtol=1e-5)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert_same_weights(tmp_path / "plain", tmp_path / "zero3", file)
    (tmp_path / "zero3" / "checkpoints" / "checkpoint-6" / COMPLETE_FILE).unlink()
    train_zero3(zero3, resume=True)
    assert training_losses(tmp_path / "zero3") == expected


def _look_rank(rank, world, port, recipe, resume):
    """Train in bf16 with compiled layers, and write down how weights lie in the second step."""
    from deepspeed.utils import z3_leaf_module

    become_rank(rank, world, port)
    shard, step_of = run_module.shard, LightThinkerTrainer.training_step

    def shard_compiled(model, arguments):
        compile_layers(model, distributed=True)
        shard(model, arguments)

    def look(self, model, *args, **kwargs):
        if self.state.global_step == 1:
            layer = self.model.model.layers[0].self_attn.q_proj.weight
            found = {
                "here": layer.numel(),
                "shard": layer.ds_tensor.numel(),
                "dtype": str(layer.ds_tensor.dtype),
                "sums": str(self.deepspeed.optimizer.gradient_accumulation_dtype),
                "unit": z3_leaf_module(self.model.model.layers[0]),
                "rope": str(self.model.model.rotary_emb.inv_freq.dtype),
            }
            Path(recipe.output_dir, f"rank{rank}.json").write_text(json.dumps(found))
        return step_of(self, model, *args, **kwargs)

    run_module.shard = shard_compiled
    LightThinkerTrainer.training_step = look
    train(recipe)


@needs_deepspeed
def test_in_bfloat16_each_rank_has_its_shard_and_sums_are_float32(on_cpu, tmp_path):
    """The final weights are the float32 ones that the optimizer has, not their bf16 copies."""
    plain = recipe_for_ranks(tmp_path / "plain", use_cpu=True)
    zero3 = recipe_for_ranks(tmp_path / "zero3", **ZERO3)
    for recipe in (plain, zero3):
        recipe.trainer.update(bf16=True)
    train(plain)
    train_zero3(zero3, target=_look_rank)
    curves = [training_losses(tmp_path / name) for name in ("plain", "zero3")]
    np.testing.assert_allclose(curves[1], curves[0], rtol=5e-4)
    for rank in range(2):
        found = json.loads((tmp_path / "zero3" / f"rank{rank}.json").read_text())
        assert found == {
            "here": 0, "shard": 32 * 32 / 2, "dtype": "torch.bfloat16", "sums": "torch.float32",
            "unit": True, "rope": "torch.float32",
        }  # fmt: skip
    weight = load_file(tmp_path / "zero3" / "model.safetensors")[
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert (weight.bfloat16().float() != weight).any()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_offloaded_zero3_equals_one_process(on_cpu, tmp_path):
    from deepspeed.ops.op_builder import CPUAdamBuilder

    CPUAdamBuilder().load()
    plain = recipe_for_ranks(tmp_path / "plain", use_cpu=True)
    zero3 = recipe_for_ranks(tmp_path / "zero3", cpu_offload=True, **ZERO3)
    zero3.trainer.update(save_strategy="steps", save_steps=4)
    train(plain)
    train_zero3(zero3)
    expected = training_losses(tmp_path / "zero3")
    np.testing.assert_allclose(expected, training_losses(tmp_path / "plain"), rtol=1e-5)
    assert_same_weights(tmp_path / "plain", tmp_path / "zero3")
    (tmp_path / "zero3" / "checkpoints" / "checkpoint-6" / COMPLETE_FILE).unlink()
    train_zero3(zero3, resume=True)
    assert training_losses(tmp_path / "zero3") == expected


def _poisoned_rank(rank, world, port, recipe, resume):
    """In the second step the loss, or with `resume` after it a weight, is not finite."""
    become_rank(rank, world, port)
    step_of = LightThinkerTrainer.training_step

    def poisoned(self, model, inputs, *args, **kwargs):
        is_due = self.state.global_step == 1 and self.accelerator.sync_gradients
        if is_due and not resume:
            self.model.model.norm.weight.data.fill_(float("inf"))  # Too small to be sharded.
        loss = step_of(self, model, inputs, *args, **kwargs)
        if is_due and resume:
            list(self.model.parameters())[-1].ds_tensor.data[0] = float("nan")
        return loss

    LightThinkerTrainer.training_step = poisoned
    try:
        train(recipe, overwrite=True)
    except NonFiniteError as error:
        Path(recipe.output_dir, f"error{rank}.txt").write_text(str(error))


@needs_deepspeed
@pytest.mark.parametrize("in_weights", [False, True])
def test_what_is_not_finite_ends_training_before_a_checkpoint(on_cpu, tmp_path, in_weights):
    recipe = recipe_for_ranks(tmp_path / "run", tied=False, **ZERO3)
    recipe.trainer.update(save_strategy="steps", save_steps=2)
    train_zero3(recipe, target=_poisoned_rank, resume=in_weights)
    said = "lm_head.weight is not finite" if in_weights else "The loss became nan in step 2"
    for rank in range(2):
        assert said in (tmp_path / "run" / f"error{rank}.txt").read_text()
    assert not list((tmp_path / "run" / "checkpoints").glob("*/model.safetensors"))


def test_models_are_built_whole_again():
    class Enabled:
        def is_zero3(self):
            return True

    enabled = Enabled()
    set_hf_deepspeed_config(enabled)
    assert is_deepspeed_zero3_enabled()
    build_whole_models()
    assert not is_deepspeed_zero3_enabled()


def test_buffers_follow_the_shards_to_their_device():
    model = tiny_model("qwen2")
    names = [name for name, _ in model.named_buffers()]
    move_buffers(model, torch.device("meta"))
    assert [name for name, buffer in model.named_buffers() if buffer.is_meta] == names
    assert names
    assert not any(p.is_meta for p in model.parameters())
    assert not model.state_dict().keys() & set(names), "they stay out of checkpoints"


def test_zero3_checkpoints_need_as_many_gpus(tmp_path):
    manifest = {"rows_per_step": 4, "data": "aa", "format": "deepspeed_zero3", "ranks": 2}
    (tmp_path / COMPLETE_FILE).write_text(json.dumps(manifest))
    recipe = tiny_recipe(tmp_path / "run", distributed=ZERO3)
    check_resumable(tmp_path, tmp_path / "none", recipe, manifest)
    with pytest.raises(ConfigError, match=r"ranks was 2 and is 4 .*as many only"):
        check_resumable(tmp_path, tmp_path / "none", recipe, manifest | {"ranks": 4})


def test_gradients_are_summed_in_float32(tmp_path):
    config = deepspeed_config(tiny_recipe(tmp_path / "run", distributed=ZERO3))
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"


def test_a_shard_that_is_not_finite_is_found():
    model = tiny_model("qwen2")
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.ds_tensor = torch.tensor([0.0, float("nan")])
    weight.data = torch.empty(0)
    assert first_nonfinite(model) == "model.layers.1.mlp.up_proj.weight"
