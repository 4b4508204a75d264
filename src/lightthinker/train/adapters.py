"""LoRA, QLoRA and training the new rows alone, with peft.

The rows of the compression tokens are trained through peft's trainable token indices, in the
embedding and, where it is not tied, in the head. The alternative, `modules_to_save`, would train
and store both matrices whole: 150,000 rows for the sake of ten, and every other token would drift.
"""

from __future__ import annotations

from typing import Any

from lightthinker.compression import CompressionConfig
from lightthinker.errors import ConfigError
from lightthinker.train.recipe import Recipe


def compression_token_ids(compression: CompressionConfig) -> list[int]:
    """Return the ids of all tokens that compression added, in order, each once."""
    single = (compression.trigger_id, compression.continue_id, compression.recover_id)
    return sorted({*compression.gist_ids, *(token for token in single if token is not None)})


def has_adapters(recipe: Recipe) -> bool:
    """Whether the recipe trains through peft."""
    return recipe.lora is not None or recipe.model.trainable == "new_tokens"


def add_adapters(model: Any, recipe: Recipe, compression: CompressionConfig) -> Any:
    """Wrap a model so that only adapters and the rows of the compression tokens are trained.

    Returns:
        The wrapped model, or the model itself if the recipe fine-tunes all of it.

    Raises:
        ConfigError: peft is missing, a layer named does not exist, or there is nothing to train.
    """
    if not has_adapters(recipe):
        return model
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora needs peft: pip install 'lightthinker[train]'.") from error
    tokens = compression_token_ids(compression)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head.weight is embedding.weight
    rows = [_name_of(model, module) for module in ([embedding] if is_tied else [embedding, head])]
    if recipe.lora is None:
        if not tokens:
            raise ConfigError("model.trainable: new_tokens has nothing to train: method full.")
        only_rows = peft.TrainableTokensConfig(token_indices=tokens, target_modules=rows)
        return peft.get_peft_model(model, only_rows)
    lora = recipe.lora
    targets = lora.target_modules
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices=dict.fromkeys(rows, tokens) if tokens else None,
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"lora: {error}") from error


def quantization(recipe: Recipe) -> dict[str, Any]:
    """Return what QLoRA asks of `from_pretrained`: NF4 weights, where they are trained; or nothing.

    Arithmetic is bf16 on a GPU and float32 on a CPU.

    Raises:
        ConfigError: bitsandbytes is missing, or has no 4-bit layers for the device.
    """
    if recipe.lora is None or not recipe.lora.quantize:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError("lora.quantize needs `pip install bitsandbytes`.") from error
    on_gpu = torch.cuda.is_available() and not recipe.trainer.get("use_cpu")
    device = "cuda" if on_gpu else "cpu"
    if device not in bitsandbytes.supported_torch_devices:
        raise ConfigError(
            f"lora.quantize: bitsandbytes {bitsandbytes.__version__} has no 4-bit layers for "
            f"{device}; `pip install -U bitsandbytes` may bring them."
        )
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else torch.float32,
    )
    where = torch.cuda.current_device() if on_gpu else "cpu"
    return {"quantization_config": settings, "device_map": {"": where}}


def is_quantized(model: Any) -> bool:
    """Whether transformers loaded the weights in fewer bits, so that they may not be cast."""
    return bool(getattr(model, "is_quantized", False))


def base_model(model: Any, recipe: Recipe) -> Any:
    """Return the causal LM inside the adapters, or the model itself."""
    return model.get_base_model() if has_adapters(recipe) else model


def _name_of(model: Any, wanted: Any) -> str:
    name: str = next(name for name, module in model.named_modules() if module is wanted)
    return name.rpartition(".")[2]
