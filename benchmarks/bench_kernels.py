"""Time every Triton kernel against its floor: bytes moved / 3.0 TB/s, or flops / 0.79 PFLOP/s.

Each measurement replays a CUDA graph over several layers of KV, after the L2 cache was flushed, and
takes the median over CUDA events. Sampling and compaction run once per replay, so theirs includes
the graph's own launch. "(host)" rows are CPU time spent to fill a step's metadata. Prints a table
and, as the last line, one JSON object.

    python benchmarks/bench_kernels.py --output results/bench_kernels.json
    python benchmarks/bench_kernels.py --sweep              # launch settings (sweep_rows.py)
    python benchmarks/bench_kernels.py --smoke              # seconds, on a CPU, in the interpreter
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from kernel_report import heading

from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.attention.rows_metadata import RowsCapacity, RowsMetadata
from lightthinker.attention.triton.launch import RowsConfig
from lightthinker.attention.triton.rows_attention import rows_attention
from lightthinker.attention.triton.sample import sample
from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch
from lightthinker.attention.triton.store_kv import store_kv
from lightthinker.attention.triton.tiled_attention import tiled_attention
from lightthinker.kvcache.page_list import PageList
from lightthinker.kvcache.pool import LayerShape, PagePool
from lightthinker.kvcache.triton_compact import SlotMover

ON_CUDA = torch.cuda.is_available()
BANDWIDTH = 3.0e12
FLOPS = 0.79e15
MAX_LAYERS = 8
MAX_POOL_BYTES = 16 * 2**30
FLUSH_BYTES = 256 * 2**20
DEVICE = torch.device("cuda" if ON_CUDA else "cpu")
DTYPE = torch.bfloat16 if ON_CUDA else torch.float32


@dataclass(frozen=True)
class Shape:
    """Attention shape of a model, and what the whole KV cache has."""

    heads: int
    kv_heads: int
    dim: int
    layers: int

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token in one layer."""
        return 2 * self.kv_heads * self.dim * DTYPE.itemsize


