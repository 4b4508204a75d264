"""Reading what a recipe starts from, and writing what it ends with.

Plain Hugging Face folders, safetensors only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lightthinker.compression import CompressionConfig
from lightthinker.errors import CheckpointError, ConfigError
from lightthinker.tokens import add_tokens
from lightthinker.train.recipe import ModelSource, Recipe
from lightthinker.train.task_tokenizer import build_task_tokenizer

TASK_TOKENIZER = "tasks"


def load_model(recipe: Recipe, *, seed: int) -> tuple[Any, Any, CompressionConfig]:
    """Return model (float32, on the CPU), tokenizer and resolved compression settings of a recipe.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, or has no safetensors (or GGUF) weights.
        ConfigError: The model config names an unknown type.
    """
    source = recipe.model
    tokenizer = load_tokenizer(source)
    if source.config is not None:
        model = _from_config(
            source.config, vocab_size=len(tokenizer), tokenizer=tokenizer, seed=seed
        )
    else:
        model = _from_checkpoint(source)
    compression = add_tokens(model, tokenizer, recipe.compression)
    return model, tokenizer, compression


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer that a recipe names."""
    if source.tokenizer == TASK_TOKENIZER:
        tokenizer = build_task_tokenizer()
    else:
        name = source.tokenizer or source.path
        extra = (
            {"gguf_file": source.gguf_file} if source.gguf_file and source.tokenizer is None else {}
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **extra)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"Cannot load the tokenizer of {name}: {error}") from error
    if source.chat_template:
        tokenizer.chat_template = source.chat_template
    return tokenizer


def save_checkpoint(
    model: Any, tokenizer: Any, folder: Path, *, dtype: str, max_shard_size: str
) -> None:
    """Write model and tokenizer beside the folder, then move them in, replacing older weights."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(getattr(torch, dtype)).save_pretrained(partial, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(partial)
    if folder.exists():
        for pattern in ("*.safetensors", "*.safetensors.index.json"):
            for stale in folder.glob(pattern):
                stale.unlink()
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
        partial.rmdir()
    else:
        os.replace(partial, folder)


def check_disk(folder: Path, model: Any, *, dtype: str, num_checkpoints: int) -> None:
    """Raise ConfigError if the disk has no room for what training will write.

    Args:
        folder: Where it will be written.
        model: The model to train.
        dtype: Of the final weights.
        num_checkpoints: Checkpoints kept at once during the run; weights and two moments, float32.
    """
    num_parameters = sum(p.numel() for p in model.parameters())
    needed = num_parameters * (getattr(torch, dtype).itemsize + 12 * num_checkpoints)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"{folder} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free."
        )


def _from_config(settings: dict[str, Any], *, vocab_size: int, tokenizer: Any, seed: int) -> Any:
    kind = settings["model_type"]
    try:
        config = AutoConfig.for_model(**{"vocab_size": vocab_size, **settings})
    except ValueError as error:
        raise ConfigError(
            f"model.config.model_type is {kind!r}, which transformers does not know."
        ) from error
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _from_checkpoint(source: ModelSource) -> Any:
    extra: dict[str, Any] = {"use_safetensors": True}
    if source.gguf_file:
        from transformers import GgufConfig

        extra = {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    try:
        return AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32, **extra)
    except OSError as error:
        raise CheckpointError(
            f"Cannot load {source.path} (safetensors weights only): {error}"
        ) from error
