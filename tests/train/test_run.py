"""Training: it learns, resumes exactly, batches do not matter, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import lightthinker.train.run as run_module
from lightthinker import LLM, CompressionConfig, SamplingParams
from lightthinker.cli.app import main
from lightthinker.errors import CheckpointError, ConfigError, DataError
from lightthinker.testing.training import TINY_MODEL, tiny_recipe, training_losses
from lightthinker.train.card import update_card
from lightthinker.train.export import standalone_model
from lightthinker.train.prepare import ROWS_FILE, SUMMARY_FILE, prepare
from lightthinker.train.recipe import load_recipe
from lightthinker.train.run import train, training_arguments

recipe, losses = tiny_recipe, training_losses


def test_training_lowers_the_loss_and_writes_a_plain_checkpoint(tmp_path):
    folder = train(recipe(tmp_path / "run", trainer__max_steps=25))
    curve = losses(folder)
    assert np.mean(curve[-3:]) < 0.7 * curve[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert CompressionConfig.from_pretrained(folder).num_gists == 2
    assert not list(folder.glob("*.bin"))
    assert "LightThinker" in (folder / "README.md").read_text()
    assert (folder / "recipe.yaml").exists()
    output = LLM(folder, device="cpu", num_kv_tokens=512).chat(
        [{"role": "user", "content": "What is 3*4?"}], SamplingParams(max_tokens=12)
    )
    assert output[0].finished


def test_a_used_output_folder_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        train(recipe(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"no whole checkpoint .* to resume"):
        train(recipe(tmp_path / "run"), resume=True)
    assert os.listdir(tmp_path / "run") == ["precious"]


def test_interrupted_training_writes_a_checkpoint_and_resumes_exactly(tmp_path, monkeypatch):
    train(recipe(tmp_path / "straight"))

    class PressCtrlC(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    trainer_class = run_module.LightThinkerTrainer

    def with_ctrl_c(*args, callbacks, **kwargs):
        return trainer_class(*args, callbacks=[PressCtrlC(), *callbacks], **kwargs)

    monkeypatch.setattr(run_module, "LightThinkerTrainer", with_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="step"):
        train(recipe(tmp_path / "broken"))
    monkeypatch.undo()
    saved = list((tmp_path / "broken" / "checkpoints").iterdir())
    assert len(saved) == 1
    assert not list((tmp_path / "broken").glob("*.safetensors"))
    train(recipe(tmp_path / "broken"), resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    a, b = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("straight", "broken")
    )
    for left, right in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_still_saves(tmp_path, number):
    """What a terminal's Ctrl-C or `timeout` does: loading workers get the signal too."""
    settings = recipe(
        tmp_path / "run", trainer__max_steps=2000, trainer__dataloader_num_workers=1
    ).to_dict()  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "lightthinker.train", str(file)]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.time() + 120
            while "'loss'" not in log.read_text() and time.time() < deadline:
                time.sleep(0.2)
            os.killpg(process.pid, number)
            assert process.wait(60) != 0
        finally:
            process.kill()
            process.wait()
    saved = list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/model.safetensors"))
    assert len(saved) == 1, log.read_text()[-2000:]


def test_an_unquoted_no_is_the_word_no(tmp_path):
    plain = recipe(tmp_path / "run")
    plain.trainer["save_strategy"] = yaml.safe_load("no")
    assert training_arguments(plain).save_strategy == "no"


def test_one_batch_of_eight_equals_eight_accumulated_batches_of_one(tmp_path):
    common = {"trainer__max_steps": 3}
    at_once = recipe(tmp_path / "a", **common)
    at_once.trainer["per_device_train_batch_size"] = 8
    accumulated = recipe(tmp_path / "b", **common)
    accumulated.trainer.update(per_device_train_batch_size=1, gradient_accumulation_steps=8)
    for settings in (at_once, accumulated):
        train(settings)
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=2e-4)


def write_traces(file, count=12):
    with file.open("w") as out:
        for i in range(count):
            row = {
                "question": f"What is {i}+1?",
                "reasoning": f"Add one to {i}.\n\nThat is {i + 1}.",
                "answer": f"{i + 1}",
            }
            out.write(json.dumps(row) + "\n")
        out.write("{broken\n\n")


def test_traces_from_a_file_prepare_train_and_fine_tune(tmp_path, capsys):
    write_traces(tmp_path / "traces.jsonl")
    data = {
        "row_length": 128,
        "sources": [{"path": str(tmp_path / "traces.jsonl")}],
        "full_cot_share": 0.25,
    }
    first = recipe(
        tmp_path / "first", data=data, trainer__max_steps=-1, trainer__num_train_epochs=2
    )
    folder = prepare(first)
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    assert summary["num_examples"] == 12
    assert 0 < summary["num_full_cot"] < 12
    drops = summary["sources"][0]["drops"]
    assert (drops["malformed JSON"]["count"], drops["malformed JSON"]["lines"]) == (1, [13])
    printed = capsys.readouterr().out
    assert "malformed JSON" in printed
    assert "<|trigger|>" in printed
    with pytest.raises(ConfigError, match="--overwrite"):
        prepare(first)
    rows_before = (folder / ROWS_FILE).stat().st_mtime_ns
    checkpoint = train(first)
    assert (folder / ROWS_FILE).stat().st_mtime_ns == rows_before
    second = recipe(
        tmp_path / "second",
        data=data,
        model={"path": str(checkpoint)},
        trainer__max_steps=2,
    )
    assert train(second).exists()


