"""The decode step's matmuls: our kernels with several launch settings against cuBLAS.

Every measurement is a CUDA graph that goes through more than 200 MB of distinct weights, so that
none is in the L2 cache, replayed a few times. cuBLAS's time includes what it needs besides: adding
up a matmul that it splits, and the kernel that activates and multiplies the MLP's halves. `chain`
is decoder layers without attention, all of it in one graph, with programmatic dependent launch on
and off. A setting that cannot run (too much shared memory, say) is skipped; `--seconds` bounds the
sweep, and what it leaves out is said. Prints tables and, as the last line, one JSON object.

    python benchmarks/bench_linear.py --output results/bench_linear.json
    python benchmarks/bench_linear.py --smoke     # seconds, on a CPU, in the interpreter
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from kernel_report import heading
from torch.nn import functional as F

from lightthinker.attention.triton.launch import next_power_of_two
from lightthinker.attention.triton.linear import gated_linear, skinny_linear
from lightthinker.attention.triton.linear_launch import LinearConfig

ON_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CUDA else "cpu")
DTYPE = torch.bfloat16 if ON_CUDA else torch.float32
BANDWIDTH = 3.0e12
CYCLED_BYTES = 220e6
TIMED_BYTES = 600e6
MAX_LAUNCHES = 96
NUM_PROGRAMS = (132, 264, 396, 528)
"""How many programs there should be: one to four a multiprocessor."""

MAX_SPLITS = 16
PREFETCHED = (0, 128)
TOLERANCE = 0.02
"""Largest error, over the largest value, of settings that count: bf16 rounds by up to 0.004."""

Settings = tuple[int, int, int, int]  # block_n, block_k, num_warps, num_stages
SETTINGS: dict[int, tuple[Settings, ...]] = {
    16: (
        (64, 128, 4, 4),
        (64, 128, 4, 3),
        (64, 128, 4, 6),
        (64, 256, 4, 3),
        (64, 64, 4, 6),
        (64, 256, 4, 5),
        (64, 128, 4, 2),
    ),
    32: ((64, 128, 4, 4), (64, 128, 4, 3), (64, 64, 4, 6), (64, 256, 4, 3), (128, 128, 4, 3)),
    64: ((64, 128, 4, 3), (128, 64, 4, 4), (128, 128, 8, 4), (64, 64, 4, 5)),
    128: ((128, 64, 8, 3), (128, 64, 8, 6), (128, 64, 4, 3), (256, 64, 8, 4), (64, 64, 4, 4)),
}
"""Settings by rows, rounded up."""


@dataclass(frozen=True)
class Layer:
    """One matmul of a model: outputs of either half if it has a gate."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False
    gated: bool = False

    @property
    def weight_rows(self) -> int:
        """Rows of its weight."""
        return self.outputs * (2 if self.gated else 1)

    @property
    def num_bytes(self) -> int:
        """Bytes of its weight."""
        return self.weight_rows * self.inputs * DTYPE.itemsize


MODELS = {
    "Qwen2.5-7B": (
        Layer("gate_up", 18_944, 3584, gated=True),
        Layer("down", 3584, 18_944),
        Layer("qkv", 4608, 3584, bias=True),
        Layer("o", 3584, 3584),
        Layer("lm_head", 152_064, 3584),
    ),
    "Qwen2.5-1.5B": (
        Layer("gate_up", 8960, 1536, gated=True),
        Layer("down", 1536, 8960),
        Layer("qkv", 2048, 1536, bias=True),
        Layer("o", 1536, 1536),
        Layer("lm_head", 151_936, 1536),
    ),
}
TINY = {
    "tiny": (
        Layer("gate_up", 80, 48, gated=True),
        Layer("down", 48, 80),
        Layer("qkv", 96, 48, bias=True),
        Layer("o", 48, 48),
    )
}


def block_t(num_rows: int) -> int:
    return max(16, next_power_of_two(num_rows))


def config_of(settings: Settings, splits: int) -> LinearConfig:
    block_n, block_k, num_warps, num_stages = settings
    return LinearConfig(
        block_n=block_n,
        block_k=block_k,
        num_warps=num_warps,
        num_stages=num_stages,
        splits=splits,
        pdl=False,
    )


def ours(layer: Layer, config: LinearConfig, x: Any, weight: Any, bias: Any) -> torch.Tensor:
    if layer.gated:
        return gated_linear(x, weight, bias, "silu", config)
    return skinny_linear(x, weight, bias, config)


def without_bias(layer: Layer, config: LinearConfig, x: Any, weight: Any, _: Any) -> torch.Tensor:
    return ours(layer, config, x, weight, None)


def multiplied_halves(y: torch.Tensor) -> torch.Tensor:
    gate, up = y.chunk(2, dim=-1)
    return F.silu(gate) * up


