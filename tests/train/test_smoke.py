"""`--smoke` runs recipes, `--plan` says what they would train, evaluation watches them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lightthinker.cli.app import main
from lightthinker.compression import CompressionConfig
from lightthinker.testing.training import tiny_recipe, training_losses
from lightthinker.train.flops import ModelSize, peak_of_name
from lightthinker.train.plan import make_plan
from lightthinker.train.recipe import load_recipe
from lightthinker.train.run import train

RECIPES = Path(__file__).parents[2] / "recipes"
SMOKED = {
    "bundled_stage2": "llama",
    "bundled_long": "llama",
    "bundled_token": "llama",
    "bundled_anllm": "llama",
    "paper/qwen2.5_7b_thought": "qwen2",
    "paper/qwen2.5_7b_anllm": "qwen2",
    "paper/llama3.1_8b_token": "llama",
    "lora/qwen3_1.7b": "qwen3",
}


@pytest.mark.parametrize("name", SMOKED)
def test_recipes_run_at_their_smoke_size(tmp_path, name, capsys):
    file = RECIPES / f"{name}.yaml"
    main(["train", str(file), "--smoke", "--set", f"output_dir={tmp_path / 'run'}"])
    folder = tmp_path / "run_smoke" / "run"
    assert str(folder) in capsys.readouterr().out
    assert AutoConfig.from_pretrained(folder).model_type == SMOKED[name]
    asked, made = load_recipe(file).compression, CompressionConfig.from_pretrained(folder)
    assert (made.method, made.num_gists) == (asked.method, asked.num_gists)
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    assert not (tmp_path / "run").exists()


def test_a_smoke_run_misses_a_data_file_that_is_not_there(tmp_path, capsys):
    recipe, missing = str(RECIPES / "lora" / "qwen3_1.7b.yaml"), tmp_path / "none.jsonl"
    changes = [f"output_dir={tmp_path / 'run'}", f"data.sources.0.path={missing}"]
    with pytest.raises(SystemExit) as ended:
        main(["train", recipe, "--smoke", *(a for c in changes for a in ("--set", c))])
    assert ended.value.code == 2
    assert f"There is no file {missing}" in "".join(capsys.readouterr().err.split("\n"))
    assert not (tmp_path / "run_smoke").exists()


def test_a_plan_counts_what_is_trained(capsys):
    file = str(RECIPES / "paper" / "qwen2.5_7b_thought.yaml")
    main(["train", file, "--plan", "--num-gpus", "4"])
    printed = capsys.readouterr().out
    assert "7,615,616,512 parameters, 7,615,616,512 trained" in printed
    assert "80 rows of 4096 tokens" in printed
    assert "estimate" in printed


def test_sharding_and_adapters_lower_the_planned_memory():
    full = load_recipe(RECIPES / "paper" / "qwen2.5_7b_thought.yaml")
    one, four = make_plan(full, num_gpus=1), make_plan(full, num_gpus=4)
    assert one.weights_gb == pytest.approx(4 * 7.6156, rel=1e-3)
    assert one.optimizer_gb == pytest.approx(8 * 7.6156, rel=1e-3)
    assert four.optimizer_gb == pytest.approx(one.optimizer_gb / 4)
    assert four.activations_gb < one.activations_gb  # bf16 weights make a bf16 residual stream
    assert one.flops_per_step == four.flops_per_step
    # 6 N for each token, the embedding table not being multiplied, and attention to half a row.
    each = 6 * (7_615_616_512 - 152_064 * 3584) + 12 * 28 * 28 * 128 * 2048
    assert one.flops_per_step == pytest.approx(80 * 4096 * each)
    lora = make_plan(load_recipe(RECIPES / "lora" / "qwen3_8b.yaml"))
    assert lora.optimizer_gb < 1
    assert lora.size.num_trainable < 0.02 * lora.size.num_parameters


def test_planned_and_trained_parameters_are_the_same_number(tmp_path):
    recipe = tiny_recipe(tmp_path / "run", trainer__max_steps=1)
    folder = train(recipe)
    from safetensors.torch import load_file

    saved = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert make_plan(recipe).size.num_parameters == saved


def test_flops_of_a_step():
    size = ModelSize(
        num_parameters=120, num_multiplied=100, num_trainable=120, num_layers=2, num_heads=3,
        num_kv_heads=1, head_dim=4, hidden_size=12, intermediate_size=20, vocab_size=5,
        is_tied=False,
    )  # fmt: skip
    assert size.training_flops(10, 50) == 6 * 100 * 10 + 12 * 2 * 3 * 4 * 50
    assert peak_of_name("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of_name("NVIDIA H100 PCIe") == 756e12
    assert peak_of_name("some card") is None


def test_evaluation_with_the_engine_does_not_touch_training(tmp_path):
    evaluate = {"every_steps": 2, "num_problems": 3, "max_tokens": 12, "difficulty": "tiny",
                "full_cot": True, "num_transcripts": 1}  # fmt: skip
    watched = train(tiny_recipe(tmp_path / "watched", evaluate=evaluate, trainer__max_steps=3))
    plain = train(tiny_recipe(tmp_path / "plain", trainer__max_steps=3))
    log = [json.loads(line) for line in (watched / "training_log.jsonl").read_text().splitlines()]
    evaluations = [entry for entry in log if "eval_accuracy" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 3]
    assert training_losses(watched) == training_losses(plain), "each step has its own entry"
    assert {"eval_peak_tokens", "eval_full_cot_accuracy", "eval_finished"} <= set(evaluations[0])
    transcripts = (watched / "transcripts.jsonl").read_text().splitlines()
    assert len(transcripts) == 4
    assert {"question", "expected", "text", "correct"} <= set(json.loads(transcripts[0]))
    for name in ("model.safetensors",):
        assert (watched / name).read_bytes() == (plain / name).read_bytes()


def test_tensorboard_gets_what_is_measured(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(
        tiny_recipe(tmp_path / "run", trainer__report_to="tensorboard", trainer__max_steps=2)
    )
    (events,) = folder.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/tokens_per_second", "train/inserted_share"} <= set(found)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    folders = [
        train(tiny_recipe(tmp_path / str(on), trainer__gradient_checkpointing=on,
                          trainer__max_steps=2))
        for on in (False, True)
    ]  # fmt: skip
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model.safetensors") for folder in folders)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
