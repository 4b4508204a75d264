"""Training speed: lifetimes under FlexAttention, plain causal attention, and the padded dense mask.

Three ways through the same documents, in one run on one device:

    lifetimes_flex   packed rows, BlockMask from lifetimes
    causal_flash     the identical rows under a plain causal mask (SDPA, its Flash kernel): what
                     ordinary fine-tuning costs
    dense_padded     each document padded to a row of its own, dense [B, 1, S, S] mask: the way of
                     the paper's code, nothing compiled, all logits at once. Once more with layers
                     compiled and the chunked loss, so that only mask and padding differ

A row that does not fit into memory is measured again with one row a step, and says so. Trace
lengths are log-normal (median 2,500 tokens). Processed tokens count padding; useful tokens are
those of documents, without gists and continues. One JSON line ends the output.

    python benchmarks/bench_train.py                        # one GPU, Qwen2.5-1.5B shape
    python benchmarks/bench_train.py --shape 7b --lora      # 7B shape with LoRA
    python benchmarks/bench_train.py --smoke                # seconds on a CPU

Several GPUs, through the Trainer: bench_train_sharded.py. `--merge-into` adds rows to a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import say_kernels
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_results import merge, print_rows, ratios, where
from transformers import AutoConfig, AutoModelForCausalLM

from lightthinker.compression import CompressionConfig
from lightthinker.data.packing import Row, collate, pack, pack_row
from lightthinker.encode import IGNORE_INDEX, Example
from lightthinker.layout import Role
from lightthinker.layout_builder import LayoutBuilder
from lightthinker.masks import LifetimeBatch, SortedKeys, lifetimes
from lightthinker.train.adapters import add_adapters
from lightthinker.train.flops import ModelSize, peak_flops
from lightthinker.train.loss import install, resolve_chunk
from lightthinker.train.plan import make_plan
from lightthinker.train.recipe import Recipe, recipe_from_dict
from lightthinker.train.trainer import compile_layers

SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
             "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
           "tie_word_embeddings": False},
    "smoke": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
              "tie_word_embeddings": True},
}  # fmt: skip
MASKS = ("lifetimes_flex", "causal_flash", "dense_padded", "dense_padded_compiled")
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
"""Kernels without a mask in memory; torch takes the one it prefers, any other is an error."""
NUM_GISTS, THOUGHT, PROMPT = 9, 64, 150
FIRST_SPECIAL = 3


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that these rows stand for: what `--plan` would be asked."""
    settings: dict[str, Any] = {
        "output_dir": "unused",
        "model": {
            "config": {"model_type": "qwen2", **SHAPES[options.shape]},
            "tokenizer": "unused",
            "dtype": "bfloat16" if options.lora else "float32",
        },
        "compression": {"num_gists": NUM_GISTS},
        "data": {"row_length": options.row_length, "sources": [{"path": "unused"}]},
        "trainer": {
            "per_device_train_batch_size": options.batch_size,
            "gradient_checkpointing": options.gradient_checkpointing,
        },
    }
    if options.lora:
        settings["lora"] = {"rank": 16}
    return recipe_from_dict(settings)


def documents(count: int, row_length: int, vocab_size: int) -> list[Example]:
    """Random documents of realistic shape; their length, gists included, fits a row."""
    rng = np.random.default_rng(0)
    config = CompressionConfig(num_gists=NUM_GISTS)
    scale = row_length / 4096
    out = []
    for length in rng.lognormal(np.log(2500 * scale), 0.5, count):
        builder = LayoutBuilder(config)
        builder.prompt(max(4, int(PROMPT * scale)))
        wanted = min(int(length), row_length - NUM_GISTS - 4)
        thought = max(4, int(THOUGHT * min(1.0, 4 * scale)))
        while len(builder) + thought + NUM_GISTS + 2 < wanted:
            builder.sampled(thought - 1)
            builder.sampled(role=Role.TRIGGER)
            builder.compress()
        builder.sampled(4, role=Role.ANSWER)
        layout = builder.build()
        ids = rng.integers(FIRST_SPECIAL, vocab_size, len(layout)).astype(np.int32)
        labels = np.where(layout.is_output, ids, IGNORE_INDEX).astype(np.int32)
        out.append(Example(ids, labels, layout))
    return out


def rows_of(examples: list[Example], mask: str, row_length: int) -> list[Row]:
    """Packed rows, or one row for each document."""
    num_open = 0 if mask.startswith("dense_padded") else 256
    return [
        pack_row(group, row_length, pad_id=0, variants=False)
        for group in pack(examples, row_length, num_open=num_open)
    ]