Job = tuple[bool, bool, int, LinearConfig]  # gated, has a bias, rows, settings


def compile_one(job: Job) -> tuple[Job, str | None]:
    """Compile one kernel by running it; Triton's cache on disk has it afterwards."""
    gated, has_bias, num_rows, config = job
    try:
        layer = Layer("", config.block_n, 2 * config.block_k, has_bias, gated)
        x = torch.zeros(num_rows, layer.inputs, device="cuda", dtype=torch.bfloat16)
        weight = x.new_zeros(layer.weight_rows, layer.inputs)
        bias = x.new_zeros(layer.weight_rows) if has_bias else None
        ours(layer, config, x, weight, bias)
        torch.cuda.synchronize()
    except Exception as error:
        return job, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return job, None


def compile_all(jobs: list[Job], seconds: float) -> dict[Job, str | None]:
    """Compile in parallel processes; what is not done in time is left to the sweep."""
    results: dict[Job, str | None] = {}
    deadline = time.monotonic() + seconds
    num_workers = min(14, os.cpu_count() or 1)
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        done = pool.imap_unordered(compile_one, jobs)
        try:
            for _ in jobs:
                job, problem = done.next(timeout=max(0.1, deadline - time.monotonic()))
                results[job] = problem
                if problem:
                    print(f"skipped {job}: {problem}")
        except Exception as error:
            print(f"compiling in parallel ended early: {error!r}")
    return results


