"""Choose the launch settings of decode attention by measurement: `bench_kernels.py --sweep`.

First all settings at a few typical sizes; then the best of them, and the number of pieces, at all
sizes, with what one thing changes: a kernel of its own for storing, no programmatic dependent
launch; then lengths that differ. Times are of one layer in a CUDA graph of several. Kernels are
compiled beforehand, by a pool of processes. Rounds end when their time is up; what fails is noted
and left out.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lightthinker.attention.triton.launch import (
    MAX_SPLITS,
    RowsConfig,
    num_multiprocessors,
    num_splits,
    pdl_supported,
    rows_config,
)
from lightthinker.attention.triton.rows_attention import rows_attention
from lightthinker.attention.triton.store_kv import store_kv

if TYPE_CHECKING:
    from bench_kernels import Bench, Shape

MODELS = ("Qwen2.5-7B", "Qwen2.5-1.5B")
PROGRAMS = (1, 2, 3, 4, 6, 8)
"""Programs per multiprocessor that a number of splits aims at."""

SECONDS = (45.0, 35.0, 25.0)
"""Measuring time of each round, compilation not counted."""

CHANGES = ("no_pdl_us", "store_us")
"""No dependent launch; a kernel of its own for storing."""

NUM_FINALISTS = 4
MAX_WORKERS = 14
MAX_FAILURES_SHOWN = 6


def all_configs() -> list[RowsConfig]:
    """Return every setting of the first round."""
    shapes = [
        *itertools.product((32,), (2,), (3, 4), (None,)),
        *itertools.product((32,), (4,), (2, 3, 4), (None, 96)),
        *itertools.product((64,), (4,), (2, 3, 4), (None, 128)),
        *itertools.product((64,), (8,), (2, 3), (None, 80)),
    ]
    ahead = [
        RowsConfig(block_n=n, num_warps=w, num_stages=s, num_programs=1, max_registers=r)
        for n, w, s, r in shapes
    ]
    not_ahead = [
        dataclasses.replace(ahead[0], block_n=64, num_warps=4, num_stages=s, looks_ahead=False)
        for s in (3, 5)
    ]
    return [rows_config(128, 2, n, 132) for n in (1, 1024)] + [*not_ahead, *ahead]


def split_choices(num_pairs: int, live: int, block_n: int) -> list[int]:
    """Return numbers of splits that give about `PROGRAMS` programs per multiprocessor."""
    multiprocessors = num_multiprocessors(
        torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    most = min(MAX_SPLITS, math.ceil(live / block_n))
    wanted = {min(most, max(1, round(k * multiprocessors / num_pairs))) for k in PROGRAMS}
    if most in wanted:  # few rows: fewer, longer pieces may do
        wanted |= {max(1, most // 2), max(1, most // 4)}
    return sorted(wanted)


Task = tuple[RowsConfig, bool, bool]
"""What is compiled: settings, with dependent launch or not, storing inside or not."""


class Size:
    """Buffers of one size of step.

    Args:
        bench: What knows how to time.
        model: Name of the shape.
        shape: Heads and their sizes.
        batch: Sequences, one row each.
        live: Live tokens of each.
        page_size: Tokens per page.
        lengths: Live tokens of each, where they differ; `live` is their mean.
    """

    def __init__(
        self,
        bench: Bench,
        model: str,
        shape: Shape,
        batch: int,
        live: int,
        page_size: int,
        lengths: list[int] | None = None,
    ):
        self.bench, self.shape = bench, shape
        self.batch, self.live = batch, live
        self.labels = {"model": model, "batch": batch, "live": live, "page_size": page_size}
        self.floor = batch * live * shape.token_bytes / 3.0e12
        self.pool = bench.pool(shape, sum(lengths or [batch * live]) + batch * page_size, page_size)
        step = bench.ragged_step(lengths or [live] * batch, 1, page_size)
        self.metadata = bench.metadata(step, page_size, shape.kv_heads)
        like = self.pool.keys[0]
        self.query = torch.randn(
            batch, shape.heads, shape.dim, device=like.device, dtype=like.dtype
        )
        self.between = torch.zeros(1024, device=like.device)
        self.kv = torch.randn(
            batch, shape.kv_heads, shape.dim, device=like.device, dtype=like.dtype
        )

    @property
    def name(self) -> str:
        """Short label of a table's column."""
        return f"{self.labels['model'][8:]}/{self.batch}/{self.live}"

    def splits(self, config: RowsConfig) -> list[int]:
        """Return the numbers of splits worth a try."""
        return split_choices(self.batch * self.shape.kv_heads, self.live, config.block_n)

    def attend(
        self, config: RowsConfig, splits: int, pdl: bool, out: torch.Tensor, *, stores: bool = False
    ) -> list[Any]:
        """Return one launch per layer."""
        return [
            partial(
                rows_attention,
                self.query, keys, values, self.pool.token_index, self.metadata, out,
                scaling=self.shape.dim**-0.5, softcap=None, window=None,
                splits=splits, config=config, pdl=pdl, store=(self.kv, self.kv) if stores else None,
            )
            for keys, values in zip(self.pool.keys, self.pool.values, strict=True)
        ]  # fmt: skip

    def layers(
        self, config: RowsConfig, splits: int, pdl: bool, out: torch.Tensor, *, stores: bool
    ) -> list[Any]:
        """Return one call per layer: a short kernel, as RoPE's; store, if apart; attend."""

        def layer(attend: Callable[[], None], keys: torch.Tensor, values: torch.Tensor) -> None:
            self.between.add_(1.0)
            index = self.pool.token_index
            if not stores:
                store_kv(self.kv, self.kv, keys, values, index, self.metadata, pdl=pdl)
            attend()

        attends = self.attend(config, splits, pdl, out, stores=stores)
        return [
            partial(layer, *each)
            for each in zip(attends, self.pool.keys, self.pool.values, strict=True)
        ]


