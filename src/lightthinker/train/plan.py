"""`--plan`: what a recipe will train, and estimates of memory and time, before a GPU is touched.

Weights live on the meta device only. Memory is what a step holds at its fullest moment: either in
the loss (weights, two Adam moments, all activations, logits) or in the last layer of the backward
pass (gradients in place of activations). What a compiled layer keeps was counted from the tensors
that it saves. Time is flops over a device's peak at an assumed utilisation, and is called an
estimate because it is one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lightthinker.compression import CompressionConfig
from lightthinker.errors import ConfigError
from lightthinker.train.adapters import add_adapters
from lightthinker.train.checkpoint import TASK_TOKENIZER, plan_config
from lightthinker.train.flops import PEAK_BF16, ModelSize, peak_of_name
from lightthinker.train.loss import resolve_chunk
from lightthinker.train.prepare import SUMMARY_FILE, fingerprint, read_fingerprint
from lightthinker.train.recipe import Recipe
from lightthinker.train.task_tokenizer import build_task_tokenizer

ASSUMED_MFU = 0.4
NF4_BYTES = 0.52
"""Of a weight in 4 bits: with bitsandbytes' double quantisation, 8 bits more for 64 weights."""
DEVICE_MEMORY_GB = {"H100": 80.0, "H200": 141.0, "A100": 80.0, "B200": 180.0, "L40S": 48.0}

ZERO3_LIVE_PARAMETERS = 10**9
"""Gathered parameters that DeepSpeed leaves whole, as bf16: `stage3_max_live_parameters`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimates for one GPU of `num_gpus`; memory in GB of 1e9 bytes, time in hours.

    Attributes:
        size: The model.
        num_gpus: GPUs that share the work.
        strategy: How; `single` for one.
        weights_gb: Weights held.
        gradients_gb: Their gradients.
        optimizer_gb: Adam's two moments, float32.
        activations_gb: Kept for the backward pass.
        logits_gb: Logits of a chunk or batch, their gradient, and what the head's weights add.
        backward_gb: What the backward pass of one layer adds: its gradients, recomputed
            activations, weights gathered from other GPUs.
        host_gb: Weights in host memory at the fullest moment if all GPUs are of one host; what the
            processes themselves take comes on top.
        accumulates: Whether gradients of earlier micro-batches are there during the loss.
        rows_per_step: Rows in an optimizer step.
        num_steps: Optimizer steps; None until the data is prepared.
        flops_per_step: Useful flops of a step.
    """

    size: ModelSize
    num_gpus: int
    strategy: str
    weights_gb: float
    gradients_gb: float
    optimizer_gb: float
    activations_gb: float
    logits_gb: float
    backward_gb: float
    host_gb: float
    accumulates: bool
    rows_per_step: int
    num_steps: int | None
    flops_per_step: float

    @property
    def memory_gb(self) -> float:
        """Planned peak memory of one GPU."""
        in_loss = self.activations_gb + max(self.logits_gb, self.backward_gb)
        if self.accumulates:
            in_loss += self.gradients_gb
        at_end = self.gradients_gb + self.backward_gb
        return self.weights_gb + self.optimizer_gb + max(in_loss, at_end)

    def hours(self, device: str, mfu: float = ASSUMED_MFU) -> float | None:
        """Estimated hours on such devices; None if steps or device are not known."""
        peak = peak_of_name(device)
        if self.num_steps is None or peak is None:
            return None
        return self.num_steps * self.flops_per_step / (peak * mfu * self.num_gpus) / 3600