def graph_seconds(launches: list[Callable[[], Any]], replays: int = 6) -> float:
    """Return seconds of one pass over the launches."""
    if not ON_CUDA:
        start = time.perf_counter()
        for launch in launches:
            launch()
        return time.perf_counter() - start
    launches[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays // 2):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / (replays // 2))
    return statistics.median(times)


class Case:
    """One layer's weights, and how long a launch of some function takes over them."""

    def __init__(self, layer: Layer):
        self.layer = layer
        num_weights = max(1, -(-int(CYCLED_BYTES) // layer.num_bytes)) if ON_CUDA else 1
        scale = layer.inputs**-0.5
        shape = (num_weights, layer.weight_rows, layer.inputs)
        self.weights = torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_(0, scale)
        self.bias = (
            torch.randn(layer.weight_rows, device=DEVICE, dtype=DTYPE) if layer.bias else None
        )
        wanted = max(num_weights, int(TIMED_BYTES // layer.num_bytes) + 1)
        self.num_launches = min(max(num_weights, MAX_LAUNCHES), wanted) if ON_CUDA else 1

    def seconds(self, call: Callable[[Any, Any, Any], Any], x: torch.Tensor) -> float:
        """Return seconds a call."""
        weights = self.weights
        launches = [
            partial(call, x, weights[i % len(weights)], self.bias) for i in range(self.num_launches)
        ]
        return graph_seconds(launches) / self.num_launches

    def error(self, config: LinearConfig, x: torch.Tensor) -> float:
        """Largest error over the largest value, against float32."""
        got, again = (ours(self.layer, config, x, self.weights[-1], self.bias) for _ in range(2))
        if not torch.equal(got, again):
            print(f"NOT THE SAME twice: {config}")
        got = got.float()
        exact = F.linear(
            x.float(),
            self.weights[-1].float(),
            None if self.bias is None else self.bias.float(),
        )
        if self.layer.gated:
            exact = multiplied_halves(exact)
        assert not got.isnan().any()
        return float((got - exact).abs().max() / exact.abs().max())


def candidates(layer: Layer, num_rows: int) -> list[LinearConfig]:
    """Return all settings, with numbers of pieces that make one to four programs each."""
    found = []
    for settings in SETTINGS[block_t(num_rows)]:
        num_tiles = -(-layer.weight_rows // settings[0])
        most = min(MAX_SPLITS, max(1, layer.inputs // settings[1] // 4))
        splits = {min(most, max(1, round(n / num_tiles))) for n in (num_tiles, *NUM_PROGRAMS)}
        found += [config_of(settings, s) for s in sorted(splits)]
    return found


def sweep(plan: Plan, problems: dict[Job, str | None], deadline: float) -> list[dict[str, Any]]:
    """Return one row per layer and number of rows, with the best settings."""
    rows: list[dict[str, Any]] = []
    combined = multiplied_halves
    if ON_CUDA:
        combined = torch.compile(multiplied_halves, dynamic=True)
    columns = ("model", "layer", "rows", "floor_us", "library_us", "best_us")
    columns += ("gain", "error")
    for model, layers in plan.models.items():
        for layer in layers:
            case = Case(layer)
            floor = layer.num_bytes / BANDWIDTH
            print(
                "".join(f"{name:>13s}" for name in columns),
                " settings (N K warps stages splits)",
            )
            for num_rows in plan.num_rows:
                if time.monotonic() > deadline:
                    print(f"out of time: {model} {layer.name} {num_rows} left out")
                    continue
                x = torch.randn(num_rows, layer.inputs, device=DEVICE, dtype=DTYPE)

                def library(x: Any, weight: Any, bias: Any, gated: bool = layer.gated) -> Any:
                    y = F.linear(x, weight, bias)
                    return combined(y) if gated else y

                row: dict[str, Any] = {
                    "model": model,
                    "layer": layer.name,
                    "rows": num_rows,
                    "floor_us": round(floor * 1e6, 2),
                    "library_us": round(case.seconds(library, x) * 1e6, 2),
                }
                timed: list[tuple[float, LinearConfig]] = []
                for config in candidates(layer, num_rows):
                    job = (layer.gated, False, block_t(num_rows), config)
                    if problems.get(job) or time.monotonic() > deadline + 15:
                        continue
                    try:
                        seconds = case.seconds(partial(without_bias, layer, config), x)
                        timed.append((seconds, config))
                    except Exception as error:
                        print(f"skipped {config}: {error!r}"[:200])
                timed.sort(key=lambda pair: pair[0])
                rows.append(row)
                errors = [case.error(config, x) for _, config in timed[:3]]
                right = [i for i, error in enumerate(errors) if error < plan.tolerance]
                if len(right) < len(errors):
                    print(f"WRONG: {list(zip(errors, timed))}")
                if not right:
                    continue
                error, (seconds, config) = errors[right[0]], timed[right[0]]
                row |= {
                    "best_us": round(seconds * 1e6, 2),
                    "gain": round(row["library_us"] / seconds / 1e6, 3),
                    "error": round(error, 5),
                    "config": asdict(config),
                    "others": [
                        [round(s * 1e6, 2), *list(asdict(c).values())[:5]] for s, c in timed[:8]
                    ],
                }
                print("".join(f"{row[name]!s:>13s}" for name in columns), " ", end="")
                print(*list(row["config"].values())[:5], "| next", *row["others"][1:4], flush=True)
            del case
            if ON_CUDA:
                torch.cuda.empty_cache()
    return rows


def best_configs(
    rows: list[dict[str, Any]], model: str, num_rows: int
) -> dict[str, LinearConfig | None]:
    """Return the settings of each layer, None where the library is faster."""
    return {
        row["layer"]: LinearConfig(**row["config"]) if row["gain"] > 1 else None
        for row in rows
        if row["model"] == model and row["rows"] == num_rows and "config" in row
    }


def dependent(config: LinearConfig | None, prefetched: int) -> LinearConfig | None:
    return config and replace(config, pdl=True, prefetched=prefetched)


def rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    residual = x + residual
    wide = residual.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype), residual


class Chain:
    """Layers of qkv, o, norm, gate_up, down, norm; a small kernel takes attention's place."""

    def __init__(self, layers: dict[str, Layer], num_layers: int):
        self.layers = layers
        self.num_layers = num_layers
        self.weights = {
            name: torch.empty(
                num_layers, layer.weight_rows, layer.inputs, device=DEVICE, dtype=DTYPE
            ).normal_(0, layer.inputs**-0.5)
            for name, layer in layers.items()
        }
        self.hidden = layers["o"].outputs
        self.bias = torch.zeros(layers["qkv"].outputs, device=DEVICE, dtype=DTYPE)
        self.ones = torch.ones(self.hidden, device=DEVICE, dtype=DTYPE)

    def run(
        self,
        start: torch.Tensor,
        small: tuple[Callable[..., Any], Callable[..., Any]],
        configs: dict[str, LinearConfig | None],
    ) -> torch.Tensor:
        """Forward, with our kernels where there are settings for them."""
        norm, act = small
        x, residual = start, torch.zeros_like(start)

        def matmul(name: str, layer: int, x: torch.Tensor) -> torch.Tensor:
            weight, bias = self.weights[name][layer], self.bias if name == "qkv" else None
            config = configs.get(name)
            if config:
                return ours(self.layers[name], config, x, weight, bias)
            y = F.linear(x, weight, bias)
            return act(y) if self.layers[name].gated else y

        for i in range(self.num_layers):
            x, residual = norm(x, residual, self.ones)
            qkv = matmul("qkv", i, x)
            x = matmul("o", i, norm(qkv[:, : self.hidden], residual, self.ones)[0])
            x, residual = norm(x, residual, self.ones)
            x = matmul("down", i, matmul("gate_up", i, x))
        return x


def time_chain(plan: Plan, rows: list[dict[str, Any]], deadline: float) -> list[dict[str, Any]]:
    """Return ms a layer, with dependent launch of our kernels and of Inductor's, or without."""
    results: dict[tuple[str, int], dict[str, Any]] = {}
    has_flag = hasattr(torch._inductor.config.triton, "enable_pdl")
    print(f"hasattr(torch._inductor.config.triton, 'enable_pdl'): {has_flag}")
    for model, layers in plan.models.items():
        by_name = {layer.name: layer for layer in layers if layer.name != "lm_head"}
        num_layers = (4 if by_name["down"].num_bytes > 50e6 else 8) if ON_CUDA else 1
        chain = Chain(by_name, num_layers)
        expected: dict[int, torch.Tensor] = {}
        for flag in (False, True) if has_flag else (False,):
            small: Any = (rms_norm, multiplied_halves)
            if ON_CUDA:
                torch._dynamo.reset()
                if has_flag:
                    torch._inductor.config.triton.enable_pdl = flag
                small = tuple(torch.compile(f) for f in small)
            for num_rows in plan.chain_rows:
                best = best_configs(rows, model, num_rows)
                if not by_name.keys() <= best.keys():
                    print(f"no settings for the chain of {model}, {num_rows} rows")
                    continue
                row = results.setdefault((model, num_rows), {"model": model, "rows": num_rows})
                torch.manual_seed(num_rows)
                start = torch.randn(num_rows, chain.hidden, device=DEVICE, dtype=DTYPE)
                variants: dict[str, Any] = {"library": {}, "ours": best} | {
                    f"ours+pdl{amount}": {n: dependent(c, amount) for n, c in best.items()}
                    for amount in PREFETCHED
                }
                for label, configs in variants.items():
                    if time.monotonic() > deadline:
                        print("out of time: the rest of the chain is left out")
                        return list(results.values())
                    label += "+inductor_pdl" * flag
                    try:
                        launch = partial(chain.run, start, small, configs)
                        seconds = graph_seconds([launch], replays=20) / num_layers
                        row[label] = round(seconds * 1e3, 5)
                        result = launch().float()
                        expected.setdefault(num_rows, result)
                        error = (result - expected[num_rows]).norm() / expected[num_rows].norm()
                        row[f"difference:{label}"] = round(float(error), 5)
                    except Exception:
                        row.setdefault(label, None)
                        print(f"chain {label} failed:\n{traceback.format_exc(limit=3)[-600:]}")
                print(f"chain, ms a layer: {row}", flush=True)
        del chain
        if ON_CUDA:
            torch.cuda.empty_cache()
    return list(results.values())


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured."""

    models: dict[str, tuple[Layer, ...]]
    num_rows: tuple[int, ...] = (1, 32, 128, 64)
    chain_rows: tuple[int, ...] = (1, 32, 128)
    tolerance: float = TOLERANCE


SMOKE = Plan(TINY, (20,), (20,))


def report(rows: Any, chains: Any, seed: int) -> dict[str, Any]:
    return {
        **heading("bench_linear", seed),
        "bandwidth_bytes_per_s": BANDWIDTH,
        "rows": rows,
        "chain_ms_per_layer": chains,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; works on a CPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=100, help="bound of the sweep")
    parser.add_argument("--output", type=Path, help="write the JSON object here too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not ON_CUDA and not options.smoke:
        parser.error("no CUDA device: only --smoke runs here")
    plan = SMOKE if options.smoke else Plan({m: MODELS[m] for m in options.models})
    begin = time.monotonic()
    torch.manual_seed(options.seed)
    problems: dict[Job, str | None] = {}
    jobs = {
        (layer.gated, False, block_t(num_rows), config)
        for layers in plan.models.values()
        for layer in layers
        for num_rows in plan.num_rows
        for config in candidates(layer, num_rows)
    }
    if ON_CUDA:
        problems = compile_all(list(jobs), 0.5 * options.seconds)
        print(f"{len(problems)} of {len(jobs)} kernels in {time.monotonic() - begin:.0f} s")
    gc.freeze()  # Capturing a graph collects garbage each time.
    rows = sweep(plan, problems, begin + options.seconds)
    print(f"swept in {time.monotonic() - begin:.0f} s")
    jobs = {
        (layer.gated, layer.bias, block_t(num_rows), with_pdl)
        for model, layers in plan.models.items()
        for layer in layers
        for num_rows in plan.chain_rows
        for config in [best_configs(rows, model, num_rows).get(layer.name)]
        for with_pdl in [config, *(dependent(config, amount) for amount in PREFETCHED)]
        if with_pdl and layer.name != "lm_head"
    }
    if ON_CUDA:
        compile_all(list(jobs), 30)
    chains = time_chain(plan, rows, begin + 1.6 * options.seconds)
    gc.unfreeze()
    result = report(rows, chains, options.seed)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