def build(recipe: Recipe, mask: str, device: torch.device, options: argparse.Namespace) -> Any:
    """The model with its loss, as a run would have it."""
    torch.manual_seed(0)
    assert recipe.model.config is not None
    config = AutoConfig.for_model(**recipe.model.config)
    implementation = "sdpa"
    if mask == "lifetimes_flex":
        implementation = "lt_flex" if device.type == "cuda" else "lt_sdpa"
    with device:
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, recipe.model.dtype),
            attn_implementation=implementation,
        )
    if options.lora:
        ids = tuple(range(FIRST_SPECIAL + 1, FIRST_SPECIAL + 1 + NUM_GISTS))
        tokens = dataclasses.replace(
            recipe.compression, trigger_id=FIRST_SPECIAL, gist_ids=ids, continue_id=ids[-1] + 1
        )
        model = add_adapters(model, recipe, tokens)
    base = model.get_base_model() if options.lora else model
    base.config.use_cache = False
    if options.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    chunk = resolve_chunk(
        "auto", num_tokens=options.batch_size * options.row_length,
        vocab_size=config.vocab_size, distillation=0.0,
    )  # fmt: skip
    if mask != "dense_padded":
        install(base, chunk_tokens=chunk or 4096, compiled=device.type == "cuda")
        if device.type == "cuda":
            compile_layers(model)
    return model.train()


@contextmanager
def causal_kernels(mask: str, device: torch.device) -> Iterator[None]:
    """Let plain causal attention use nothing but fused kernels, in recomputation too."""
    if mask == "causal_flash" and device.type == "cuda":
        with sdpa_kernel(FUSED):
            yield
    else:
        yield


