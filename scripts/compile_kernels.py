"""Compile every kernel for an H100 (sm_90) without a GPU and show what the PTX holds.

Our launchers launch, given small CPU tensors; `lightthinker.testing.compiling` turns launches into
compilations. One line per kernel: programs wanted at a time on a multiprocessor, and how many fit;
registers of a thread and bytes of stack that they spill to, shared memory, 16-byte asynchronous
copies, tensor-core instructions, wide loads and stores, atomics that order memory, and whether it
waits for earlier kernels (dependent launch) before it touches memory. The last line is JSON; what
does not compile is named there.

    python scripts/compile_kernels.py [--only WORD]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton

from lightthinker.attention.triton.launch import rows_config
from lightthinker.attention.triton.linear import gated_linear, gated_product, skinny_linear
from lightthinker.attention.triton.linear_launch import LinearConfig, linear_config
from lightthinker.attention.triton.observe import observe_rows
from lightthinker.attention.triton.sample import sample
from lightthinker.attention.triton.sampling_batch import SamplingBatch
from lightthinker.attention.triton_backend import TritonBackend
from lightthinker.kvcache.pool import LayerShape, PagePool
from lightthinker.testing.attention import AttentionCase, attention_case
from lightthinker.testing.compiling import (
    NUM_MULTIPROCESSORS,
    CompiledLaunch,
    compiling_for_h100,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PROMPT_ROWS = 40
"""More than make a tile."""


class Shape(NamedTuple):
    """A layer's attention.

    `steps` are numbers of decoding sequences: n alone, -n beside a prompt, 0 for one beside it.
    """

    heads: int
    kv_heads: int
    dim: int
    value_dim: int | None = None
    page_size: int = 16
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = BF16
    steps: tuple[int, ...] = (1,)


# Small and large groups each with and without a window, storing (a step without a prompt) and not:
# a name may be missing on one of these paths alone.
SHAPES = {
    "Qwen2.5-1.5B": Shape(12, 2, 128, steps=(1, 0)),
    "Qwen2.5-7B": Shape(28, 4, 128, steps=(128,)),
    "Llama-8B": Shape(32, 8, 128, steps=(128, -128)),
    "Gemma2-9B": Shape(16, 8, 256, window=4096, softcap=50.0, steps=(1, 0)),
    "Gemma2-9B fp32": Shape(16, 8, 256, window=4096, softcap=50.0, dtype=FP32),
    "groups of 1 fp16": Shape(4, 4, 64, dtype=FP16),
    "heads of 80, pages of 48": Shape(4, 4, 80, page_size=48, window=100),
    "groups of 6 fp32": Shape(6, 1, 64, page_size=32, dtype=FP32),
    "groups of 16, pages of 1": Shape(16, 1, 128, page_size=1),
    "groups of 16 fp32": Shape(16, 1, 64, dtype=FP32, window=100, steps=(1, 0)),
    "groups of 24": Shape(24, 1, 128),
    "groups of 24 fp16, heads of 96": Shape(24, 1, 96, dtype=FP16, steps=(0,)),
    "values of 128": Shape(12, 2, 192, value_dim=128, dtype=FP16, steps=(0,)),
}


class Case(NamedTuple):
    """Something that launches kernels; `programs` of `rows_kernel` are wanted at a time."""

    name: str
    launch: Callable[[], object]
    programs: int = 1


def attend(case: AttentionCase, shape: Shape) -> None:
    """Forward one layer's step, as the engine does."""
    backend = TritonBackend(case.pool)
    backend.prepare(case.batch)
    backend.attend(
        0, case.query, case.key, case.value,
        scaling=0.1, softcap=shape.softcap, window=shape.window,
    )  # fmt: skip


