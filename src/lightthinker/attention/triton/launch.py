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

MAX_SPLITS = 64
PROGRAMS_PER_MULTIPROCESSOR = 4
"""Programs wanted per multiprocessor: enough loads in flight to keep memory busy."""

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


def rows_config(head_dim: int, itemsize: int) -> KernelConfig:
    """Return the split-KV kernel's settings.

    Args:
        head_dim: The larger of key and value size.
        itemsize: Bytes per element of the KV pool.
    """
    if itemsize > 2:
        return KernelConfig(block_n=32, num_warps=4, num_stages=2)
    if head_dim > 128:
        return KernelConfig(block_n=32, num_warps=4, num_stages=3)
    return KernelConfig(block_n=64, num_warps=4, num_stages=3)


def tile_config(head_dim: int, itemsize: int) -> KernelConfig:
    """Return the prefill kernel's settings (see `rows_config`)."""
    if itemsize > 2:
        return KernelConfig(block_n=32, num_warps=8 if head_dim > 128 else 4, num_stages=1)
    if head_dim > 128:
        return KernelConfig(block_n=32, num_warps=8, num_stages=2)
    return KernelConfig(block_n=64, num_warps=4, num_stages=3)


def num_splits(num_rows: int, num_kv_heads: int, num_multiprocessors: int) -> int:
    """Return into how many pieces each row's keys are cut: a power of two.

    It depends on the launch size only, never on lengths, so a graph captured for `num_rows` rows
    keeps it.
    """
    wanted = PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    splits = 1
    while splits < MAX_SPLITS and num_rows * num_kv_heads * splits < wanted:
        splits *= 2
    return splits


@cache
def pdl_supported(device: torch.device) -> bool:
    """Whether kernels on `device` may begin before those ahead of them have ended.

    That is programmatic dependent launch (sm_90 and later): a kernel launched so must call
    `gdc_wait` before it touches memory, which waits for the end of all kernels ahead. Off in
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
