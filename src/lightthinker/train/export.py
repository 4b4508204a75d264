"""The trained weights as one plain model, apart from the one being trained.

Shards are gathered, adapters merged; the training model is left as it is. Every rank calls in, the
main process gets the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from lightthinker.compression import CONFIG_KEY
from lightthinker.train.adapters import add_adapters, has_adapters
from lightthinker.train.checkpoint import load_model
from lightthinker.train.recipe import Recipe
from lightthinker.train.sharding import gathered_state
from lightthinker.train.trainer import LightThinkerTrainer
from lightthinker.train.zero3 import zero3_state


@torch.no_grad()
def standalone_model(
    trainer: LightThinkerTrainer,
    recipe: Recipe,
    *,
    dtype: torch.dtype,
    adapter: Path | None = None,
) -> Any:
    """Return a copy of the model on the CPU, with whole, merged weights; None on other ranks.

    Random number generators are left as they were.

    Args:
        trainer: The run.
        recipe: What it trains.
        dtype: What the caller will cast to; shards of full fine-tuning are gathered in it.
        adapter: Folder to write the adapters to as well, not merged.
    """
    adapted = has_adapters(recipe)
    gathered: dict[str, Any] = {"trained_only": adapted, "dtype": None if adapted else dtype}
    if trainer.is_fsdp_enabled:
        state = gathered_state(trainer.model_wrapped, **gathered)
    elif trainer.is_deepspeed_enabled:
        state = zero3_state(trainer.model, **gathered)
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    if adapter is not None:
        wrapped = trainer.accelerator.unwrap_model(trainer.model)
        # The rows that are trained are in the adapter; peft would add whole embeddings to them.
        wrapped.save_pretrained(adapter, state_dict=state, save_embedding_layers=False)
    with torch.random.fork_rng():
        if adapted:
            model, _, compression = load_model(recipe, seed=trainer.args.seed, quantize=False)
            model = add_adapters(model, recipe, compression)
            trained = {n for n, p in model.named_parameters() if p.requires_grad}
            adapters = {name: tensor for name, tensor in state.items() if name in trained}
            assert len(adapters) == len(trained), "adapter weights are missing from the state"
            model.load_state_dict(adapters, strict=False)
            return model.merge_and_unload()
        config = type(trainer.model.config).from_dict(trainer.model.config.to_dict())
        setattr(config, CONFIG_KEY, getattr(trainer.model.config, CONFIG_KEY))
        config.use_cache = True
        # No time for random weights: buffers are made, parameters taken over.
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # What is not gathered from shards are the weights in training themselves.
        is_copy = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        copied = {name: tensor.to("cpu", copy=not is_copy) for name, tensor in state.items()}
        model.load_state_dict(copied, assign=True)
        model.tie_weights()
        return model
