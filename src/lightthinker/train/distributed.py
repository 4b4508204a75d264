"""Several GPUs: the settings that transformers and accelerate take, and the launch.

`lightthinker train --num-gpus N` starts N processes on this host with torch's own launcher;
`torchrun ... -m lightthinker.train recipe.yaml` does the same on any cluster. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightthinker.errors import ConfigError
from lightthinker.train.recipe import Recipe


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether torchrun, accelerate or `--num-gpus` started this process."""
    return "LOCAL_RANK" in os.environ


def checkpoint_format(recipe: Recipe, *, on_gpu: bool) -> str:
    """Return how this run writes checkpoints: `plain`, `fsdp2` or `deepspeed_zero3`.

    Ranks on a CPU use DDP whatever the strategy: accelerate shards on accelerators only.
    """
    strategy = recipe.distributed.strategy
    return strategy if is_launched() and on_gpu and strategy != "ddp" else "plain"


def training_settings(recipe: Recipe, *, on_gpu: bool) -> dict[str, Any]:
    """Return the TrainingArguments that follow from the `distributed` section.

    Raises:
        ConfigError: The global batch cannot be split over the ranks.
    """
    settings: dict[str, Any] = {}
    distributed = recipe.distributed
    per_device = recipe.trainer.get("per_device_train_batch_size") or 1
    if distributed.global_batch_size is not None:
        if recipe.trainer.get("gradient_accumulation_steps", 1) != 1:
            raise ConfigError(
                "distributed.global_batch_size decides trainer.gradient_accumulation_steps; leave "
                "the latter out."
            )
        at_once = per_device * world_size()
        steps, rest = divmod(distributed.global_batch_size, at_once)
        if rest or not steps:
            raise ConfigError(
                f"distributed.global_batch_size is {distributed.global_batch_size}, which "
                f"{world_size()} ranks of trainer.per_device_train_batch_size = {per_device} "
                f"cannot split: it must be a multiple of {at_once}."
            )
        settings["gradient_accumulation_steps"] = steps
    kind = checkpoint_format(recipe, on_gpu=on_gpu)
    if kind == "fsdp2":
        settings |= {"fsdp": True, "fsdp_config": fsdp2_config(recipe)}
        if distributed.cpu_offload:  # The norm of gradients in host memory is summed there.
            settings["ddp_backend"] = "cuda:nccl,cpu:gloo"
    elif kind == "deepspeed_zero3":
        settings["deepspeed"] = deepspeed_config(recipe)
    elif is_launched():
        settings |= {"ddp_find_unused_parameters": False}
    return settings


def fsdp2_config(recipe: Recipe) -> dict[str, Any]:
    """Return transformers' `fsdp_config`: FSDP2, one unit a layer, sharded checkpoints."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "SHARDED_STATE_DICT",
        "reshard_after_forward": recipe.distributed.reshard_after_forward,
        "cpu_offload": recipe.distributed.cpu_offload,
        "cpu_ram_efficient_loading": True,
    }


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """Return a DeepSpeed ZeRO-3 configuration; `auto` is filled in from TrainingArguments.

    Gradients are summed in float32, over micro-batches and over GPUs; DeepSpeed's default is bf16.
    """
    where = {"device": "cpu", "pin_memory": True} if recipe.distributed.cpu_offload else None
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if where:
        zero |= {"offload_param": where, "offload_optimizer": where}
    return {
        "bf16": {"enabled": "auto"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


class EmbeddingsInRootUnit(TrainerCallback):  # type: ignore[misc]
    """Leaves embedding and head of an adapted model to FSDP2's root unit.

    accelerate makes a unit of each unless both are one weight, which peft's wrappers hide: tied
    weights would be split into two units. It asks the model for them when it shards, and training
    begins after that.

    Args:
        model: A model with adapters, before it is sharded.
    """

    def __init__(self, model: Any):
        self.model = model
        model.get_input_embeddings = model.get_output_embeddings = lambda: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Give the model its methods back."""
        del self.model.get_input_embeddings, self.model.get_output_embeddings


def launch(num_gpus: int, arguments: Sequence[str], *, on_cpu: bool = False) -> None:
    """Run `python -m lightthinker.train ARGUMENTS` in one process for each GPU of this host.

    Raises:
        ConfigError: There are fewer GPUs.
        SystemExit: A process failed; it has said why.
    """
    available = torch.cuda.device_count()
    if num_gpus < 1 or (not on_cpu and num_gpus > available):
        raise ConfigError(f"--num-gpus is {num_gpus}; this host has {available}.")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(
            [
                "--standalone",
                f"--nproc-per-node={num_gpus}",
                "-m",
                "lightthinker.train",
                *arguments,
            ]
        )
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        raise SystemExit(130 if 130 in codes else 2) from None
    except SignalException:
        raise SystemExit(130) from None