def attention_cases() -> Iterator[Case]:
    for model, shape in SHAPES.items():
        for batch in shape.steps:
            prompt = [(PROMPT_ROWS, PROMPT_ROWS)] if batch <= 0 else []
            sequences = prompt + [(3, 1)] * (abs(batch) or 1)
            case = attention_case(
                sequences, num_heads=shape.heads, num_kv_heads=shape.kv_heads, key_dim=shape.dim,
                value_dim=shape.value_dim, page_size=shape.page_size, dtype=shape.dtype,
            )  # fmt: skip
            size = max(shape.dim, shape.value_dim or 0), shape.dtype.itemsize
            config = rows_config(*size, (abs(batch) or 1) * shape.kv_heads, NUM_MULTIPROCESSORS)
            step = f"batch {abs(batch)}" if batch else "one sequence"
            step += " with a prompt" if prompt else ""
            launch = partial(attend, case, shape)
            yield Case(f"{model} {step}", launch, config.num_programs)


def linear_cases() -> Iterator[Case]:
    """The engine's settings where it has any, and those that only a sweep tries."""
    split = LinearConfig(block_k=64, splits=4, pdl=True, prefetched=128)
    for rows, outputs, inputs, config in (
        (16, 151_936, 1536, None),
        (64, 151_936, 1536, None),
        (16, 3584, 18_944, None),
        (128, 1536, 1536, split),
    ):
        weight, x = torch.empty(outputs, inputs, dtype=BF16), torch.empty(rows, inputs, dtype=BF16)
        config = config or linear_config(rows, outputs, inputs)
        assert config is not None
        bias = torch.empty(outputs, dtype=BF16) if outputs < 100_000 else None
        name = f"{rows} rows of {outputs} x {inputs}"
        yield Case(name, partial(skinny_linear, x, weight, bias, config))
    for rows, outputs, inputs, activation, config in (
        (16, 37_888, 3584, "silu", None),
        (32, 17_920, 1536, "gelu_tanh", None),
        (128, 17_920, 1536, "silu", None),
        (16, 1536, 1504, "gelu", split),
    ):
        weight, x = torch.empty(outputs, inputs, dtype=BF16), torch.empty(rows, inputs, dtype=BF16)
        config = config or linear_config(rows, outputs, inputs, gated=True)
        assert config is not None
        name = f"{rows} gated rows of {outputs} x {inputs}"
        yield Case(name, partial(gated_linear, x, weight, None, activation, config))
    yield Case("product", partial(gated_product, torch.empty(4, 4096, dtype=BF16), "silu"))


def compaction_cases() -> Iterator[Case]:
    for dtype, shape in (
        (BF16, LayerShape(4, 128, 128)),
        (FP32, LayerShape(1, 96, 40)),
        (BF16, LayerShape(1, 81, 81)),
    ):
        pool = PagePool(
            [shape] * 2, num_pages=4, page_size=16, dtype=dtype, device=torch.device("cpu"),
            kernels=True,
        )  # fmt: skip
        pool.keep_scores()
        name = f"{dtype}, heads of {shape.key_dim}".removeprefix("torch.")
        yield Case(name, partial(pool.move, [5, 6], [1, 2], [1, 1]))
        source = torch.tensor([5, 6]).expand(2, shape.num_kv_heads, 2)
        yield Case(name, partial(pool.move_heads, source, torch.tensor([1, 2]), 1))


def observation_cases() -> Iterator[Case]:
    for heads, kv_heads, dim, dtype, grouping, softcap in (
        (28, 4, 128, BF16, "sum", None),
        (16, 2, 256, BF16, "mean", 50.0),
        (24, 1, 80, FP32, "max_logit", None),
    ):
        query, keys = torch.empty(2, heads, dim), torch.empty(64, kv_heads, dim)
        launch = partial(
            observe_rows,
            query.to(dtype), torch.zeros(2, dtype=torch.long),
            torch.zeros(2, 33, dtype=torch.long), torch.ones(2, 33, dtype=torch.bool),
            keys.to(dtype), torch.zeros(64, kv_heads),
            grouping=grouping, scaling=0.1, softcap=softcap,
        )  # fmt: skip
        yield Case(f"{grouping}, heads of {dim}", launch)