MODELS = {
    "Qwen2.5-1.5B": Shape(12, 2, 128, 28),
    "Qwen2.5-7B": Shape(28, 4, 128, 28),
    "Llama-8B": Shape(32, 8, 128, 32),
}
SMOKE_MODELS = {"tiny": Shape(6, 2, 16, 2)}


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured."""

    models: dict[str, Shape]
    batches: tuple[int, ...] = (1, 32, 128, 256)
    live: tuple[int, ...] = (256, 1024, 4096)
    page_sizes: tuple[int, ...] = (1, 16, 32)
    prefill: tuple[tuple[int, int], ...] = ((512, 512), (2048, 2048), (2048, 8192))
    vocab: int = 152_064
    moves: tuple[int, ...] = (10, 512)
    repeats: int = 20
    configs: tuple[RowsConfig, ...] = ()


SMOKE = Plan(SMOKE_MODELS, (2,), (24,), (1, 16), ((40, 48),), 300, (4,), 1)
SMOKE_CONFIGS = tuple(
    RowsConfig(block_n=16, num_warps=1, num_stages=1, num_programs=1, looks_ahead=ahead)
    for ahead in (False, True)
)


class Bench:
    """Collects rows; knows how to time on this machine."""

    def __init__(self, plan: Plan, seed: int):
        self.plan = plan
        self.random = random.Random(seed)
        self.rows: list[dict[str, Any]] = []
        self.flush = torch.empty(FLUSH_BYTES if ON_CUDA else 1, dtype=torch.uint8, device=DEVICE)
        torch.manual_seed(seed)

    def add(
        self, kernel: str, seconds: float, *, floor: float | None = None, **labels: Any
    ) -> None:
        """Note a measurement and print it, under a header where the columns change."""
        row = {"kernel": kernel, **labels, "time_us": round(seconds * 1e6, 2)}
        if floor is not None:
            row["floor_us"] = round(floor * 1e6, 3)
            row["ratio"] = round(seconds / floor, 2)
        if not self.rows or list(self.rows[-1]) != list(row):
            print("".join(f"{name:>17s}" for name in row))
        print("".join(f"{value!s:>17s}" for value in row.values()), flush=True)
        self.rows.append(row)

    def time(self, launches: list[Callable[[], None]]) -> float:
        """Return seconds per launch, the median over repeats, from cold L2."""
        for launch in launches:
            launch()
        if not ON_CUDA:
            start = time.perf_counter()
            for launch in launches:
                launch()
            return (time.perf_counter() - start) / len(launches)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for launch in launches:
                launch()
        times = []
        for _ in range(self.plan.repeats + 2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times[2:]) / len(launches)

    def host_time(self, call: Callable[[], None]) -> float:
        """Return CPU seconds of a call that only queues work."""
        call()
        times = []
        for _ in range(self.plan.repeats):
            if ON_CUDA:
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def pool(self, shape: Shape, num_tokens: int, page_size: int) -> PagePool:
        """Return a pool with random contents and as many layers as fit."""
        num_layers = max(1, min(MAX_LAYERS, MAX_POOL_BYTES // (shape.token_bytes * num_tokens)))
        pool = PagePool(
            [LayerShape(shape.kv_heads, shape.dim, shape.dim)] * num_layers,
            num_pages=-(-num_tokens // page_size),
            page_size=page_size,
            dtype=DTYPE,
            device=DEVICE,
        )
        for tensor in (*pool.keys, *pool.values):
            tensor.normal_()
        return pool

    def step(self, batch: int, live: int, num_rows: int, page_size: int) -> PagedBatch:
        """Return `batch` sequences of `live` tokens each, pages scattered over the pool."""
        return self.ragged_step([live] * batch, num_rows, page_size)

    def ragged_step(self, lengths: list[int], num_rows: int, page_size: int) -> PagedBatch:
        """Return sequences of these lengths, pages scattered over the pool."""
        counts = [-(-live // page_size) for live in lengths]
        pages = list(range(sum(counts)))
        self.random.shuffle(pages)
        sequences = []
        for live, count in zip(lengths, counts, strict=True):
            own, pages = pages[:count], pages[count:]
            first = live - num_rows
            rows = [Row(0, p + 1, 0, 0) for p in range(first, live)]
            sequences.append(SequenceRows(rows, list(range(first, live)), PageList(own), live))
        return PagedBatch(sequences, page_size, DEVICE)

    def metadata(self, step: PagedBatch, page_size: int, kv_heads: int = 1) -> RowsMetadata:
        """Return the step's filled device buffers."""
        metadata = RowsMetadata(
            RowsCapacity.of(step), page_size=page_size, device=DEVICE, counters_per_row=kv_heads
        )
        metadata.fill(step)
        return metadata


def attention_launches(
    pool: PagePool, metadata: RowsMetadata, query: torch.Tensor, kernel: Any, **options: Any
) -> list[Callable[[], None]]:
    settings = {"scaling": query.shape[2] ** -0.5, "softcap": None, "window": None, **options}
    out = torch.empty_like(query)
    return [
        partial(kernel, query, keys, values, pool.token_index, metadata, out, **settings)
        for keys, values in zip(pool.keys, pool.values, strict=True)
    ]


def bench_rows(bench: Bench) -> None:
    """Decode: one row per sequence; the floor is reading its K and V once."""
    plan = bench.plan
    for (model, shape), page_size, batch, live in itertools.product(
        plan.models.items(), plan.page_sizes, plan.batches, plan.live
    ):
        pool = bench.pool(shape, batch * (live + page_size), page_size)
        metadata = bench.metadata(bench.step(batch, live, 1, page_size), page_size, shape.kv_heads)
        query = torch.randn(batch, shape.heads, shape.dim, device=DEVICE, dtype=DTYPE)
        bench.add(
            "rows_attention",
            bench.time(attention_launches(pool, metadata, query, rows_attention)),
            floor=batch * live * shape.token_bytes / BANDWIDTH,
            model=model,
            batch=batch,
            live=live,
            page_size=page_size,
        )