def compile_for(bench: Bench, shape: Shape, page_size: int, tasks: list[Task]) -> None:
    """Compile settings by running them once on a tiny step (in a process of the pool)."""
    size = Size(bench, "compiling", shape, 2, 40, page_size)
    out = torch.empty_like(size.query)
    for config, pdl, stores in tasks:
        with suppress(Exception):  # it fails again, and is noted, where it is measured
            size.layers(config, 2, pdl, out, stores=stores)[0]()


def _work(shape_items: dict[str, int], page_size: int, tasks: list[Task]) -> None:
    from bench_kernels import Bench, Plan, Shape

    shape = Shape(**shape_items)
    compile_for(Bench(Plan({"compiling": shape}), 0), shape, page_size, tasks)


class Sweep:
    """The rounds, and what they found.

    Args:
        bench: What knows how to time, and its plan the models and sizes.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.rows: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.page_size = bench.plan.page_sizes[0]
        self.on_cuda = torch.cuda.is_available()
        self.pdl = pdl_supported(torch.device("cuda", 0)) if self.on_cuda else False
        self._workers: ProcessPoolExecutor | None = None

    def run(self) -> dict[str, Any]:
        """Measure everything; returns the best per size."""
        plan = self.bench.plan
        started = time.perf_counter()
        gc.freeze()  # torch may collect garbage before each of a thousand captures
        if self.on_cuda:
            self._workers = ProcessPoolExecutor(
                max(1, min(MAX_WORKERS, (os.cpu_count() or 2) - 1)),
                mp_context=multiprocessing.get_context("spawn"),
            )
        models = {m: plan.models[m] for m in MODELS if m in plan.models} or plan.models
        configs = list(plan.configs or all_configs())
        self._compile(models.values(), [(c, False, True) for c in configs])
        typical = [
            (model, batch, plan.live[len(plan.live) // 2])
            for model, batch in itertools.product(models, plan.batches[:3])
        ]
        finalists = self._first_round(models, typical, configs)
        variants = [v for c in finalists for v in _variants(c, self.pdl)]
        self._compile(
            models.values(), [*variants, *((c, self.pdl, True) for c in all_configs()[:2])]
        )
        best = self._final_rounds(models, finalists)
        self._ragged_round(models, finalists[0])
        gc.unfreeze()
        if self._workers:
            self._workers.shutdown(wait=False, cancel_futures=True)
        for failure in self.failures[:MAX_FAILURES_SHOWN]:
            print("failed:", failure[:150])
        print(f"{len(self.failures)} failed; {time.perf_counter() - started:.0f} s")
        return {"best": best, "failures": self.failures, "measurements": self.rows}

    def _compile(self, shapes: Iterable[Shape], tasks: list[Task]) -> None:
        if self._workers is None:
            return
        begin = time.perf_counter()
        shares = [tasks[i::MAX_WORKERS] for i in range(MAX_WORKERS)]
        futures = [
            self._workers.submit(_work, dataclasses.asdict(shape), self.page_size, share)
            for shape, share in itertools.product(shapes, shares)
            if share
        ]
        for future in futures:
            try:
                future.result(timeout=90)
            except Exception as error:  # what is missing compiles where it is measured
                self.failures.append(f"compiling: {error!r}")
        print(f"compiled {len(tasks)} settings per model in {time.perf_counter() - begin:.0f} s")

    def _measure(
        self, size: Size, config: RowsConfig, splits: int, *, pdl: bool, stores: bool | None
    ) -> float:
        """Return seconds per layer (of attention alone: `stores` None); infinite if it fails."""
        out = torch.empty_like(size.query)
        if stores is None:
            calls = size.attend(config, splits, pdl, out, stores=True)
        else:
            calls = size.layers(config, splits, pdl, out, stores=stores)
        labels = {**size.labels, **dataclasses.asdict(config), "splits": splits, "pdl": pdl}
        try:
            seconds = self.bench.time(calls)
        except Exception as error:  # one setting of many: out of shared memory, say
            self.failures.append(f"{_label(config)} splits {splits}: {error!r}")
            return math.inf
        self.rows.append({**labels, "stores": stores, "time_us": round(seconds * 1e6, 2)})
        return seconds

    def _first_round(
        self,
        models: dict[str, Shape],
        sizes: list[tuple[str, int, int]],
        configs: list[RowsConfig],
    ) -> list[RowsConfig]:
        """Measure all settings at the typical sizes; returns those that do best over all."""
        times: dict[RowsConfig, list[float]] = {config: [] for config in configs}
        names, share = [], SECONDS[0] / len(sizes)
        for model, batch, live in sizes:
            size = Size(self.bench, model, models[model], batch, live, self.page_size)
            names.append(size.name)
            end = time.perf_counter() + share
            for config in configs:
                late = time.perf_counter() > end
                found = [
                    self._measure(size, config, splits, pdl=False, stores=None)
                    for splits in ([] if late else size.splits(config))
                ]
                times[config].append(min(found, default=math.inf))
        best = [min(column) for column in zip(*times.values(), strict=True)]
        ratios = {
            config: [t / b if b < math.inf else 1.0 for t, b in zip(column, best, strict=True)]
            for config, column in times.items()
        }
        ranked = sorted(configs, key=lambda c: math.prod(min(r, 9.0) for r in ratios[c]))
        print("attention, us of the best, each over it: block, warps, stages, ahead, registers")
        print(f"{'':23s}" + "".join(f"{name:>14s}" for name in names))
        print(f"{'best':23s}" + "".join(f"{t * 1e6:14.1f}" for t in best))
        for config in ranked:
            print(f"{_label(config):23s}" + "".join(f"{r:14.2f}" for r in ratios[config]))
        winners = [min(configs, key=lambda c: ratios[c][i]) for i in range(len(sizes))]
        return list(dict.fromkeys([*ranked[:NUM_FINALISTS], *winners]))[: NUM_FINALISTS + 3]

    def _final_rounds(
        self, models: dict[str, Shape], finalists: list[RowsConfig]
    ) -> list[dict[str, Any]]:
        plan, best_rows = self.bench.plan, []
        sizes = list(itertools.product(models, plan.batches, plan.live))
        print("a short kernel and attention, us: as by default, the best, one thing changed")
        print(
            f"{'':15s}{'floor':>8s}{'default':>8s}{'best':>8s}  {'settings':23s}{'splits':>6s}"
            "  no pdl  store"
        )
        begin = time.perf_counter()
        for number, (model, batch, live) in enumerate(sizes, 1):
            size = Size(self.bench, model, models[model], batch, live, self.page_size)
            end = begin + sum(SECONDS[1:]) * number / len(sizes)
            row = self._final(size, finalists, end)
            best_rows.append(row)
            print(
                f"{size.name:15s}{size.floor * 1e6:8.1f}{row['default_us']:8.1f}"
                f"{row['best_us']:8.1f}  {row['settings']:23s}{row['splits']:6d}"
                + "".join(f"{row[k]:8.1f}" for k in CHANGES),
                flush=True,
            )
        return best_rows

    def _final(self, size: Size, finalists: list[RowsConfig], end: float) -> dict[str, Any]:
        """Find a size's best settings among the finalists, and what single changes do to it."""
        multiprocessors = num_multiprocessors(size.query.device)
        pairs = size.batch * size.shape.kv_heads
        config = rows_config(size.shape.dim, size.query.itemsize, pairs, multiprocessors)
        splits = num_splits(config, pairs, multiprocessors)
        default = self._measure(size, config, splits, pdl=self.pdl, stores=True)
        found: dict[tuple[RowsConfig, int], float] = {}
        for config in finalists:
            for splits in size.splits(config):
                if not found or time.perf_counter() < end:
                    found[config, splits] = self._measure(
                        size, config, splits, pdl=self.pdl, stores=True
                    )
        config, splits = min(found, key=lambda key: found[key])
        layer = partial(self._measure, size, splits=splits)
        changed = {
            "no_pdl_us": layer(config=config, pdl=False, stores=True),
            "store_us": layer(config=config, pdl=self.pdl, stores=False),
        }
        self._check(size, config, splits)
        return {
            **size.labels,
            "floor_us": round(size.floor * 1e6, 2),
            "default_us": round(default * 1e6, 2),
            "best_us": round(found[config, splits] * 1e6, 2),
            "settings": _label(config),
            "splits": splits,
            **{name: round(seconds * 1e6, 2) for name, seconds in changed.items()},
        }

    def _ragged_round(self, models: dict[str, Shape], config: RowsConfig) -> None:
        """Measure numbers of splits where lengths differ, as in staggered requests."""
        plan = self.bench.plan
        live = plan.live[len(plan.live) // 2]
        print(
            f"lengths from {live // 16} to {2 * live - live // 16}, {_label(config)}: us at splits"
        )
        for model, batch in itertools.product(models, plan.batches[-3:]):
            spread = range(live // 16, 2 * live - live // 16 + 1)
            lengths = [self.bench.random.choice(spread) for _ in range(batch)]
            size = Size(self.bench, model, models[model], batch, live, self.page_size, lengths)
            size.labels["ragged"] = True
            times = {
                splits: self._measure(size, config, splits, pdl=self.pdl, stores=True)
                for splits in sorted({*size.splits(config), 1, 2, 4, 8})
            }
            found = "  ".join(f"{splits}: {t * 1e6:.1f}" for splits, t in times.items())
            print(f"{size.name:15s} mean {sum(lengths) / batch:.0f}  {found}", flush=True)

    def _check(self, size: Size, config: RowsConfig, splits: int) -> None:
        """Dependent launch must change nothing."""
        outs = []
        for pdl in (self.pdl, False):
            outs.append(torch.empty_like(size.query))
            with suppress(Exception):  # noted where it was measured
                for call in size.attend(config, splits, pdl, outs[-1], stores=True):
                    call()
        if not torch.equal(*outs):
            error = float((outs[0].float() - outs[1].float()).abs().max())
            self.failures.append(f"{size.name} {_label(config)}: results differ by {error}")


def _variants(config: RowsConfig, pdl: bool) -> Iterator[Task]:
    yield config, pdl, True
    yield config, False, True
    yield config, pdl, False


def _label(config: RowsConfig) -> str:
    ahead = "ahead" if config.looks_ahead else "-"
    sizes = f"{config.block_n} {config.num_warps} {config.num_stages}"
    return f"{sizes} {ahead} {config.max_registers or ''}"