def sampling_cases() -> Iterator[Case]:
    for vocab, dtype in ((152_064, FP32), (32_003, BF16)):
        batch = SamplingBatch(max_rows=2, vocab_size=vocab, device=torch.device("cpu"))
        results = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool)
        launch = partial(sample, torch.zeros(2, vocab, dtype=dtype), batch, *results)
        yield Case(f"{dtype}, {vocab} ids".removeprefix("torch."), launch)


def report(name: str, compiled: CompiledLaunch, programs: int) -> dict[str, Any]:
    ptx, kernel = compiled.ptx, compiled.kernel.strip("_").removesuffix("_kernel")
    registers, stack_bytes = compiled.registers_and_stack()
    access = re.search(r"(?:ld|st|atom)\.global", ptx)
    steps = [ptx.find("griddepcontrol.wait"), ptx.find("griddepcontrol.launch_dependents")]
    steps.append(access.start() if access else -1)
    return {
        "kernel": kernel,
        "case": name,
        "programs": programs if kernel == "rows" else 1,
        "fit": programs_that_fit(compiled.num_warps, registers, compiled.shared_bytes),
        "registers": registers,
        "stack_bytes": stack_bytes,
        "shared_bytes": compiled.shared_bytes,
        "cp_async_16": ptx.count("cp.async.cg.shared.global"),
        "mma": ptx.count("mma.sync"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "vector_loads": len(re.findall(r"ld\.global[.\w:]*\.v[248]\.b(?:32|64)", ptx)),
        "vector_stores": len(re.findall(r"st\.global[.\w:]*\.v[248]\.b(?:32|64)", ptx)),
        "acquire_release": len(re.findall(r"atom\.global[.\w]*acq_rel", ptx)),
        "waits_first": int(-1 not in steps and steps == sorted(steps)),
    }


def programs_that_fit(num_warps: int, registers: int, shared_bytes: int) -> int:
    """Return how many programs a multiprocessor has registers and shared memory for.

    It has 65,536 registers, given to warps 256 at a time, and 228 KB of shared memory, of which
    each program takes one more than it asks for (CUDA C++ Programming Guide; occupancy calculator).
    """
    of_program = num_warps * 32 * -(-registers // 8) * 8
    return min(65_536 // of_program, 228 * 1024 // (shared_bytes + 1024))


def compile_all(only: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what the cases' kernels hold, each once, and the errors of those that do not compile.

    Args:
        only: Part of the names of the cases wanted.
    """
    makers = (attention_cases, linear_cases, compaction_cases, observation_cases, sampling_cases)
    rows: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    known: set[bytes] = set()
    for case in (case for make in makers for case in make() if only in case.name):
        start = sum(os.times()[:4])
        with compiling_for_h100() as launches:
            try:
                case.launch()
            except Exception as error:  # The compiler's own errors have no common class.
                errors[case.name] = f"{type(error).__name__}: {error}"
        new = {c.cubin: c for c in launches if c.cubin not in known}
        rows += [report(case.name, c, case.programs) for c in new.values()]
        known |= new.keys()
        print(f"{sum(os.times()[:4]) - start:6.1f} s  {case.name}", file=sys.stderr, flush=True)
    return rows, errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of the names of the cases to compile")
    rows, errors = compile_all(parser.parse_args().only)
    if rows:
        columns = list(rows[0])
        print("  ".join(f"{c:>{35 if c == 'case' else 13}s}" for c in columns))
        for row in rows:
            print("  ".join(f"{row[c]!s:>{35 if c == 'case' else 13}s}" for c in columns))
    for name, error in errors.items():
        print(f"{name}: {error}")
    result = {"triton": triton.__version__, "target": "sm_90", "kernels": rows, "errors": errors}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