def test_evaluation_puts_measured_numbers_into_the_card(tmp_path):
    folder = train(recipe(tmp_path / "run", trainer__max_steps=1))
    arguments = ["--tasks", "programs", "--difficulty", "tiny", "--num-problems", "2"]
    main(["eval", str(folder), *arguments, "--max-tokens", "8", "--card", "--device", "cpu"])
    card = (folder / "README.md").read_text()
    assert "## Results" in card
    assert "| lightthinker | 0.0%" in card
    (folder / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"recipe\.yaml"):
        update_card(folder, {})


def test_overwriting_leaves_no_older_weights(tmp_path):
    settings = recipe(tmp_path / "run", trainer__max_steps=1)
    train(settings)
    sharded = recipe(
        tmp_path / "run", trainer__max_steps=2, save={"dtype": "float32", "max_shard_size": "20KB"}
    )
    folder = train(sharded, overwrite=True)
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("*.safetensors"))) > 1
    AutoModelForCausalLM.from_pretrained(folder)


def test_rows_too_short_for_any_problem_are_refused(tmp_path):
    with pytest.raises(DataError, match="fits a row of 32"):
        train(recipe(tmp_path / "run", data__row_length=32))


def test_too_small_a_disk_is_noticed_before_training(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="GB free"):
        train(recipe(tmp_path / "run"))


def test_resuming_with_other_data_is_refused(tmp_path):
    write_traces(tmp_path / "traces.jsonl")
    data = {"row_length": 128, "sources": [{"path": str(tmp_path / "traces.jsonl")}]}
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer = {**recipe(tmp_path).trainer, "max_steps": 2, **saving}
    train(recipe(tmp_path / "run", data=data, trainer=trainer))
    write_traces(tmp_path / "traces.jsonl", count=20)
    with pytest.raises(ConfigError, match="have changed"):
        train(recipe(tmp_path / "run", data=data, trainer=trainer), resume=True)


def test_strict_stops_at_the_first_bad_line(tmp_path):
    write_traces(tmp_path / "traces.jsonl")
    data = {"row_length": 128, "sources": [{"path": str(tmp_path / "traces.jsonl")}]}
    with pytest.raises(DataError, match="13"):
        prepare(recipe(tmp_path / "run", data=data), strict=True)


def test_examples_longer_than_the_row_are_counted_and_none_left_is_an_error(tmp_path):
    write_traces(tmp_path / "traces.jsonl")
    data = {"row_length": 20, "sources": [{"path": str(tmp_path / "traces.jsonl")}]}
    with pytest.raises(DataError, match="longer than data"):
        prepare(recipe(tmp_path / "run", data=data))


def test_a_trace_beyond_the_models_positions_is_refused(tmp_path):
    reasoning = "\\n\\n".join(f"Step {i} of many." for i in range(30))
    line = f'{{"question": "a", "reasoning": "{reasoning}", "answer": "b"}}\n'
    (tmp_path / "traces.jsonl").write_text(line)
    data = {"row_length": 1024, "sources": [{"path": str(tmp_path / "traces.jsonl")}]}
    short = {**TINY_MODEL, "config": {**TINY_MODEL["config"], "max_position_embeddings": 128}}
    with pytest.raises(ConfigError, match=r"made for 128 .*data\.too_long"):
        train(recipe(tmp_path / "run", data=data, model=short))
    cut = data | {"row_length": 128, "too_long": "truncate"}
    train(recipe(tmp_path / "cut", data=cut, model=short, trainer__max_steps=1))


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    from lightthinker.train import checkpoint as checkpoint_module

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        train(recipe(tmp_path / "run", trainer__max_steps=1))
    assert not list((tmp_path / "run").glob("*.safetensors"))
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run.partial", ignore_errors=True)


def test_when_no_trace_is_left_each_source_says_why(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bare.jsonl").write_text('{"question": "a", "reasoning": "", "answer": "b"}\n' * 2)
    settings = recipe(tmp_path / "run").to_dict()
    files = [{"path": str(tmp_path / name)} for name in ("empty.jsonl", "bare.jsonl")]
    settings["data"] = {"row_length": 256, "sources": files}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(DataError) as refused:
        prepare(load_recipe(tmp_path / "recipe.yaml"))
    assert "empty.jsonl: no rows; " in str(refused.value)
    assert "2 dropped: no reasoning (first at 1, 2: reasoning is empty" in str(refused.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no folder .*nowhere"):
        train(recipe(tmp_path / "run", model={"path": str(tmp_path / "nowhere")}))


def test_the_standalone_model_is_a_copy(tmp_path, monkeypatch):
    """What is done to it, by the engine or when it is saved, does not reach the one in training."""
    seen = []

    def compare(trainer, settings, *args, **kwargs):
        copy = standalone_model(trainer, settings, dtype=torch.float32)
        for (name, mine), theirs in zip(
            trainer.model.named_parameters(), copy.parameters(), strict=True
        ):
            torch.testing.assert_close(theirs.data, mine.data, rtol=0, atol=0)
            assert theirs.data_ptr() != mine.data_ptr(), name
        assert copy.lm_head.weight is copy.model.embed_tokens.weight
        assert copy(torch.tensor([[5, 6]])).logits.isfinite().all()
        seen.append(copy)

    monkeypatch.setattr(run_module, "_save", compare)
    monkeypatch.setattr(run_module, "write_card", lambda *args: None)
    train(recipe(tmp_path / "run", trainer__max_steps=1))
    assert seen
