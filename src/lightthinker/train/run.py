"""`train(recipe)`: from a recipe to a checkpoint that stock transformers loads."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback, TrainingArguments, set_seed

from lightthinker.data.packing import collate
from lightthinker.encode import Encoder
from lightthinker.errors import ConfigError, DataError
from lightthinker.train.adapters import add_adapters, base_model, has_adapters
from lightthinker.train.callbacks import Monitor, StopOnInterrupt, forget_after
from lightthinker.train.card import LOG_FILE, RECIPE_FILE, write_card
from lightthinker.train.checkpoint import check_disk, load_model, save_checkpoint
from lightthinker.train.datasets import PackedRows, TaskRows
from lightthinker.train.distributed import (
    EmbeddingsInRootUnit,
    checkpoint_format,
    is_launched,
    training_settings,
)
from lightthinker.train.evaluation import EngineEvaluation
from lightthinker.train.export import standalone_model
from lightthinker.train.flops import ModelSize
from lightthinker.train.loss import install, resolve_chunk
from lightthinker.train.prepare import prepared_rows
from lightthinker.train.recipe import Recipe
from lightthinker.train.resume import (
    check_ranks_agree,
    check_resumable,
    last_complete_checkpoint,
    rows_hash,
)
from lightthinker.train.sharding import WeightsFromFirstRank, from_first_rank
from lightthinker.train.trainer import (
    COMPLETE_FILE,
    LightThinkerTrainer,
    NonFiniteError,
    compile_layers,
)
from lightthinker.train.zero3 import build_whole_models, shard

JSON_LINES_FILE = "training_log.jsonl"


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train a recipe to its end.

    Under a launcher every rank calls this; the main process writes.

    Args:
        recipe: What to train.
        resume: Go on from the newest whole checkpoint of an interrupted run.
        overwrite: Write into an output folder that is not empty.

    Returns:
        The folder of the final checkpoint.

    Raises:
        ConfigError: The output folder is in use, there is nothing to resume, or the run to resume
            was another one.
        DataError: No data, or ranks that disagree about it.
        NonFiniteError: The loss became NaN or infinite; the last checkpoint is from before.
        KeyboardInterrupt: Training was interrupted; a checkpoint was written first.
    """
    output = Path(recipe.output_dir)
    last = last_complete_checkpoint(output / "checkpoints")
    if resume and last is None:
        raise ConfigError(
            f"There is no whole checkpoint (with {COMPLETE_FILE}) to resume in "
            f"{output / 'checkpoints'}. During a run they are written where the recipe has "
            "trainer.save_steps (or save_strategy: epoch), else only on Ctrl-C. To start again, "
            "train with --overwrite."
        )
    arguments = training_arguments(recipe)
    # No rank may create anything in the folder before all have looked.
    is_used = _is_used(output)
    _barrier()
    if not resume and not overwrite and is_used:
        raise ConfigError(
            f"{output} is not empty. Go on with --resume if it was interrupted, choose another "
            "output_dir, or pass --overwrite."
        )
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} GPUs are visible to one process: start with --num-gpus, or set "
            "CUDA_VISIBLE_DEVICES=0."
        )
    set_seed(arguments.seed)
    on_gpu = arguments.device.type == "cuda"
    form = checkpoint_format(recipe, on_gpu=on_gpu)
    is_main = arguments.process_index == 0
    model, tokenizer, compression = _load(recipe, arguments, once=form == "fsdp2")
    model.set_attn_implementation("lt_flex" if on_gpu else "lt_sdpa")
    model.config.use_cache = False
    model = add_adapters(model, recipe, compression)
    saves = arguments.save_strategy != "no"
    check_disk(output, model, dtype=recipe.save.dtype, num_checkpoints=1 + saves)
    with arguments.main_process_first(local=True, desc="preparing data"):
        rows = _rows(recipe, Encoder(tokenizer, compression), arguments, resume=resume)
    if isinstance(rows, PackedRows):
        _check_positions(base_model(model, recipe).config, rows.num_positions)
    data_hash = rows_hash(rows)
    check_ranks_agree(data_hash)
    rows_per_step = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    manifest = {
        "data": data_hash,
        "rows_per_step": rows_per_step,
        "format": form,
        "ranks": arguments.world_size if form == "deepspeed_zero3" else None,
    }
    if resume and last is not None:
        check_resumable(last, output / RECIPE_FILE, recipe, manifest)
    _barrier()
    if is_main:
        _begin(recipe, output, fresh=overwrite and not resume)
        if resume and last is not None:
            forget_after(output / JSON_LINES_FILE, step=int(last.name.partition("-")[2]))
    _barrier()
    _install_loss(base_model(model, recipe), recipe, arguments, rows)
    size = ModelSize.of(base_model(model, recipe))
    if on_gpu and recipe.model.compile:
        compile_layers(model, distributed=arguments.world_size > 1)
    interrupt = StopOnInterrupt()
    callbacks: list[TrainerCallback] = [interrupt]
    if form == "fsdp2":
        callbacks.append(WeightsFromFirstRank(model, mixed_precision=bool(arguments.bf16)))
        if has_adapters(recipe):
            callbacks.append(EmbeddingsInRootUnit(model))
    elif form == "deepspeed_zero3":
        shard(model, arguments)
    trainer = LightThinkerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        callbacks=callbacks,
        manifest=manifest,
        monitor=Monitor(size, rows_per_step * recipe.data.row_length, output / JSON_LINES_FILE),
    )
    if recipe.evaluate is not None:
        trainer.add_callback(EngineEvaluation(trainer, recipe, tokenizer, compression))
    try:
        trainer.train(resume_from_checkpoint=str(last) if resume else None)
    except NonFiniteError:
        _write_log(trainer, output)
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"Not enough GPU memory ({error}). In this order: trainer.gradient_checkpointing=true, "
            "a smaller trainer.per_device_train_batch_size, a smaller loss.chunk_tokens, more GPUs "
            "(--num-gpus), lora, distributed.cpu_offload=true. `--plan` estimates each."
        ) from error
    except Exception:
        # A signal to the whole process group also ends the loading workers: what the step in hand
        # then meets depends on the moment (a dead worker, a closed socket), and it may meet it
        # before the signal reaches this process.
        time.sleep(1.0)
        if not interrupt.interrupted or arguments.world_size > 1:
            raise
        trainer.save_interrupted()
    if is_main:
        _write_log(trainer, output)
    if interrupt.interrupted:
        raise KeyboardInterrupt(
            f"Interrupted at step {trainer.state.global_step}; go on with --resume."
        )
    _save(trainer, recipe, tokenizer, output, sharded=form != "plain")
    if is_main:
        write_card(output, recipe, trainer.state.log_history)
    _barrier()
    return output


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's TrainingArguments, with our defaults.

    The paper's schedule, bf16 and fused AdamW on a GPU; in distributed training the settings of
    the recipe's strategy.
    """
    on_gpu = torch.cuda.is_available() and not recipe.trainer.get("use_cpu")
    if is_launched() and not on_gpu:
        # Else accelerate calls it cpu:0, a name under which torch.load restores nothing.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    defaults: dict[str, Any] = {
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 1,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "logging_steps": 50,
        "save_strategy": recipe.save_strategy,
        "report_to": "none",
        "seed": 0,
        "disable_tqdm": None,
        "dataloader_num_workers": 0,
    }
    if recipe.trainer.get("gradient_checkpointing"):
        defaults["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    defaults |= training_settings(recipe, on_gpu=on_gpu)
    values = {k: v for k, v in (defaults | recipe.trainer).items() if v is not None}
    for name, value in values.items():
        if value is False and name.endswith("_strategy"):
            values[name] = "no"  # What YAML makes of an unquoted `no`.
    if "deepspeed" in values and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "distributed.strategy: deepspeed_zero3 needs `pip install deepspeed`; fsdp2 needs "
            "nothing more."
        )
    try:
        arguments = TrainingArguments(
            output_dir=str(Path(recipe.output_dir) / "checkpoints"),
            remove_unused_columns=False,
            **values,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"trainer: {error}") from error
    build_whole_models()
    return arguments


def _load(recipe: Recipe, arguments: TrainingArguments, *, once: bool) -> tuple[Any, Any, Any]:
    """Load the model; `once`: with weights in the main process only."""
    if not once:
        return load_model(recipe, seed=arguments.seed)
    loaded = None
    if arguments.process_index == 0:
        loaded = load_model(recipe, seed=arguments.seed)
    config = from_first_rank(loaded[0].config if loaded else None)
    return loaded or load_model(recipe, seed=arguments.seed, config=config)


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


def _check_positions(config: Any, needed: int) -> None:
    """Refuse documents longer than what the checkpoint will be run with."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    if known is not None and needed > known:
        raise ConfigError(
            f"The longest trace takes {needed} positions, and the model is made for {known} "
            f"(max_position_embeddings). Set data.row_length to {known} and data.too_long to "
            "truncate or drop, or model.max_position_embeddings to what it is to have from now on."
        )


