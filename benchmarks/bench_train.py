"""Training speed: lifetimes under FlexAttention, plain causal attention, and the padded dense mask.

Three ways through the same documents, in one run on one device:

    lifetimes_flex   packed rows, BlockMask from lifetimes
    causal_flash     the identical rows under a plain causal mask (SDPA, its Flash kernel): what
                     ordinary fine-tuning costs
    dense_padded     each document padded to a row of its own, dense [B, 1, S, S] mask: the way of
                     the paper's code

Trace lengths are log-normal (median 2,500 tokens). Processed tokens count padding; useful tokens
are those of documents, without gists and continues. One JSON line ends the output.

    python benchmarks/bench_train.py                        # one GPU, Qwen2.5-1.5B shape
    python benchmarks/bench_train.py --shape 7b --lora      # 7B shape with LoRA
    torchrun --nproc-per-node 2 benchmarks/bench_train.py --shape 7b --masks lifetimes_flex
    python benchmarks/bench_train.py --smoke                # seconds on a CPU
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from lightthinker.compression import CompressionConfig
from lightthinker.data.packing import Row, collate, pack, pack_row
from lightthinker.encode import IGNORE_INDEX, Example
from lightthinker.layout import Role
from lightthinker.layout_builder import LayoutBuilder
from lightthinker.masks import LifetimeBatch, lifetimes
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
MASKS = ("lifetimes_flex", "causal_flash", "dense_padded")
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
    num_open = 0 if mask == "dense_padded" else 256
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
    if mask != "dense_padded":  # the paper's code computes all logits
        install(base, chunk_tokens=chunk or 4096)
        if device.type == "cuda":
            compile_layers(model, distributed=options.world > 1)
    return model.train()


def shard(model: Any, device: torch.device) -> Any:
    """FSDP2, one unit a layer; the units accelerate makes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    inner = model.base_model
    for layer in inner.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    if not tied:
        fully_shard(embedding, mesh=mesh, mp_policy=policy)
    tail = [inner.norm, *([embedding] if tied else []), head]
    fully_shard(tail, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


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
    device = options.device
    assert recipe.model.config is not None
    examples = documents(options.documents, options.row_length, recipe.model.config["vocab_size"])
    rows = rows_of(examples, mask, options.row_length)
    model = build(recipe, mask, device, options)
    size = ModelSize.of(model.get_base_model() if options.lora else model)
    if options.world > 1:
        shard(model, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    processed = useful = pairs = 0
    begin = time.perf_counter()
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            synchronise(device)
            processed = useful = pairs = 0
            begin = time.perf_counter()
        first = (step * options.world + options.rank) * options.batch_size
        batch = collate([rows[(first + i) % len(rows)] for i in range(options.batch_size)])
        counts = batch["counts"].sum(dim=0).tolist()
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward(model, batch, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        processed += batch["input_ids"].numel()
        useful += counts[0] - counts[1]
        pairs += counts[4]
    synchronise(device)
    seconds = time.perf_counter() - begin
    peak = peak_flops(device)
    on_gpu = device.type == "cuda"
    plan = make_plan(recipe, num_gpus=options.world) if mask == "lifetimes_flex" else None
    return {
        "model": f"qwen2-{options.shape}" + ("-lora" if options.lora else ""),
        "mask": mask,
        "packing": "none" if mask == "dense_padded" else "best_fit",
        "gpus": options.world if on_gpu else 0,
        "processed_tokens_per_s": round(options.world * processed / seconds, 1),
        "useful_tokens_per_s": round(options.world * useful / seconds, 1),
        "mfu": round(size.training_flops(processed, pairs) / seconds / peak, 4) if peak else None,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if on_gpu else None,
        "planned_memory_gb": round(plan.memory_gb, 3) if plan else None,
        "loss": round(loss.item(), 4),
        "rows": len(rows),
        "seconds": round(seconds, 3),
    }


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
    parser.add_argument("--output", type=Path)
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
    options.rank = options.world = 0
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group()
        options.rank = torch.distributed.get_rank()
        options.world = torch.distributed.get_world_size()
        if on_gpu:
            options.device = torch.device("cuda", options.rank % torch.cuda.device_count())
            torch.cuda.set_device(options.device)
    options.world = max(1, options.world)
    recipe, results = recipe_of(options), []
    for mask in options.masks.split(","):
        if mask not in MASKS:
            raise SystemExit(f"--masks has {mask!r}; allowed: {', '.join(MASKS)}")
        results.append(measure(mask, recipe, options))
        if on_gpu:
            torch.compiler.reset()
            torch.cuda.empty_cache()
    if options.rank == 0:
        report(results, options)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and ratios for people, then one JSON line; write it if asked to."""
    print(f"{'mask':<16}{'processed tok/s':>17}{'useful tok/s':>14}{'MFU':>8}{'peak GB':>9}")
    for row in results:
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.3f}"
        memory = "-" if row["peak_memory_gb"] is None else f"{row['peak_memory_gb']:.1f}"
        print(f"{row['mask']:<16}{row['processed_tokens_per_s']:>17,.0f}"
              f"{row['useful_tokens_per_s']:>14,.0f}{mfu:>8}{memory:>9}")  # fmt: skip
    by_mask = {row["mask"]: row for row in results}
    ratios = {}
    for name, other, key in (
        ("processed_over_causal_flash", "causal_flash", "processed_tokens_per_s"),
        ("useful_over_dense_padded", "dense_padded", "useful_tokens_per_s"),
    ):
        if {"lifetimes_flex", other} <= by_mask.keys():
            ratios[name] = round(by_mask["lifetimes_flex"][key] / by_mask[other][key], 3)
            print(f"{name}: {ratios[name]}")
    on_gpu = options.device.type == "cuda"
    content = {
        "rows": results,
        "ratios": ratios,
        "device": torch.cuda.get_device_name(options.device) if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": shlex.join(["python", "benchmarks/bench_train.py", *sys.argv[1:]]),
        "seed": 0,
        "batch_size": options.batch_size,
        "row_length": options.row_length,
        "gradient_checkpointing": options.gradient_checkpointing,
    }
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))


if __name__ == "__main__":
    main()
