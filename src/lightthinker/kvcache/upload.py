"""Small host data on its way to the device, without waiting for what the device is doing.

A copy from ordinary memory makes the host wait for the stream; from pinned memory it does not. The
caching host allocator keeps pinned memory until the copies that use it are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

Integers = Sequence[int] | npt.NDArray[Any]


def upload(values: Integers, device: torch.device) -> torch.Tensor:
    """Return integers as int64 on the device, of the same shape; a GPU's copy is only queued."""
    host = torch.as_tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """Return a host copy; from a GPU it is only queued: its own stream may read it, nobody else."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