def _install_loss(model: Any, recipe: Recipe, arguments: TrainingArguments, rows: Any) -> None:
    chunk = resolve_chunk(
        recipe.loss.chunk_tokens,
        num_tokens=arguments.train_batch_size * recipe.data.row_length,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        distillation=recipe.loss.distillation,
    )
    if chunk is None:
        return
    if arguments.label_smoothing_factor:
        raise ConfigError("trainer.label_smoothing_factor needs loss.chunk_tokens: null.")
    if getattr(model.config, "output_router_logits", False):
        raise ConfigError("A router loss (output_router_logits) needs loss.chunk_tokens: null.")
    install(
        model,
        chunk_tokens=chunk,
        distillation=recipe.loss.distillation,
        compiled=recipe.model.compile and arguments.device.type == "cuda",
    )


def _begin(recipe: Recipe, output: Path, *, fresh: bool) -> None:
    """Write the recipe into the output folder; a fresh run forgets an older one there."""
    if fresh:
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        (output / JSON_LINES_FILE).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / RECIPE_FILE).write_text(
        yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8"
    )


def _save(
    trainer: LightThinkerTrainer, recipe: Recipe, tokenizer: Any, output: Path, *, sharded: bool
) -> None:
    """Write the final checkpoint: whole, merged, plain Hugging Face."""
    settings = {"dtype": recipe.save.dtype, "max_shard_size": recipe.save.max_shard_size}
    adapted = has_adapters(recipe)
    kept = recipe.lora is not None and recipe.lora.save_adapter
    model = trainer.model
    if sharded or adapted:
        model = standalone_model(
            trainer,
            recipe,
            dtype=getattr(torch, recipe.save.dtype),
            adapter=output / "adapter" if kept else None,
        )
    if not trainer.is_world_process_zero():
        return
    model.config.use_cache = True
    save_checkpoint(model, tokenizer, output, **settings)


def _is_used(output: Path) -> bool:
    return output.exists() and any(p.name != "prepared" for p in output.iterdir())


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _write_log(trainer: LightThinkerTrainer, output: Path) -> None:
    log = {"global_step": trainer.state.global_step, "log_history": trainer.state.log_history}
    (output / LOG_FILE).write_text(json.dumps(log, indent=1), encoding="utf-8")
