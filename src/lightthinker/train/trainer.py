"""transformers' Trainer, with lifetimes around each forward.

Everything else is the Trainer's: optimisers, schedules, accumulation, resume. Two promises are
ours: a loss or gradient that is not finite ends training before it reaches a checkpoint, and a
checkpoint counts only once it is whole (`COMPLETE_FILE` is written last).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from lightthinker.data.packing import ROW_COUNTS, VARIANT_VECTORS
from lightthinker.errors import LightThinkerError
from lightthinker.masks import LifetimeBatch, lifetimes
from lightthinker.train.callbacks import Monitor
from lightthinker.train.zero3 import build_whole_models

COMPLETE_FILE = "complete.json"


class NonFiniteError(LightThinkerError):
    """The loss, or a weight, became NaN or infinite."""


class LightThinkerTrainer(Trainer):  # type: ignore[misc]
    """Trains on packed rows; batches carry `expires` (`first`, `last`, `skip` if the rules do).

    Args:
        manifest: Written into each whole checkpoint: what a resumed run must have in common.
        monitor: Adds what it measures to each log entry.
    """

    def __init__(self, *args: Any, manifest: Mapping[str, Any], monitor: Monitor, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.manifest = dict(manifest)
        self.monitor = monitor
        build_whole_models()
        if self.is_fsdp_enabled and self.args.bf16:
            # accelerate's choice rounds the loss itself, and sums of gradients, to bf16.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        self._counts = torch.zeros(len(ROW_COUNTS), dtype=torch.int64, device=self.args.device)
        self._divergences: list[torch.Tensor] = []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Cross-entropy on the labels under the rows' lifetimes, and distillation if asked for."""
        inputs = dict(inputs)
        counts = inputs.pop("counts", None)
        if counts is not None:
            self._counts += counts.sum(dim=0)
        vectors = {
            name: inputs.pop(name) for name in ("expires", *VARIANT_VECTORS) if name in inputs
        }
        teacher = {
            name.removeprefix("teacher_"): inputs.pop(name)
            for name in tuple(inputs)
            if name.startswith("teacher_")
        }
        if not teacher:
            with lifetimes(LifetimeBatch(**vectors)):
                return super().compute_loss(model, inputs, *args, **kwargs)
        inputs["teacher"] = teacher
        kwargs["return_outputs"] = True
        with lifetimes(LifetimeBatch(**vectors)):
            loss, output = super().compute_loss(model, inputs, *args, **kwargs)
        self._divergences.append(output["distillation"])
        return loss

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One forward and backward pass; a loss that is not finite ends training here."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"The loss became {float(loss)} in step {self.state.global_step + 1} on rank "
                f"{self.args.process_index}; {self._locate(inputs)}. The last checkpoint is from "
                "before that. Lower trainer.learning_rate, lengthen trainer.warmup_steps, or look "
                "at that batch."
            )
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what the monitor measures, log, and write the JSON line."""
        total = self.accelerator.reduce(self._counts.clone(), reduction="sum").tolist()
        self._counts.zero_()
        counts = dict(zip(ROW_COUNTS, total, strict=True))
        logs |= self.monitor.measure(self.args, self.state.global_step, counts)
        if self._divergences:
            steps = len(self._divergences) / self.args.gradient_accumulation_steps
            mean = torch.stack(self._divergences).float().sum() / steps
            logs["distillation"] = float(self.accelerator.reduce(mean, reduction="sum"))
            self._divergences.clear()
        super().log(logs, *args, **kwargs)
        if self.is_world_process_zero():
            self.monitor.write(self.state.global_step, logs)

    def log_apart(self, logs: dict[str, float], *, seconds: float) -> None:
        """Log something that took `seconds` of its own, which must not count as slowness."""
        is_due = self.control.should_log
        super().log(logs)
        self.control.should_log = is_due  # The step's own entry is still to come.
        self.monitor.pause(seconds)
        if self.is_world_process_zero():
            self.monitor.write(self.state.global_step, logs)

    def save_interrupted(self) -> None:
        """Write a checkpoint of the last finished step, outside the training loop."""
        self._save_checkpoint(self.model, trial=None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark the checkpoint as whole once every rank has, and only then drop older ones."""
        bad = first_nonfinite(model)
        if bad is not None:
            raise NonFiniteError(
                f"The weight {bad} is not finite after step {self.state.global_step}; no "
                "checkpoint was written, the last one is from before. Lower trainer.learning_rate."
            )
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = (
                Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            mark_complete(folder, self.manifest | {"step": self.state.global_step})
            rotate_checkpoints(self.args.output_dir, save_total_limit=limit)

    @torch.no_grad()
    def _locate(self, inputs: dict[str, Any]) -> str:
        bad = first_nonfinite(self.model)
        if bad is not None:
            return f"the weight {bad} is not finite since the update of the step before"
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "the weights are finite"
        found: list[str] = []

        def watch(name: str) -> Any:
            def hook(module: Any, arguments: Any, output: Any) -> None:
                tensors = output if isinstance(output, (tuple, list)) else (output,)
                for tensor in tensors:
                    is_float = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
                    if is_float and not torch.isfinite(tensor).all():
                        found.append(name)

            return hook

        hooks = [m.register_forward_hook(watch(n)) for n, m in self.model.named_modules() if n]
        try:
            with self.compute_loss_context_manager():
                self.compute_loss(self.model, self._prepare_inputs(inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return f"first in the output of {found[0]}" if found else "in the loss itself"


def first_nonfinite(model: torch.nn.Module) -> str | None:
    """Return the name of the first parameter with a NaN or infinity (of this rank's shards)."""
    for name, parameter in model.named_parameters():
        data = getattr(parameter, "ds_tensor", parameter.data)  # The first is ZeRO-3's shard.
        local = data.to_local() if isinstance(data, DTensor) else data
        if local.is_floating_point() and not bool(torch.isfinite(local).all()):
            return name
    return None


def mark_complete(folder: Path, content: Mapping[str, Any]) -> None:
    """Make everything in the folder durable, then write `COMPLETE_FILE` beside it."""
    for file in (*folder.rglob("*"), folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    partial = folder / (COMPLETE_FILE + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        json.dump(content, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, folder / COMPLETE_FILE)


def compile_layers(model: torch.nn.Module, *, distributed: bool = False) -> int:
    """Compile every decoder layer in place; return how many.

    Layers share one compiled program, the masks stay outside. In distributed training only the
    forward is compiled, so that the wrappers' hooks stay outside too.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        if distributed:
            layer.forward = torch.compile(layer.forward, dynamic=False)
        else:
            layer.compile(dynamic=False)
    return len(layers)