def bench_tiles(bench: Bench) -> None:
    """Prefill chunks; the floor is the matrix work of the visible half."""
    for (model, shape), (num_rows, live) in itertools.product(
        bench.plan.models.items(), bench.plan.prefill
    ):
        page_size = bench.plan.page_sizes[-1]
        pool = bench.pool(shape, live + page_size, page_size)
        metadata = bench.metadata(bench.step(1, live, num_rows, page_size), page_size)
        query = torch.randn(num_rows, shape.heads, shape.dim, device=DEVICE, dtype=DTYPE)
        pairs = num_rows * live - num_rows * (num_rows - 1) // 2
        bench.add(
            "tiled_attention",
            bench.time(attention_launches(pool, metadata, query, tiled_attention)),
            floor=4 * pairs * shape.heads * shape.dim / FLOPS,
            model=model,
            rows=num_rows,
            live=live,
            page_size=page_size,
        )


def bench_store(bench: Bench) -> None:
    """One layer's keys and values of a step; the floor reads and writes them once."""
    for (model, shape), batch in itertools.product(bench.plan.models.items(), bench.plan.batches):
        page_size = bench.plan.page_sizes[-1]
        live = bench.plan.live[0]
        pool = bench.pool(shape, batch * (live + page_size), page_size)
        metadata = bench.metadata(bench.step(batch, live, 1, page_size), page_size)
        kv = torch.randn(batch, shape.kv_heads, shape.dim, device=DEVICE, dtype=DTYPE)
        launches = [
            partial(store_kv, kv, kv, k, v, pool.token_index, metadata)
            for k, v in zip(pool.keys, pool.values, strict=True)
        ]
        floor = 2 * batch * shape.token_bytes / BANDWIDTH
        bench.add("store_kv", bench.time(launches), floor=floor, model=model, batch=batch)


