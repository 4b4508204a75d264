"""A checkpoint -> its config, tokenizer, weights and settings, and an engine made of them.

Weights are safetensors and no code that comes with a checkpoint is run. Whatever is wrong with one
is told as a `CheckpointError` that says which checkpoint and what to do. Knows nothing of requests,
nor of other processes: each loads what it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightthinker.compression import CONFIG_KEY, CompressionConfig
from lightthinker.engine.device import resolve_device, resolve_dtype
from lightthinker.engine.dummy_weights import random_model
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.sharding import sharding
from lightthinker.errors import CheckpointError, RequestError
from lightthinker.tokens import resolve_tokens


def load_engine(
    model: str | Path,
    *,
    device: str,
    dtype: str,
    compression: CompressionConfig | None,
    config: EngineConfig,
    tensor_parallel: bool = False,
    load_format: str = "auto",
) -> LLMEngine:
    """Load a checkpoint into an engine of this process; see `LLM`.

    Args:
        model: Folder or hub name.
        device: Torch device.
        dtype: `auto` or a dtype's name.
        compression: Overrides the checkpoint's settings.
        config: Sizes.
        tensor_parallel: Load this rank's slice; torch.distributed is set up.
        load_format: `auto` or `dummy`.
    """
    place = resolve_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)  # Kernels are launched on the current device.
    number_type = resolve_dtype(dtype, place)
    if load_format == "dummy" and not tensor_parallel:
        tokenizer = load_tokenizer(model)
        loaded = random_model(load_config(model), dtype=number_type, device=place)
    elif load_format == "auto":
        loaded, tokenizer = load_checkpoint(
            model, dtype=number_type, tensor_parallel=tensor_parallel
        )
    else:
        raise RequestError(
            f"load_format is {load_format!r}; it must be auto, or dummy on one GPU per copy."
        )
    if not tensor_parallel:
        loaded.to(place)
    settings = checked_compression(loaded.config, tokenizer, compression, model)
    return LLMEngine(loaded, tokenizer, settings, config=config, tensor_parallel=tensor_parallel)


def load_checkpoint(
    model: str | Path, *, dtype: torch.dtype | str, tensor_parallel: bool = False
) -> tuple[Any, Any]:
    """Load model and tokenizer from a folder or hub name; safetensors only, no remote code.

    Args:
        model: Folder or hub name.
        dtype: Of the weights.
        tensor_parallel: Load this rank's slice, by transformers' plan for the model.

    Raises:
        CheckpointError: It is not there, its weights are pickled, or quantised by a library that is
            not installed.
    """
    _check_weights(model)
    config, tokenizer = load_config(model), load_tokenizer(model)
    plan = {"distributed_config": sharding(config)} if tensor_parallel else {}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            **plan,
        )
    except (ImportError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"Cannot load {model}: {error}") from error
    return loaded, tokenizer


def _check_weights(model: str | Path) -> None:
    folder = Path(model)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickled = [
            p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))
        ]
        if pickled:
            raise CheckpointError(
                f"{model} holds pickled weights ({pickled[0]}), which can run code when loaded. "
                "Convert them to safetensors first (save_pretrained does)."
            )
        raise CheckpointError(f"{model} holds no *.safetensors weights.")


def load_config(model: str | Path) -> Any:
    """Load a checkpoint's config, which says what is missing before any weight is read.

    Args:
        model: Folder or hub name.

    Raises:
        CheckpointError: It is not there, or no transformers architecture.
    """
    name = str(model)
    is_there = Path(name).exists()
    if not is_there and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise CheckpointError(f"There is no folder {name}.")
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        hint = " No remote code is run." if "custom code" in str(error) else ""
        if is_there:
            _check_weights(model)  # A folder without anything is best told what it needs.
            raise CheckpointError(f"Cannot load {model}: {error}{hint}") from error
        looked = "'s cache on this machine (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
        raise CheckpointError(
            f"There is no folder {name} in {Path.cwd()}, and no model {name} could be loaded from "
            f"the Hugging Face hub{looked}: {error}{hint}"
        ) from error


def load_tokenizer(model: str | Path) -> Any:
    """Load a checkpoint's tokenizer.

    Args:
        model: Folder or hub name.

    Raises:
        CheckpointError: It has none that can be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot load the tokenizer of {model}: {error}") from error


def load_generation_config(model: str | Path) -> Any:
    """Load a checkpoint's generation config, or None without one.

    Args:
        model: Folder or hub name.
    """
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return None  # A checkpoint need not have one.


def checked_compression(
    model_config: Any, tokenizer: Any, override: CompressionConfig | None, model: str | Path
) -> CompressionConfig | None:
    """Return the settings to run a checkpoint with; None if it has none.

    Args:
        model_config: Its config.
        tokenizer: Its tokenizer.
        override: Settings in place of those in its config.
        model: Its folder or hub name, for the message.

    Raises:
        CheckpointError: Their token ids are not the tokenizer's.
    """
    saved = getattr(model_config, CONFIG_KEY, None)
    settings = override or (CompressionConfig.from_dict(saved) if saved else None)
    if settings:
        _check_ids(settings, tokenizer, str(model))
    return settings


def _check_ids(compression: CompressionConfig, tokenizer: Any, name: str) -> None:
    """Raise CheckpointError unless the saved token ids are the tokenizer's."""
    found = resolve_tokens(tokenizer, compression)
    for field in ("trigger_id", "gist_ids", "continue_id"):
        saved, actual = getattr(compression, field), getattr(found, field)
        if saved != actual:
            raise CheckpointError(
                f"{name}: compression.{field} is {saved}, but in its tokenizer these tokens are "
                f"{actual}."
            )
