"""What the engine's benchmarks share: model shapes with random weights, steady state, results.

Weights are random and thoughts are forced at a fixed length (`max_thought_tokens`): speed depends
on shapes and lengths, not on what the tokens say.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen2Config

from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.sequence import Sequence, Status
from lightthinker.evals.results import package_versions
from lightthinker.testing.models import byte_tokenizer

BANDWIDTH = 3.0e12
"""Bytes per second that an H100 copies, as measured (device to device, read and written)."""

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}

GRAPH_GAP_US = 5.0
"""A graph's kernels follow each other within a few microseconds; a longer gap is Python's."""

NUM_GISTS = 9
FIRST_WORD, NUM_WORDS = 20, 180
"""Prompts are drawn from these ids, which every shape has."""


def parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--smoke", action="store_true", help="a tiny shape, seconds, any device")
    made.add_argument("--output", type=Path, help="write the results there, as JSON")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--enforce-eager", action="store_true", help="no graphs, no compiling")
    return made


def make_model(shape: str) -> Any:
    """Return a model of this shape with random weights, bf16 on a GPU."""
    on_cuda = torch.cuda.is_available()
    settings = SHAPES[shape] | {"max_position_embeddings": 65_536}
    torch.manual_seed(0)
    with torch.device("cuda" if on_cuda else "cpu"):
        return AutoModelForCausalLM.from_config(
            Qwen2Config(**settings), dtype=torch.bfloat16 if on_cuda else torch.float32
        ).eval()


def compression(shape: str) -> CompressionConfig:
    """Return thought-level settings; the special ids are the vocabulary's last."""
    last = SHAPES[shape]["vocab_size"] - 1
    return CompressionConfig(
        num_gists=NUM_GISTS,
        trigger_id=last,
        gist_ids=tuple(last - 1 - i for i in range(NUM_GISTS)),
        continue_id=last - 1 - NUM_GISTS,
    )


def make_engine(model: Any, shape: str, **config: Any) -> LLMEngine:
    """Return a warm engine; says on stderr what takes how long."""
    engine = LLMEngine(model, byte_tokenizer(), compression(shape), config=EngineConfig(**config))
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"{shape} {time.perf_counter() - begin:6.1f} s: {text}", file=sys.stderr, flush=True)

    engine.warm_up(say)
    say("ready")
    return engine


def words(count: int, draw: random.Random) -> list[int]:
    """Return a prompt of random ids."""
    return [FIRST_WORD + draw.randrange(NUM_WORDS) for _ in range(count)]


def weight_bytes(model: Any) -> int:
    """Return the bytes of weights a decode step reads; an untied embedding is only looked up."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    return total if tied else total - embedding.numel() * embedding.element_size()


def skip_prefill(engine: LLMEngine) -> None:
    """Let all waiting sequences begin as if their prompts, but for the last token, had been read.

    Their KV is what the pool happens to hold: right in size, which is what takes time.
    """
    scheduler = engine.scheduler
    for sequence in list(scheduler.waiting):
        if len(scheduler.running) >= scheduler.max_num_seqs or not _adopt(engine, sequence):
            return


def _adopt(engine: LLMEngine, sequence: Sequence) -> bool:
    scheduler, size = engine.scheduler, engine.pool.page_size
    num_tokens = len(sequence.prompt_ids) - 1
    num_pages = -(-num_tokens // size)
    if engine.pool.allocator.num_free < num_pages + len(scheduler.running):
        return False
    scheduler.waiting.remove(sequence)
    sequence.pages += engine.pool.allocator.allocate(num_pages)
    sequence.adopt(num_tokens)
    sequence.status = Status.RUNNING
    scheduler.running.append(sequence)
    return True


def synchronise() -> None:
    """Wait until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def waiting_time() -> Iterator[list[float]]:
    """Collect the seconds that steps spend waiting for samples; the rest of a step is Python."""
    waits: list[float] = []
    plain = PendingTokens.tolist

    def timed(self: PendingTokens) -> list[int]:
        begin = time.perf_counter()
        tokens = plain(self)
        waits.append(time.perf_counter() - begin)
        return tokens

    PendingTokens.tolist = timed  # type: ignore[method-assign]
    try:
        yield waits
    finally:
        PendingTokens.tolist = plain  # type: ignore[method-assign]


def gpu_share(step: Callable[[], Any], title: str, num_steps: int = 30) -> dict[str, float]:
    """Trace steps and return what the GPU did, in percent of the time from first to last kernel.

    `idle_percent`: no kernel ran for longer than a graph leaves between two of its own.
    `compaction_percent`: surviving tokens were being moved.

    Args:
        step: Runs one step.
        title: Printed before the kernels that take longest.
        num_steps: How many are traced. Tracing slows Python down, so idle time is an upper bound.
    """
    with torch.profiler.profile() as profile:
        for _ in range(num_steps):
            step()
        synchronise()
    on_device = torch.autograd.DeviceType.CUDA
    kernels = [e for e in profile.events() if e.device_type == on_device]
    if not kernels:
        return {"idle_percent": 0.0, "compaction_percent": 0.0}
    kernels.sort(key=lambda e: e.time_range.start)
    first, until, idle = kernels[0].time_range.start, kernels[0].time_range.end, 0.0
    for kernel in kernels:
        gap = kernel.time_range.start - until
        idle += gap if gap > GRAPH_GAP_US else 0.0
        until = max(until, kernel.time_range.end)
    say_kernels(profile, num_steps, title)
    moving = sum(e.time_range.elapsed_us() for e in kernels if "_compact_kernel" in e.name)
    span = until - first
    return {"idle_percent": 100 * idle / span, "compaction_percent": 100 * moving / span}


def say_kernels(
    profile: torch.profiler.profile, num_steps: int, title: str, most: int = 16
) -> None:
    """Print which kernels a traced step's GPU time goes to."""
    on_device = torch.autograd.DeviceType.CUDA  # Operators launched from Python count them again.
    kernels = [e for e in profile.key_averages() if e.device_type == on_device]
    total = sum(e.self_device_time_total for e in kernels) / num_steps
    print(f"{title}: {total:.0f} us of kernels a step")
    for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:most]:
        each = e.self_device_time_total / num_steps
        print(f"{each:9.1f} us {e.count / num_steps:6.1f}x  {e.key[:110]}")


def note(row: dict[str, Any]) -> dict[str, Any]:
    """Say a finished row on stderr, so that a run that is cut short has not measured in vain."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def report(options: argparse.Namespace, rows: list[dict[str, Any]], **extra: Any) -> None:
    """Print a table and, last, one line of JSON; write the results where asked."""
    table = Table()
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        values = (row.get(name, "") for name in names)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    Console(width=160).print(table)
    on_cuda = torch.cuda.is_available()
    results = {
        "benchmark": Path(sys.argv[0]).stem,
        "device": torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU",
        "versions": package_versions(),
        "command": shlex.join(["python", *sys.argv]),
        "seed": options.seed,
        **extra,
        "rows": rows,
    }
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))
