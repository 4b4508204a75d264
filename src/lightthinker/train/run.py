"""`train(recipe)`: from a recipe to a checkpoint that stock transformers loads."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from lightthinker.data.packing import collate
from lightthinker.encode import Encoder
from lightthinker.errors import ConfigError, DataError
from lightthinker.train.card import LOG_FILE, RECIPE_FILE, write_card
from lightthinker.train.checkpoint import check_disk, load_model, save_checkpoint
from lightthinker.train.datasets import PackedRows, TaskRows
from lightthinker.train.prepare import prepared_rows
from lightthinker.train.recipe import Recipe
from lightthinker.train.trainer import (
    LightThinkerTrainer,
    StopOnInterrupt,
    Throughput,
    compile_layers,
)


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train a recipe to its end.

    Args:
        recipe: What to train.
        resume: Go on from the newest checkpoint of an interrupted run.
        overwrite: Write into an output folder that is not empty.

    Returns:
        The folder of the final checkpoint.

    Raises:
        ConfigError: The output folder is in use, or there is nothing to resume.
        KeyboardInterrupt: Training was interrupted; a checkpoint was written first.
    """
    output = Path(recipe.output_dir)
    last = (
        get_last_checkpoint(str(output / "checkpoints"))
        if (output / "checkpoints").is_dir()
        else None
    )
    if resume and last is None:
        raise ConfigError(f"There is no checkpoint to resume in {output / 'checkpoints'}.")
    if not resume and not overwrite and _is_used(output):
        raise ConfigError(
            f"{output} is not empty. Resume it with --resume, or choose another output_dir."
        )
    arguments = training_arguments(recipe)
    if arguments.n_gpu > 1 or arguments.world_size > 1:
        raise ConfigError(
            f"Training runs on one GPU; {max(arguments.n_gpu, arguments.world_size)} are in use. "
            "Set CUDA_VISIBLE_DEVICES=0 and start without torchrun."
        )
    set_seed(arguments.seed)
    model, tokenizer, compression = load_model(recipe, seed=arguments.seed)
    on_gpu = arguments.device.type == "cuda"
    model.set_attn_implementation("lt_flex" if on_gpu else "lt_sdpa")
    model.config.use_cache = False
    saves = arguments.save_strategy != "no"
    check_disk(output, model, dtype=recipe.save.dtype, num_checkpoints=1 + saves)
    rows = _rows(recipe, Encoder(tokenizer, compression), arguments, resume=resume)
    if overwrite and not resume:
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / RECIPE_FILE).write_text(
        yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8"
    )
    if on_gpu and recipe.model.compile:
        compile_layers(model)
    tokens_per_step = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * recipe.data.row_length
    )
    interrupt = StopOnInterrupt()
    trainer = LightThinkerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[interrupt, Throughput(tokens_per_step)],
    )
    try:
        trainer.train(resume_from_checkpoint=last if resume else None)
    except Exception:
        # A signal to the whole process group also ends the loading workers: what the step in hand
        # then meets depends on the moment (a dead worker, a closed socket), and it may meet it
        # before the signal reaches this process.
        time.sleep(1.0)
        if not interrupt.interrupted:
            raise
        trainer.save_interrupted()
    _write_log(trainer, output)
    if interrupt.interrupted:
        raise KeyboardInterrupt(
            f"Interrupted at step {trainer.state.global_step}; go on with --resume."
        )
    model.config.use_cache = True
    save_checkpoint(
        model, tokenizer, output, dtype=recipe.save.dtype, max_shard_size=recipe.save.max_shard_size
    )
    write_card(output, recipe, trainer.state.log_history)
    return output


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's TrainingArguments, with our defaults.

    The paper's schedule, bf16 and fused AdamW on a GPU.
    """
    on_gpu = torch.cuda.is_available() and not recipe.trainer.get("use_cpu")
    defaults: dict[str, Any] = {
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 1,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
        "disable_tqdm": None,
        "dataloader_num_workers": 0,
    }
    values = {k: v for k, v in (defaults | recipe.trainer).items() if v is not None}
    try:
        return TrainingArguments(
            output_dir=str(Path(recipe.output_dir) / "checkpoints"),
            remove_unused_columns=False,
            **values,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from error


def _rows(
    recipe: Recipe, encoder: Encoder, arguments: TrainingArguments, *, resume: bool
) -> TaskRows | PackedRows:
    data = recipe.data
    if data.tasks is None:
        rows = prepared_rows(recipe, encoder, resume=resume)
        if not len(rows):
            raise DataError("No trace is left to train on.")
        return rows
    if arguments.max_steps <= 0:
        raise ConfigError("data.tasks is endless; set trainer.max_steps.")
    per_step = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    return TaskRows(
        encoder,
        data.tasks,
        data=data,
        num_rows=arguments.max_steps * per_step,
        teacher=recipe.loss.distillation > 0,
    )


def _is_used(output: Path) -> bool:
    return output.exists() and any(p.name != "prepared" for p in output.iterdir())


def _write_log(trainer: LightThinkerTrainer, output: Path) -> None:
    log = {"global_step": trainer.state.global_step, "log_history": trainer.state.log_history}
    (output / LOG_FILE).write_text(json.dumps(log, indent=1), encoding="utf-8")
