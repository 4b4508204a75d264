"""A killed run goes on exactly; half a checkpoint, another recipe and NaN are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch

from lightthinker.errors import ConfigError
from lightthinker.testing.training import tiny_recipe, training_losses
from lightthinker.train.resume import last_complete_checkpoint, recipe_difference
from lightthinker.train.run import train
from lightthinker.train.trainer import COMPLETE_FILE, LightThinkerTrainer, NonFiniteError

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def saving_recipe(folder, **changes):
    recipe = tiny_recipe(folder, **changes)
    recipe.trainer.update(SAVING)
    return recipe


def test_a_run_killed_at_once_goes_on_exactly(tmp_path):
    """kill -9 as soon as there is something to go on from, whatever is being written then."""
    straight = saving_recipe(tmp_path / "straight", trainer__max_steps=14)
    train(straight)
    killed = saving_recipe(tmp_path / "killed", trainer__max_steps=14)
    child = multiprocessing.get_context("fork").Process(target=train, args=(killed,))
    child.start()
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while last_complete_checkpoint(checkpoints) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert last_complete_checkpoint(checkpoints) is not None
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    train(killed, resume=True)
    assert training_losses(tmp_path / "killed") == training_losses(tmp_path / "straight")


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path):
    recipe = saving_recipe(tmp_path / "run", trainer__logging_steps=1)
    train(recipe)
    log = tmp_path / "run" / "training_log.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    with log.open("a") as out:
        out.write('{"step": 7, "lo')  # What a killed run leaves.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-6")
    train(recipe, resume=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == steps


def test_saving_every_so_many_steps_needs_no_strategy(tmp_path):
    recipe = tiny_recipe(tmp_path / "run", trainer__save_steps=4)
    train(recipe)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4" / COMPLETE_FILE).is_file()
    assert tiny_recipe(tmp_path / "run").save_strategy == "no"


def test_half_a_checkpoint_is_never_picked(tmp_path):
    recipe = saving_recipe(tmp_path / "run")
    train(recipe)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    expected = training_losses(tmp_path / "run")
    newest = checkpoints / "checkpoint-6"
    (newest / COMPLETE_FILE).unlink()
    (newest / "model.safetensors").write_bytes(b"half")
    assert last_complete_checkpoint(checkpoints).name == "checkpoint-4"
    train(recipe, resume=True)
    assert training_losses(tmp_path / "run") == expected
    for file in checkpoints.glob(f"*/{COMPLETE_FILE}"):
        file.unlink()
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        train(recipe, resume=True)


def test_another_recipe_is_refused_and_the_difference_shown(tmp_path):
    train(saving_recipe(tmp_path / "run"))
    other = saving_recipe(tmp_path / "run", trainer__learning_rate=0.5, data__full_cot_share=0.25)
    with pytest.raises(ConfigError) as caught:
        train(other, resume=True)
    assert "data.full_cot_share: 0.5 -> 0.25" in str(caught.value)
    assert "trainer.learning_rate: 0.01 -> 0.5" in str(caught.value)
    with pytest.raises(ConfigError, match=r"rows_per_step was 2 and is 4"):
        train(saving_recipe(tmp_path / "run", trainer__gradient_accumulation_steps=2), resume=True)


def test_what_changes_speed_only_may_change(tmp_path):
    before = tiny_recipe(tmp_path / "a")
    now = tiny_recipe(
        tmp_path / "b",
        trainer__per_device_train_batch_size=1,
        trainer__gradient_accumulation_steps=2,
        trainer__logging_steps=7,
        distributed={"strategy": "ddp"},
        data__num_proc=3,
    )
    assert recipe_difference(before, now) == []


@pytest.mark.parametrize("at", ["loss", "weight"])
def test_not_a_number_ends_training_and_keeps_the_last_good_checkpoint(tmp_path, at, monkeypatch):
    step_of = LightThinkerTrainer.training_step

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = step_of(self, model, inputs, *args, **kwargs)
        if at == "weight" and self.state.global_step == 3:
            # A gradient that overflowed: the loss of this step was still finite.
            next(model.parameters()).grad[0, 0] = float("nan")
        elif at == "loss" and self.state.global_step == 2:
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(LightThinkerTrainer, "training_step", poisoned)
    recipe = saving_recipe(tmp_path / "run")
    with pytest.raises(NonFiniteError) as caught:
        train(recipe)
    wanted = {"loss": "up_proj", "weight": "not finite"}[at]
    assert wanted in str(caught.value)
    good = last_complete_checkpoint(tmp_path / "run" / "checkpoints")
    assert good.name == "checkpoint-2"
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "training_log.json").read_text())["log_history"]


def test_where_a_loss_stopped_being_finite_is_said(tmp_path, monkeypatch):
    from lightthinker.train import run as run_module

    install = run_module._install_loss

    def overflowing(model, *args):
        install(model, *args)
        layer = model.model.layers[1].mlp
        forward = layer.forward
        layer.forward = lambda x: forward(x) * float("inf")

    monkeypatch.setattr(run_module, "_install_loss", overflowing)
    with pytest.raises(
        NonFiniteError, match=r"step 1 on rank 0; first in the output of .*layers\.1"
    ):
        train(tiny_recipe(tmp_path / "run"))