def bench_compact(bench: Bench) -> None:
    """All layers (or as many as fit), all sequences; the floor reads, writes each token once."""
    for (model, shape), batch, moves in itertools.product(
        bench.plan.models.items(), bench.plan.batches, bench.plan.moves
    ):
        num_slots = batch * moves * 4
        layers = min(shape.layers, MAX_POOL_BYTES // (num_slots * shape.token_bytes))
        kv = [
            torch.zeros(num_slots, shape.kv_heads, shape.dim, device=DEVICE, dtype=DTYPE)
            for _ in range(2 * layers)
        ]
        mover = SlotMover(kv, torch.zeros(num_slots, dtype=torch.long, device=DEVICE))
        target = [i * 4 * moves + j for i in range(batch) for j in range(moves)]
        source = [t + 3 * moves for t in target]
        packed = mover.pack(source, target, [moves] * batch)
        seconds = bench.time([partial(mover.launch, packed)])
        floor = 2 * len(source) * layers * shape.token_bytes / BANDWIDTH
        labels = {"model": model, "layers": layers, "batch": batch, "moves": moves}
        bench.add("compact", seconds, floor=floor, **labels)
        del kv, mover


def bench_sampling(bench: Bench) -> None:
    """All sampling kernels, peaked or Gaussian logits; the floor reads float32 ones once."""
    # Of Gaussian logits the nucleus is 10,000 ids, the hard case. Peaked ones have 40 candidates
    # above that, as a language model's mostly do.
    settings: dict[str, tuple[bool, dict[str, Any]]] = {
        "greedy": (False, {}),
        "temperature": (False, {"temperature": 0.8}),
        "top-p": (False, {"temperature": 0.8, "top_p": 0.95}),
        "top-k, top-p": (False, {"temperature": 0.8, "top_k": 50, "top_p": 0.95}),
        "top-p, peaked": (True, {"temperature": 0.6, "top_p": 0.95}),
        "top-k-p, peaked": (True, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
    }
    vocab = bench.plan.vocab
    for (name, (peaked, setting)), batch in itertools.product(settings.items(), bench.plan.batches):
        logits = torch.randn(batch, vocab, device=DEVICE) * 2.5
        if peaked:
            candidates = torch.linspace(12, 22, 40, device=DEVICE)
            logits.scatter_(
                1, torch.rand_like(logits).topk(40).indices, candidates.expand(batch, -1)
            )
        parameters = SamplingBatch(max_rows=batch, vocab_size=vocab, device=DEVICE)
        rows = [RowSampling(**setting, seed=i) for i in range(batch)]
        parameters.fill(rows)
        tokens = torch.zeros(batch, dtype=torch.long, device=DEVICE)
        valid = torch.zeros(batch, dtype=torch.bool, device=DEVICE)
        bench.add(
            "sample",
            bench.time([partial(sample, logits, parameters, tokens, valid)]),
            floor=batch * vocab * 4 / BANDWIDTH,
            settings=name,
            batch=batch,
            vocab=vocab,
        )


def bench_host(bench: Bench) -> None:
    """What the CPU does per step: filling metadata, packing moves; no floor."""
    shape = Shape(1, 1, 16, 1)
    for page_size, batch, live in itertools.product(
        bench.plan.page_sizes, bench.plan.batches, bench.plan.live
    ):
        step = bench.step(batch, live, 1, page_size)
        fill = partial(bench.metadata(step, page_size).fill, step)
        labels = {"batch": batch, "live": live, "page_size": page_size}
        bench.add("rows fill (host)", bench.host_time(fill), **labels)
    for batch in bench.plan.batches:
        labels = {"batch": batch, "live": 0, "page_size": 0}
        parameters = SamplingBatch(max_rows=batch, vocab_size=8, device=DEVICE)
        rows = [RowSampling(temperature=0.8, top_p=0.95, seed=i) for i in range(batch)]
        fill = partial(parameters.fill, rows)
        bench.add("sampling fill (host)", bench.host_time(fill), **labels)
        pool = bench.pool(shape, 20 * batch, 1)
        mover = SlotMover([*pool.keys, *pool.values], pool.token_index)
        slots = list(range(20 * batch))
        move = partial(mover.move, slots[10 * batch :], slots[: 10 * batch], [10] * batch)
        bench.add("compact (host)", bench.host_time(move), **labels)


BENCHMARKS = {
    "rows": bench_rows,
    "tiles": bench_tiles,
    "store": bench_store,
    "compact": bench_compact,
    "sample": bench_sampling,
    "host": bench_host,
}


def report(bench: Bench, seed: int) -> dict[str, Any]:
    return {
        **heading("bench_kernels", seed),
        "bandwidth_bytes_per_s": BANDWIDTH,
        "flops_per_s": FLOPS,
        "rows": bench.rows,
    }


def write(result: dict[str, Any], path: Path | None) -> None:
    """Write what there is so far: a kernel that fails does not take the others' times with it."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; works on a CPU")
    parser.add_argument("--sweep", action="store_true", help="launch settings of decode attention")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="kernels to time")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, help="write the JSON object here too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not ON_CUDA and not options.smoke:
        parser.error("no CUDA device: only --smoke runs here")
    plan = SMOKE if options.smoke else Plan({m: MODELS[m] for m in options.models})
    if options.sweep:
        from sweep_rows import Sweep

        configs = SMOKE_CONFIGS if options.smoke else ()
        plan = replace(plan, page_sizes=(16,), repeats=1 if options.smoke else 8, configs=configs)
    bench = Bench(plan, options.seed)
    extra = {"sweep": Sweep(bench).run()} if options.sweep else {}
    for name in [] if options.sweep else options.only or list(BENCHMARKS):
        print(f"-- {name}: {(BENCHMARKS[name].__doc__ or '').strip()}")
        BENCHMARKS[name](bench)
        if ON_CUDA:
            torch.cuda.empty_cache()
        write(report(bench, options.seed), options.output)
    result = {**report(bench, options.seed), **extra}
    write(result, options.output)
    if extra:  # the measurements of a sweep are too many for a line
        del extra["sweep"]["measurements"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
