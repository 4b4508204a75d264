"""Static launch settings: block sizes, warps, stages and the number of KV splits.

No autotuning: a CUDA graph must hold one configuration, and a first request should not wait for a
sweep. The table is small; `benchmarks/bench_kernels.py` sweeps it. Knows sizes only, no tensors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

MAX_SPLITS = 32
"""More pieces of a row cost more to add than they save in reading."""

CPU_MULTIPROCESSORS = 2
"""Stands for a GPU's in the interpreter, so that it splits too."""


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """How one attention kernel is launched.

    Attributes:
        block_n: Keys per step of the inner loop.
        num_warps: Warps per program.
        num_stages: Depth of the software pipeline.
    """

    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True)
class RowsConfig(KernelConfig):
    """How the split-KV kernel is launched.

    Attributes:
        num_programs: Programs wanted per multiprocessor: as many as fit at a time.
        looks_ahead: Read the numbers of the next block's pages while this block is computed; once
            per page, not once per key, where the sizes of blocks and pages allow.
        max_registers: Of a thread, so that as many programs fit.
    """

    num_programs: int
    looks_ahead: bool = True
    max_registers: int | None = None

    def looks_up_pages(self, page_size: int) -> bool:
        """Whether pages of this size are looked up once each."""
        fits = self.block_n % page_size == 0 or page_size % self.block_n == 0
        return self.looks_ahead and page_size > 1 and fits


FEW_ROWS = RowsConfig(block_n=64, num_warps=4, num_stages=2, num_programs=3)
MANY_ROWS = RowsConfig(
    block_n=64, num_warps=4, num_stages=3, num_programs=4, looks_ahead=False, max_registers=128
)


def rows_config(
    head_dim: int, itemsize: int, num_programs: int, num_multiprocessors: int
) -> RowsConfig:
    """Return the settings of the kernel for single rows.

    Few programs need deep prefetching; if they fill the GPU, more of them at a time do better.

    Args:
        head_dim: The larger of key and value size.
        itemsize: Bytes per element of the KV pool.
        num_programs: Programs that the launch has if no row is cut into pieces.
        num_multiprocessors: Of the device.
    """
    if itemsize > 2:
        return RowsConfig(block_n=32, num_warps=4, num_stages=2, num_programs=4)
    if head_dim > 128:
        return RowsConfig(block_n=32, num_warps=4, num_stages=3, num_programs=3)
    is_few = num_programs <= 2 * num_multiprocessors
    return FEW_ROWS if is_few else MANY_ROWS


def tile_config(head_dim: int, itemsize: int) -> KernelConfig:
    """Return the prefill kernel's settings (see `rows_config`)."""
    if itemsize > 2:
        return KernelConfig(block_n=32, num_warps=8 if head_dim > 128 else 4, num_stages=1)
    if head_dim > 128:
        return KernelConfig(block_n=32, num_warps=8, num_stages=2)
    return KernelConfig(block_n=64, num_warps=4, num_stages=3)


def num_splits(config: RowsConfig, num_programs: int, num_multiprocessors: int) -> int:
    """Return into how many pieces at most each row's keys are cut.

    It depends on the launch size only, never on lengths, so a graph captured for some number of
    rows keeps it. All programs run at a time: a few left over would run alone.

    Args:
        config: The launch's settings.
        num_programs: Programs that the launch has if no row is cut into pieces.
        num_multiprocessors: Of the device.
    """
    return max(1, min(MAX_SPLITS, config.num_programs * num_multiprocessors // num_programs))


@cache
def pdl_supported(device: torch.device) -> bool:
    """Whether kernels on `device` may begin before those ahead of them have ended.

    That is programmatic dependent launch (sm_90 and later). A kernel launched so first calls
    `gdc_wait`, which waits for the end of the kernel ahead, then `gdc_launch_dependents`, which
    lets the next one begin. In this order whatever runs knows that all but the kernel right ahead
    of it have ended, which Inductor's kernels rely on if theirs are launched so, too. Off in
    Triton's interpreter, and with LIGHTTHINKER_PDL=0 in the environment.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get("LIGHTTHINKER_PDL") == "0":
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def pdl_options(pdl: bool) -> dict[str, Any]:
    """Return the launch options of a kernel; not every backend of Triton knows the name."""
    return {"launch_pdl": True} if pdl else {}


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors `device` has."""
    if device.type != "cuda":
        return CPU_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()
