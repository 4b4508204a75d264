"""Training on GPUs: sharded equals single, a killed sharded run resumes, flex equals SDPA.

Run by hand: `pytest tests/gpu -m gpu`; the sharded ones need two GPUs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lightthinker.data.packing import collate, pack_row
from lightthinker.encode import IGNORE_INDEX, Example
from lightthinker.layout import LayoutRules, Role
from lightthinker.layout_builder import LayoutBuilder
from lightthinker.masks import LifetimeBatch, lifetimes
from lightthinker.testing.models import tiny_model
from lightthinker.testing.training import tiny_recipe, training_losses
from lightthinker.train.resume import last_complete_checkpoint

pytestmark = pytest.mark.gpu

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

MODEL = {
    "tokenizer": "tasks",
    "config": {
        "model_type": "qwen2",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}


def write_recipe(folder, **changes):
    settings = tiny_recipe(folder, model=MODEL, data__row_length=1024, **changes).to_dict()
    del settings["trainer"]["use_cpu"]
    settings["trainer"] |= {
        "max_steps": 20,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    settings["distributed"] |= {"global_batch_size": 8}
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings))
    return file


def command(file, *flags):
    return [sys.executable, "-m", "lightthinker.train", str(file), *flags]


def run(file, *flags):
    subprocess.run(command(file, *flags), check=True)


def test_flex_and_sdpa_train_alike(tmp_path):
    curves = []
    for name, on_cpu in (("flex", False), ("sdpa", True)):
        file = write_recipe(tmp_path / name)
        settings = yaml.safe_load(file.read_text())
        settings["trainer"] |= {"use_cpu": on_cpu, "bf16": False, "max_steps": 5}
        file.write_text(yaml.safe_dump(settings))
        run(file, "--num-gpus", "1")
        curves.append(training_losses(tmp_path / name))
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-3)


def thought_layout():
    builder = LayoutBuilder(LayoutRules(num_gists=3))
    builder.prompt(20)
    while len(builder) < 470:
        builder.sampled(17)
        builder.sampled(role=Role.TRIGGER)
        builder.compress()
    builder.sampled(5, role=Role.ANSWER)
    return builder.build()


def gradients(implementation, batch, dtype):
    torch.manual_seed(0)
    model = tiny_model(
        "qwen2", hidden_size=768, head_dim=128, num_attention_heads=6, num_key_value_heads=2,
        attn_implementation=implementation,
    ).cuda()  # fmt: skip
    inputs = {n: batch[n].cuda() for n in ("input_ids", "labels", "position_ids", "attention_mask")}
    with (
        torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16),
        lifetimes(LifetimeBatch(batch["expires"].cuda())),
    ):
        loss = model(**inputs).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_flex_equals_dense_sdpa_on_packed_rows_in_bfloat16():
    """Loss to 1e-3; gradients as near to float32's as those of SDPA in bf16, times two."""
    layout, rng = thought_layout(), np.random.default_rng(0)
    ids = rng.integers(3, 250, (4, len(layout))).astype(np.int32)
    examples = [Example(i, np.where(layout.is_output, i, IGNORE_INDEX), layout) for i in ids]
    rows = [pack_row(pair, 1024, pad_id=0, variants=False) for pair in (examples[:2], examples[2:])]
    batch = collate(rows)
    exact, reference = gradients("lt_sdpa", batch, torch.float32)
    losses, errors = {}, {}
    for name in ("lt_sdpa", "lt_flex"):
        losses[name], gradient = gradients(name, batch, torch.bfloat16)
        errors[name] = float((gradient - reference).norm() / reference.norm())
    assert losses["lt_flex"] == pytest.approx(losses["lt_sdpa"], rel=1e-3)
    assert losses["lt_flex"] == pytest.approx(exact, rel=1e-3)
    assert errors["lt_flex"] < 2 * errors["lt_sdpa"] + 1e-4, errors


def test_one_batch_of_eight_equals_eight_accumulated_batches_of_one(tmp_path):
    for name, at_once in (("whole", 8), ("accumulated", 1)):
        file = write_recipe(tmp_path / name)
        settings = yaml.safe_load(file.read_text())
        settings["trainer"] |= {"per_device_train_batch_size": at_once, "max_steps": 6}
        file.write_text(yaml.safe_dump(settings))
        run(file, "--num-gpus", "1")
    whole, accumulated = (training_losses(tmp_path / n) for n in ("whole", "accumulated"))
    np.testing.assert_allclose(whole, accumulated, rtol=1e-3)


@two_gpus
@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_two_gpus_equal_one(tmp_path, strategy):
    for name, gpus in (("one", "1"), ("two", "2")):
        run(write_recipe(tmp_path / name, distributed={"strategy": strategy}), "--num-gpus", gpus)
    one, two = (training_losses(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=5e-3)
    AutoModelForCausalLM.from_pretrained(tmp_path / "two")


@two_gpus
def test_sharded_lora_trains_and_merges(tmp_path):
    lora = {"rank": 8, "target_modules": ["q_proj", "v_proj"]}
    run(write_recipe(tmp_path / "run", lora=lora), "--num-gpus", "2")
    curve = training_losses(tmp_path / "run")
    assert np.mean(curve[-5:]) < curve[0]
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")


@two_gpus
@pytest.mark.parametrize("resumed_on", ["2", "1"])
def test_a_killed_sharded_run_goes_on(tmp_path, resumed_on):
    run(write_recipe(tmp_path / "straight"), "--num-gpus", "2")
    file = write_recipe(tmp_path / "killed")
    process = subprocess.Popen(command(file, "--num-gpus", "2"))
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 300
    while last_complete_checkpoint(checkpoints) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # Ranks live in sessions of their own: each is killed, and the launcher.
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (*map(int, ranks), process.pid):
        os.kill(number, signal.SIGKILL)
    process.wait()
    if (tmp_path / "killed" / "config.json").exists():
        pytest.fail("the run ended before it was killed")
    run(file, "--num-gpus", resumed_on, "--resume")
    a, b = (training_losses(tmp_path / name) for name in ("straight", "killed"))
    np.testing.assert_allclose(a, b, rtol=1e-5 if resumed_on == "2" else 1e-3)


def test_compiled_layers_do_not_recompile(tmp_path):
    file = write_recipe(tmp_path / "run")
    environment = {**os.environ, "TORCH_LOGS": "recompiles"}
    done = subprocess.run(
        command(file), env=environment, capture_output=True, text=True, check=True
    )
    assert "Recompiling" not in done.stderr
