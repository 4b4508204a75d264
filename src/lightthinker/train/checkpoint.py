"""Reading what a recipe starts from, and writing what it ends with.

Plain Hugging Face folders, safetensors only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lightthinker.bundled import model_path
from lightthinker.compression import CompressionConfig
from lightthinker.errors import CheckpointError, ConfigError
from lightthinker.tokens import add_tokens
from lightthinker.train.adapters import is_quantized, quantization
from lightthinker.train.recipe import ModelSource, Recipe
from lightthinker.train.task_tokenizer import build_task_tokenizer

TASK_TOKENIZER = "tasks"


def load_model(
    recipe: Recipe, *, seed: int, quantize: bool = True, config: Any = None
) -> tuple[Any, Any, CompressionConfig]:
    """Return model (on the CPU), tokenizer and resolved compression settings of a recipe.

    Args:
        recipe: What to load; `model.dtype` is the dtype of the weights.
        seed: For weights from scratch.
        quantize: Whether to honour `lora.quantize`.
        config: Of the model that another process has loaded: make the same one without weights,
            its parameters on the meta device.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, has no safetensors (or GGUF) weights, or
            its tokenizer has more tokens than it has embeddings.
        ConfigError: The model config names an unknown type, or is not `model.architecture`.
    """
    source = recipe.model
    tokenizer = load_tokenizer(source)
    if config is not None:
        model = _without_weights(config)
    elif source.config is not None:
        model = _from_config(
            source.config, vocab_size=len(tokenizer), tokenizer=tokenizer, seed=seed
        )
    else:
        model = load_pretrained(source, tokenizer, quantization(recipe) if quantize else {})
        check_architecture(source, model.config)
        if source.max_position_embeddings is not None:
            model.config.max_position_embeddings = source.max_position_embeddings
        num_rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > num_rows:
            raise CheckpointError(
                f"The tokenizer {source.tokenizer or source.path} has {len(tokenizer)} tokens but "
                f"{source.path} has {num_rows} embeddings: they do not belong together."
            )
    if source.dtype != "float32" and not is_quantized(model):
        cast_weights(model, getattr(torch, source.dtype))
    compression = add_tokens(model, tokenizer, recipe.compression)
    return model, tokenizer, compression


def load_pretrained(
    source: ModelSource, tokenizer: Any, four_bits: Mapping[str, Any] | None = None
) -> Any:
    """Return the model of a checkpoint (safetensors or GGUF) in `source.dtype`.

    Args:
        source: What to load.
        tokenizer: Its tokenizer, whose special tokens are those of a GGUF file.
        four_bits: Keyword arguments of `from_pretrained`, as `adapters.quantization` gives them.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, or has no such weights.
    """
    extra: dict[str, Any] = {"use_safetensors": True, **(four_bits or {})}
    if source.gguf_file:
        from transformers import GgufConfig

        extra = {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_path(str(source.path)),
            dtype=getattr(torch, source.dtype),
            trust_remote_code=False,
            **extra,
        )
    except OSError as error:
        raise CheckpointError(
            f"Cannot load {source.path} (safetensors weights only): {error}"
        ) from error
    # A file with a head of its own, or without one (GGUF), overrules its config.
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.config.get_text_config().tie_word_embeddings = is_tied
    if source.gguf_file and source.tokenizer is None:
        for config in (model.config, model.generation_config):
            config.eos_token_id = tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id
            config.pad_token_id = tokenizer.pad_token_id
    return model


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast the parameters of a model in place; buffers stay as precise as they were made.

    RoPE's frequencies are a buffer: rounded to bf16 they would turn distant tokens by radians.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def check_architecture(source: ModelSource, config: Any) -> None:
    """Raise ConfigError unless the checkpoint is what `model.architecture` says."""
    actual = config.to_dict()
    for name, expected in (source.architecture or {}).items():
        if actual.get(name) != expected:
            raise ConfigError(
                f"model.architecture.{name} is {expected!r}, but {source.path} has "
                f"{actual.get(name)!r}."
            )


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer that a recipe names."""
    if source.tokenizer == TASK_TOKENIZER:
        tokenizer = build_task_tokenizer()
    else:
        name = model_path(str(source.tokenizer or source.path))
        if (name.startswith((".", "/")) or name.count("/") > 1) and not Path(name).exists():
            raise CheckpointError(f"There is no folder {name} to load the tokenizer from.")
        extra = (
            {"gguf_file": source.gguf_file} if source.gguf_file and source.tokenizer is None else {}
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **extra)
        except (OSError, ValueError) as error:
            here = "" if Path(name).is_dir() else f" (there is no such folder in {Path.cwd()})"
            raise CheckpointError(f"Cannot load the tokenizer of {name}{here}: {error}") from error
        if extra:
            _take_gguf_special_tokens(tokenizer, Path(str(source.path)) / str(source.gguf_file))
    if source.chat_template:
        tokenizer.chat_template = source.chat_template
    return tokenizer


def plan_config(source: ModelSource, vocab_size: int | None = None) -> Any:
    """Return the transformers config of a source without loading weights.

    Raises:
        CheckpointError: The checkpoint cannot be reached, and there is no `model.architecture`.
        ConfigError: The config names an unknown type.
    """
    settings = source.config or source.architecture
    if settings is not None:
        known = {} if vocab_size is None else {"vocab_size": vocab_size}
        return _make_config(known | settings)
    try:
        return AutoConfig.from_pretrained(model_path(str(source.path)), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read the config of {source.path} ({error}); give model.architecture."
        ) from error


def _take_gguf_special_tokens(tokenizer: Any, file: Path) -> None:
    """Set the special tokens that the file names.

    transformers may read them wrongly: SmolLM2 came with its bos token as eos, so that training
    taught it to end an answer by opening another turn.
    """
    if not file.is_file():
        return
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        field = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if field is not None:
            token_id = int(field.parts[-1][0])
            setattr(tokenizer, f"{ours}_token", tokenizer.convert_ids_to_tokens(token_id))


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
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = num_parameters * getattr(torch, dtype).itemsize + 12 * num_trained * num_checkpoints
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"{folder} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free."
        )


def _from_config(settings: dict[str, Any], *, vocab_size: int, tokenizer: Any, seed: int) -> Any:
    config = _make_config({"vocab_size": vocab_size, **settings})
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _make_config(settings: dict[str, Any]) -> Any:
    try:
        return AutoConfig.for_model(**settings)
    except ValueError as error:
        raise ConfigError(
            f"model.config.model_type is {settings['model_type']!r}, which transformers does not "
            "know."
        ) from error


def _without_weights(config: Any) -> Any:
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()  # Inside, each assignment makes a parameter of its own.
    return model
