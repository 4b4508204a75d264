"""Two processes train what one trains; ranks must agree on data; FSDP2 and the chunked loss."""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightthinker.cli.app import main
from lightthinker.errors import ConfigError, DataError
from lightthinker.testing.models import tiny_model
from lightthinker.testing.ranks import exit_codes, start_ranks, train_ddp_rank
from lightthinker.testing.training import tiny_recipe, training_losses
from lightthinker.train import run as run_module
from lightthinker.train.distributed import deepspeed_config, fsdp2_config, training_settings
from lightthinker.train.loss import install
from lightthinker.train.resume import check_ranks_agree
from lightthinker.train.run import train
from lightthinker.train.trainer import NonFiniteError


def _two_ranks(recipe, *, resume=False):
    assert exit_codes(start_ranks(recipe, resume=resume, target=train_ddp_rank)) == [0, 0]


def test_two_ranks_equal_one_and_both_go_on_where_two_stopped(tmp_path):
    """Token counts are normalised over ranks and accumulation: 2 ranks x 2 = 1 rank x 4."""
    changes = {
        "trainer__per_device_train_batch_size": 1,
        "trainer__max_steps": 4,
        "distributed": {"global_batch_size": 4},
    }
    saving = {"save_strategy": "steps", "save_steps": 2}
    two, one = (tiny_recipe(tmp_path / name, **changes) for name in ("two", "one"))
    for recipe in (two, one):
        recipe.trainer.update(saving)
    _two_ranks(two)
    train(one)
    expected = training_losses(tmp_path / "one")
    np.testing.assert_allclose(training_losses(tmp_path / "two"), expected, rtol=1e-5)
    weights = [load_file(tmp_path / n / "checkpoints/checkpoint-4/model.safetensors")
               for n in ("one", "two")]  # fmt: skip
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)
    for resumed in (_two_ranks, train):
        (tmp_path / "two" / "training_log.json").unlink()
        shutil.rmtree(tmp_path / "two" / "checkpoints" / "checkpoint-4")
        resumed(two, resume=True)
        np.testing.assert_allclose(training_losses(tmp_path / "two"), expected, rtol=1e-5)


def _rank(rank, store, digest, answers):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        check_ranks_agree(digest)
        answers.put("agree")
    except DataError as error:
        answers.put(str(error))


@pytest.mark.parametrize("same", [True, False])
def test_ranks_that_disagree_on_data_are_all_refused(tmp_path, same):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    digests = ("aa", "aa" if same else "bb")
    ranks = [
        context.Process(target=_rank, args=(rank, tmp_path / "store", digests[rank], answers))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    said = [answers.get(timeout=100) for _ in ranks]
    for process in ranks:
        process.join(100)
    if same:
        assert said == ["agree", "agree"]
    else:
        assert all("rank 0: aa, rank 1: bb" in text for text in said)


@pytest.fixture
def one_rank_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_chunked_loss_trains_under_fsdp2_as_without(one_rank_group, tied):
    """The units that accelerate makes: layers, embedding, and norm with head as one group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    ids = torch.randint(3, 250, (2, 32), generator=torch.Generator().manual_seed(0))
    curves = []
    for sharded in (False, True):
        model = tiny_model("qwen2", tie_word_embeddings=tied).train()
        install(model, chunk_tokens=8)
        if sharded:
            mesh = init_device_mesh("cpu", (1,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            if not tied:
                fully_shard(model.model.embed_tokens, mesh=mesh)
            tail = [model.model.norm, *([model.model.embed_tokens] if tied else []), model.lm_head]
            fully_shard(tail, mesh=mesh, reshard_after_forward=False)
            fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        curve = []
        for _ in range(4):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
        curves.append(curve)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    assert curves[0][-1] < curves[0][0]


def test_accumulation_follows_from_the_global_batch(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path / "run", distributed={"global_batch_size": 80})
    for ranks, steps in ((1, 40), (4, 10), (8, 5)):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        settings = training_settings(recipe, on_gpu=False)
        assert settings["gradient_accumulation_steps"] == steps
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="multiple of 6"):
        training_settings(recipe, on_gpu=False)


def test_settings_for_sharding(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    recipe = tiny_recipe(tmp_path / "run")
    settings = training_settings(recipe, on_gpu=True)
    assert settings["fsdp"] is True
    assert settings["fsdp_config"] == fsdp2_config(recipe)
    assert settings["fsdp_config"]["state_dict_type"] == "SHARDED_STATE_DICT"
    offloaded = tiny_recipe(tmp_path / "run", distributed={"cpu_offload": True})
    assert "ddp_backend" not in settings
    assert training_settings(offloaded, on_gpu=True)["ddp_backend"] == "cuda:nccl,cpu:gloo"
    zero3 = tiny_recipe(
        tmp_path / "run", distributed={"strategy": "deepspeed_zero3", "cpu_offload": True}
    )
    config = training_settings(zero3, on_gpu=True)["deepspeed"]
    assert config == deepspeed_config(zero3)
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    ddp = tiny_recipe(tmp_path / "run", distributed={"strategy": "ddp"})
    assert training_settings(ddp, on_gpu=True) == {"ddp_find_unused_parameters": False}


def test_deepspeed_that_is_not_installed_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "training_settings", lambda *_, **__: {"deepspeed": {}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install deepspeed"):
        train(tiny_recipe(tmp_path / "run", distributed={"strategy": "deepspeed_zero3"}))


def test_more_gpus_than_there_are_is_refused(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    settings = tiny_recipe(tmp_path / "run").to_dict()
    del settings["trainer"]["use_cpu"]
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit):
        main(["train", str(file), "--num-gpus", "99"])
    assert "--num-gpus is 99" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_of_one_rank_alone_is_said(tmp_path, monkeypatch, capsys, rank):
    """The launcher ends all ranks when one fails: what it has to say must be out by then."""
    from lightthinker.train import __main__ as entry

    def fails(*args, **kwargs):
        raise NonFiniteError("The loss became nan.")

    waited = []
    monkeypatch.setattr(entry, "train", fails)
    monkeypatch.setattr(entry, "wait_for_the_first", lambda: waited.append(rank))
    monkeypatch.setenv("RANK", rank)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run").to_dict()))
    monkeypatch.setattr(sys, "argv", ["lightthinker.train", str(file)])
    assert entry.main() == 2
    said = capsys.readouterr().err
    assert said == ("error: " if rank == "0" else "error (rank 1): ") + "The loss became nan.\n"
    assert waited == ([] if rank == "0" else ["1"])