def make_plan(recipe: Recipe, *, num_gpus: int = 1) -> Plan:
    """Estimate a run on `num_gpus` GPUs.

    Raises:
        CheckpointError: The checkpoint's config cannot be read, and `model.architecture` is not
            given.
        ConfigError: The global batch cannot be split.
    """
    size, bytes_per_weight = _measure(recipe)
    trainer, distributed = recipe.trainer, recipe.distributed
    per_device = trainer.get("per_device_train_batch_size") or 1
    accumulation = trainer.get("gradient_accumulation_steps") or 1
    if distributed.global_batch_size is not None:
        accumulation, rest = divmod(distributed.global_batch_size, per_device * num_gpus)
        if rest or not accumulation:
            raise ConfigError(
                f"distributed.global_batch_size = {distributed.global_batch_size} cannot be split "
                f"over {num_gpus} GPUs of {per_device} rows."
            )
    sharded = num_gpus > 1 and distributed.strategy != "ddp"
    shards = num_gpus if sharded else 1
    offload = distributed.cpu_offload and sharded
    tokens = per_device * recipe.data.row_length
    frozen = size.num_parameters - size.num_trainable
    held, live = (4 * size.num_trainable + bytes_per_weight * frozen) / shards, 0
    if sharded and distributed.strategy == "deepspeed_zero3":
        held = (6 * size.num_trainable + 2 * frozen) / shards  # bf16, and float32 of the trained.
        live = 2 * min(ZERO3_LIVE_PARAMETERS, size.num_parameters)
    copied = num_gpus > 1 and not sharded  # DDP reduces gradients in buckets of its own.
    chunk = resolve_chunk(
        recipe.loss.chunk_tokens,
        num_tokens=tokens,
        vocab_size=size.vocab_size,
        distillation=recipe.loss.distillation,
    )
    steps = trainer.get("max_steps") or 0
    rows_per_step = per_device * accumulation * num_gpus
    rows, pairs = _rows(recipe)
    if steps <= 0 and rows is not None:
        steps = int((trainer.get("num_train_epochs") or 3) * -(-rows // rows_per_step))
    step_tokens = rows_per_step * recipe.data.row_length
    distilled = 1 + (1 / 3 if recipe.loss.distillation else 0)
    return Plan(
        size=size,
        num_gpus=num_gpus,
        strategy=distributed.strategy if num_gpus > 1 else "single",
        weights_gb=(live if offload else held + live) / 1e9,
        gradients_gb=0.0 if offload else (4 + 4 * copied) * size.num_trainable / shards / 1e9,
        optimizer_gb=0.0 if offload else 8 * size.num_trainable / shards / 1e9,
        activations_gb=_activation_bytes(recipe, size, tokens, sharded=sharded) / 1e9,
        logits_gb=_logits_bytes(
            size,
            min(chunk or tokens, tokens),
            compiled=bool(chunk) and recipe.model.compile,
            has_teacher=recipe.loss.distillation > 0,
        )
        / 1e9,
        backward_gb=_backward_bytes(recipe, size, tokens, sharded=sharded) / 1e9,
        host_gb=_host_bytes(recipe, size, num_gpus, bytes_per_weight, offload=offload) / 1e9,
        accumulates=accumulation > 1,
        rows_per_step=rows_per_step,
        num_steps=steps if steps > 0 else None,
        flops_per_step=distilled * size.training_flops(step_tokens, int(pairs * step_tokens)),
    )


def print_plan(recipe: Recipe, plan: Plan) -> None:
    """Print a plan for people: what is trained, memory of each GPU, time, what fits."""
    size = plan.size
    share = size.num_trainable / size.num_parameters
    compression = recipe.compression
    lines = [
        ("trained", f"{recipe.model.path or 'from scratch'}: {size.num_parameters:,} parameters, "
                    f"{size.num_trainable:,} trained ({share:.2%})"),
        ("method", f"{compression.method}, {compression.num_gists} gists, full chain-of-thought "
                   f"share {recipe.data.full_cot_share:g}"),
        ("GPUs", f"{plan.num_gpus} ({plan.strategy})"),
        ("step", f"{plan.rows_per_step} rows of {recipe.data.row_length} tokens, "
                 f"{plan.flops_per_step / 1e15:.2f} PFLOP"),
        ("steps", f"{plan.num_steps:,}" if plan.num_steps else
                  "known once the data is prepared for this recipe (lightthinker prepare)"),
        ("checkpoints", _checkpoints(recipe)),
    ]  # fmt: skip
    lines += [
        (name.replace("_gb", " (estimate)"), f"{getattr(plan, name):8.2f} GB")
        for name in (
            "weights_gb", "gradients_gb", "optimizer_gb", "activations_gb", "logits_gb",
            "backward_gb", "memory_gb",
        )
    ]  # fmt: skip
    lines.append(("host memory (estimate)", f"{plan.host_gb:8.2f} GB, if all GPUs are of one host"))
    fits = [d for d, memory in DEVICE_MEMORY_GB.items() if plan.memory_gb < 0.92 * memory]
    lines.append(
        ("fits on (estimate)", ", ".join(fits) or "none of " + ", ".join(DEVICE_MEMORY_GB))
    )
    for device in ("A100", "H100", "B200"):
        hours = plan.hours(device)
        if hours is not None:
            lines.append(
                (f"time on {device} (estimate)", f"{hours:.2f} h at {ASSUMED_MFU:.0%} of "
                 f"{PEAK_BF16[device] / 1e12:.0f} TFLOP/s")
            )  # fmt: skip
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")


def _checkpoints(recipe: Recipe) -> str:
    strategy = recipe.save_strategy
    if strategy == "no":
        return "the final one only; trainer.save_steps writes some on the way, for --resume"
    every = f"every {recipe.trainer.get('save_steps') or 500} steps"
    return every if strategy == "steps" else f"by trainer.save_strategy: {strategy}"


def _measure(recipe: Recipe) -> tuple[ModelSize, float]:
    """Build the model on the meta device, its new rows and adapters included."""
    config = plan_config(recipe.model, vocab_size=_task_vocabulary(recipe))
    dtype = getattr(torch, recipe.model.dtype)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantized = recipe.lora is not None and recipe.lora.quantize
    if recipe.lora is not None or recipe.model.trainable == "new_tokens":
        # On meta the quantised model has the same shapes; only bytes per weight differ.
        plain = recipe
        tokens = range(len(recipe.compression.special_tokens))
        model = add_adapters(model, plain, _numbered(recipe.compression, list(tokens)))
        model = model.get_base_model()
    size = ModelSize.of(model)
    if not quantized:
        return size, dtype.itemsize
    share = _embedding_weights(size) / size.num_parameters  # They stay whole.
    return size, dtype.itemsize * share + NF4_BYTES * (1 - share)


def _numbered(compression: CompressionConfig, ids: list[int]) -> CompressionConfig:
    """Stand-in token ids: the plan has no tokenizer, and only their number matters."""
    settings = compression.to_dict()
    gists = len(dict.fromkeys(compression.gist_tokens))
    if compression.method != "full":
        settings["gist_ids"] = [min(i, gists - 1) for i in range(compression.num_gists)]
        settings["trigger_id"] = ids[-1] if compression.has_trigger else None
    return CompressionConfig.from_dict(settings)


def _task_vocabulary(recipe: Recipe) -> int | None:
    if recipe.model.tokenizer != TASK_TOKENIZER and recipe.data.tasks is None:
        return None
    return len(build_task_tokenizer()) + len(recipe.compression.special_tokens)


def _embedding_weights(size: ModelSize) -> int:
    return (1 if size.is_tied else 2) * size.vocab_size * size.hidden_size


def _layer_weights(size: ModelSize) -> float:
    return (size.num_parameters - _embedding_weights(size)) / size.num_layers


def _has_copies(recipe: Recipe, *, sharded: bool) -> bool:
    """Whether autocast makes bf16 copies of float32 weights; sharded ones are gathered as bf16."""
    return recipe.model.dtype == "float32" and not sharded


def _layer_bytes(recipe: Recipe, size: ModelSize, *, sharded: bool) -> float:
    """Bytes that one layer keeps for its backward pass, for each token.

    Compiled: its input, three bf16 vectors of the model's width, query, key, value, attention
    output and log-sum-exp, and three bf16 vectors of the feed-forward width. Not compiled, the
    norms keep float32 copies too, and the feed-forward part a fourth vector.
    """
    width, inner = size.hidden_size, size.intermediate_size
    heads = 4 * size.head_dim * (size.num_heads + size.num_kv_heads) + 4 * size.num_heads
    stream = 4 if _has_copies(recipe, sharded=sharded) else 2
    if not recipe.model.compile:
        return (26 if stream == 4 else 16) * width + heads + 8 * inner
    adapted = 2 * width if recipe.lora is not None else 0
    return stream * width + 6 * width + heads + 6 * inner + adapted


def _activation_bytes(recipe: Recipe, size: ModelSize, tokens: int, *, sharded: bool) -> float:
    """Bytes of a micro-batch kept for the backward pass; with checkpointing layers' inputs only."""
    has_copies = _has_copies(recipe, sharded=sharded)
    ends = 12.0 * size.hidden_size * tokens
    if recipe.trainer.get("gradient_checkpointing"):
        stream = 4 if has_copies else 2
        return stream * size.hidden_size * size.num_layers * tokens + ends
    layer = _layer_bytes(recipe, size, sharded=sharded) * tokens
    copies = 2 * _layer_weights(size) if has_copies else 0.0
    return (layer + copies) * size.num_layers + ends


def _logits_bytes(size: ModelSize, tokens: int, *, compiled: bool, has_teacher: bool) -> float:
    """Bytes of the loss at its fullest.

    Compiled: logits and their gradient in bf16, and a teacher's logits. Else log-probabilities and
    two gradients in float32. Of the head's weights a bf16 copy and a gradient, which adapters of
    single rows need as well.
    """
    weights = size.vocab_size * size.hidden_size
    is_trained = size.num_trainable > weights
    each = (6.0 if has_teacher else 4.0) if compiled else 12.0
    return each * tokens * size.vocab_size + (6 if is_trained else 4) * weights


def _backward_bytes(recipe: Recipe, size: ModelSize, tokens: int, *, sharded: bool) -> float:
    """Bytes that a layer's backward pass adds to what is kept.

    Gradients of its activations, and with checkpointing the activations. Sharded: weights of the
    layer, of the one fetched ahead and the buffer they arrive in, bf16; if they are trained, their
    bf16 gradients and float32 ones being reduced, of two layers.
    """
    layer = _layer_weights(size)
    added = (6.0 * size.intermediate_size + 12.0 * size.hidden_size) * tokens
    if recipe.trainer.get("gradient_checkpointing"):
        added += _layer_bytes(recipe, size, sharded=sharded) * tokens
        added += 2 * layer if _has_copies(recipe, sharded=sharded) else 0
    if sharded:
        added += (6 + 10 * (recipe.lora is None)) * layer
    return added


def _host_bytes(
    recipe: Recipe, size: ModelSize, num_gpus: int, bytes_per_weight: float, *, offload: bool
) -> float:
    """Bytes of weights on one host: where they are read, offloaded to, and made one model again.

    FSDP2 reads in one process, anything else in every one. The final model is on the first rank
    alone: gathered in the dtype that is saved, or, with adapters, read again to merge into.
    """
    as_read: int = getattr(torch, recipe.model.dtype).itemsize
    quantized = recipe.lora is not None and recipe.lora.quantize
    frozen = size.num_parameters - size.num_trainable
    reading = num_gpus * bytes_per_weight * size.num_parameters
    if (
        recipe.distributed.strategy == "fsdp2" and num_gpus > 1
    ):  # accelerate makes what is trained float32 before it shards.
        reading = 4.0 * size.num_trainable + bytes_per_weight * frozen
    held = (16.0 * size.num_trainable + bytes_per_weight * frozen) if offload else 0.0
    if offload and recipe.distributed.strategy == "deepspeed_zero3":
        held = 18.0 * size.num_trainable + 2.0 * frozen
    is_adapted = recipe.lora is not None or recipe.model.trainable == "new_tokens"
    save_as: int = getattr(torch, recipe.save.dtype).itemsize
    saved = as_read if is_adapted else save_as
    return max(0.0 if quantized else reading, held + saved * size.num_parameters)


def _rows(recipe: Recipe) -> tuple[int | None, float]:
    """Rows of the data if it is prepared for this recipe, and visible keys for each token."""
    folder = Path(recipe.output_dir) / "prepared"
    if read_fingerprint(folder) == fingerprint(recipe):
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        peaks = summary["peak_tokens"] or summary["full_cot_tokens"]
        visible = peaks["p50"] / 2 if peaks else recipe.data.row_length / 2
        return int(summary["num_rows"]), visible
    return None, recipe.data.row_length / 2