def kernel_of(mask: str, recipe: Recipe, options: argparse.Namespace) -> str:
    """Return the attention kernel that runs: flex, or the one that SDPA chooses."""
    if mask == "lifetimes_flex":
        return "flex_attention"
    if options.device.type != "cuda":
        return "sdpa"
    config = recipe.model.config
    assert config is not None
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shape = (options.batch_size, heads, options.row_length, config["hidden_size"] // heads)
    query = torch.zeros(shape, dtype=torch.bfloat16, device=options.device, requires_grad=True)
    if mask == "causal_flash":
        key = query[:, :kv_heads]
        with causal_kernels(mask, options.device):
            chosen = torch._fused_sdp_choice(query, key, key, None, 0.0, True, enable_gqa=True)
    else:
        dense = torch.zeros(
            (shape[0], 1, shape[2], shape[2]), dtype=query.dtype, device=query.device
        )
        chosen = torch._fused_sdp_choice(query, query, query, dense, 0.0, False)
    return str(SDPBackend(chosen).name).lower()


def forward(model: Any, batch: dict[str, torch.Tensor], mask: str) -> torch.Tensor:
    """The loss of one batch under one of the masks."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "labels")}
    expires = batch["expires"]
    if mask == "lifetimes_flex":
        inputs["attention_mask"] = batch["attention_mask"]
        with lifetimes(LifetimeBatch(expires)):
            lost: torch.Tensor = model(**inputs).loss
        return lost
    if mask == "causal_flash":
        # Positions run through the row: a mask of ones and no packing, so SDPA is plain causal.
        del inputs["position_ids"]
        return torch.as_tensor(model(**inputs).loss)
    index = torch.arange(expires.shape[1], device=expires.device)
    visible = (index[None, None, :] <= index[None, :, None]) & (
        index[None, :, None] < expires[:, None, :]
    )
    dtype = torch.bfloat16 if expires.device.type == "cuda" else torch.float32
    dense = torch.zeros(visible.shape, dtype=dtype, device=expires.device)
    inputs["attention_mask"] = dense.masked_fill_(~visible, float("-inf"))[:, None]
    return torch.as_tensor(model(**inputs).loss)


def measure(mask: str, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Train for a while under one mask, and report."""
    device, started = options.device, time.perf_counter()
    assert recipe.model.config is not None
    kernel = kernel_of(mask, recipe, options)
    examples = documents(options.documents, options.row_length, recipe.model.config["vocab_size"])
    rows = rows_of(examples, mask, options.row_length)
    model = build(recipe, mask, device, options)
    size = ModelSize.of(model.get_base_model() if options.lora else model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    processed = useful = pairs = 0

    def train_step(step: int) -> tuple[dict[str, torch.Tensor], list[int], torch.Tensor]:
        first = step * options.batch_size
        batch = collate([rows[(first + i) % len(rows)] for i in range(options.batch_size)])
        counts = batch["counts"].sum(dim=0).tolist()
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with causal_kernels(mask, device):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = forward(model, batch, mask)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch, counts, loss

    begin = time.perf_counter()
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            synchronise(device)
            processed = useful = pairs = 0
            begin = time.perf_counter()
        batch, counts, loss = train_step(step)
        processed += batch["input_ids"].numel()
        useful += counts[0] - counts[1]
        is_causal = mask == "causal_flash"
        pairs += (
            batch["input_ids"].numel() * (options.row_length + 1) // 2 if is_causal else counts[4]
        )
    synchronise(device)
    seconds = time.perf_counter() - begin
    if options.profile:
        with torch.profiler.profile() as profile:
            for step in range(options.warmup + options.steps)[-3:]:
                train_step(step)
            synchronise(device)
        say_kernels(profile, 3, mask, most=40)
    peak = peak_flops(device)
    on_gpu = device.type == "cuda"
    plan = make_plan(recipe) if mask == "lifetimes_flex" else None
    row = {
        **named(mask, options),
        "processed_tokens_per_s": round(processed / seconds, 1),
        "useful_tokens_per_s": round(useful / seconds, 1),
        "mfu": round(size.training_flops(processed, pairs) / seconds / peak, 4) if peak else None,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if on_gpu else None,
        "planned_memory_gb": round(plan.memory_gb, 3) if plan else None,
        "kernel": kernel,
        "loss": round(loss.item(), 4),
        "batch_size": options.batch_size,
        "rows": len(rows),
        "seconds": round(seconds, 3),
        "start_seconds": round(begin - started, 1),
    }
    if mask == "lifetimes_flex":
        row["block_mask_ms"] = block_mask_ms(batch["expires"])
    return row


def named(mask: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what identifies a row."""
    is_dense = mask.startswith("dense_padded")
    return {
        "model": f"qwen2-{options.shape}" + ("-lora" if options.lora else ""),
        "mask": "dense_padded" if is_dense else mask,
        "packing": "none" if is_dense else "best_fit",
        "gpus": 1 if options.device.type == "cuda" else 0,
        "compiled": mask != "dense_padded",
        "through": "loop",
    }


def block_mask_ms(expires: torch.Tensor) -> float:
    """Return the milliseconds that a step's BlockMask takes, alone on the device."""
    times = []
    for _ in range(20):
        synchronise(expires.device)
        begin = time.perf_counter()
        SortedKeys.by_expiry(LifetimeBatch(expires))
        synchronise(expires.device)
        times.append(time.perf_counter() - begin)
    return round(1000 * sorted(times)[len(times) // 2], 3)


def measure_or_shrink(mask: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure; with one row a step if memory does not suffice; say so if that does not either."""
    while True:
        try:
            return measure(mask, recipe_of(options), options)
        except torch.cuda.OutOfMemoryError as error:
            said, fits_less = str(error), options.batch_size > 1
        except Exception as error:  # The other rows shall be measured all the same.
            traceback.print_exc()
            said, fits_less = f"{type(error).__name__}: {error}", False
        if not fits_less:
            none = dict.fromkeys(
                ("processed_tokens_per_s", "useful_tokens_per_s", "mfu",
                 "peak_memory_gb", "planned_memory_gb")
            )  # fmt: skip
            return named(mask, options) | none | {"error": said[:300]}
        print(f"{mask} does not fit at {options.batch_size} rows a step; trying 1", flush=True)
        options = argparse.Namespace(**{**vars(options), "batch_size": 1})
        free_memory()


def free_memory() -> None:
    """Give back what a model held, compiled programs included."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    """Command line, with the smoke size filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="1.5b")
    parser.add_argument("--masks", default=",".join(MASKS))
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--row-length", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where GPU time goes")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--merge-into", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.row_length, options.documents = "smoke", 512, 12
        options.steps, options.warmup = 2, 1
    return options


def main() -> None:
    options = parse()
    on_gpu = torch.cuda.is_available() and not options.smoke
    options.device = torch.device("cuda" if on_gpu else "cpu")
    results = []
    for mask in options.masks.split(","):
        if mask not in MASKS:
            raise SystemExit(f"--masks has {mask!r}; allowed: {', '.join(MASKS)}")
        results.append(measure_or_shrink(mask, options))
        print(json.dumps(results[-1]), flush=True)
        free_memory()
    print_rows(results)
    for model, found in ratios(results).items():
        print(model, *(f"{name} {value:.3f}" for name, value in found.items()), sep="  ")
    settings = {
        "seed": 0,
        "row_length": options.row_length,
        "gradient_checkpointing": options.gradient_checkpointing,
    }
    if options.merge_into:
        merge(options.merge_into, results, settings)
    content = {"rows": results, "ratios": ratios(results)} | where() | settings
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))


if __name__ == "__main__":
    main()
