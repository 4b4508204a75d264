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


COMMAND_LINE = "import sys; from lightthinker.cli.app import main; main(sys.argv[1:])"


def command(file, *flags):
    return [sys.executable, "-c", COMMAND_LINE, "train", str(file), *flags]


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
