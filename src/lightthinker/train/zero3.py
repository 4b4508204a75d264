"""DeepSpeed ZeRO-3: what transformers and accelerate leave to be done.

transformers would shard a model while it is built. New embedding rows, adapters and the chunked
loss need whole weights, so models are built whole, on the CPU of each rank, and are sharded here
before the Trainer sees them: one parameter at a time, each from the first rank, so that no GPU ever
holds a whole model. Trained weights exist twice: as float32 that the optimizer updates and, under
bf16, as the bf16 copies that are multiplied with. Knows no recipe.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from lightthinker.train.checkpoint import cast_weights


def build_whole_models() -> None:
    """Have transformers and peft build models whole from now on, DeepSpeed or not.

    `TrainingArguments` and accelerate each tell them otherwise, so this is called after both.
    """
    unset_hf_deepspeed_config()


def shard(model: Any, arguments: TrainingArguments) -> None:
    """Leave each rank its part of every weight, in place; the first rank's weights count.

    A decoder layer is gathered at once, so that DeepSpeed's hooks stay outside compiled layers.
    Under bf16 all weights become bf16 first; buffers (RoPE's frequencies) stay as they are.

    Args:
        model: Whole, on the CPU, the same one on every rank.
        arguments: With a DeepSpeed configuration.
    """
    import deepspeed

    layers = {type(m) for m in model.modules() if isinstance(m, GradientCheckpointingLayer)}
    deepspeed.utils.set_z3_leaf_modules(model, list(layers))
    if arguments.bf16:
        cast_weights(model, torch.bfloat16)
    config = arguments.hf_deepspeed_config
    config.trainer_config_finalize(arguments, model, num_training_steps=0)
    deepspeed.zero.Init(module=model, config_dict_or_path=config.config)
    move_buffers(model, arguments.device)  # DeepSpeed moves what it shards only.


def move_buffers(model: Any, device: torch.device) -> None:
    """Move everything that is not a parameter, in place."""
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer.to(device))


@torch.no_grad()
def zero3_state(
    model: Any, *, trained_only: bool = False, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return a sharded model's whole weights, on the CPU of the first rank; none on the others.

    Every rank calls in. Trained weights are the optimizer's, in float32. One parameter at a time
    is whole on a device.

    Args:
        model: As DeepSpeed's engine holds it.
        trained_only: Leave frozen weights out; they are not gathered either.
        dtype: Cast each as it arrives, so that the wider ones are never all there.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    is_first = torch.distributed.get_rank() == 0
    whole: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied_to = names.setdefault(id(tensor), name)
        if trained_only and not tensor.requires_grad:
            continue
        if tied_to != name:
            if is_first:
                whole[name] = whole[tied_to]
            continue
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        with deepspeed.zero.GatheredParameters([tensor], enabled=is_parameter):
            value = tensor.data
            if tensor.requires_grad:
                value = safe_get_full_fp32_param(tensor)
            if is_first:
                is_cast = dtype is not None and value.is_floating_point()
                whole[name] = value.to("cpu", dtype if is_cast else value.dtype, copy=True)
    return whole
