"""Which attention backend serves a device; imports a backend only when it is chosen."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch

from lightthinker.attention.paged import AttentionBackend
from lightthinker.errors import ConfigError
from lightthinker.kvcache.pool import PagePool

BACKENDS = ("auto", "torch", "triton")
BackendName = Literal["torch", "triton"]


def resolve_backend(name: str, device: torch.device) -> BackendName:
    """Return the backend that `name` stands for on `device`.

    `auto` is Triton on CUDA and torch elsewhere. Triton on a CPU means its interpreter, which is
    slow and for tests.

    Raises:
        ConfigError: The name is unknown, or Triton cannot run here.
    """
    if name not in BACKENDS:
        allowed = ", ".join(BACKENDS)
        raise ConfigError(f"attention_backend is {name!r}; it must be one of {allowed}.")
    if name == "auto":
        return "triton" if device.type == "cuda" and _has_triton() else "torch"
    if name == "torch":
        return "torch"
    if not _has_triton():
        raise ConfigError(
            "attention_backend is 'triton', and the triton package is not installed; install it or "
            "choose 'torch'."
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"attention_backend is 'triton' on device {device.type!r}; Triton needs a CUDA device "
            "(or TRITON_INTERPRET=1 in the environment, its slow interpreter). Choose 'torch'."
        )
    return "triton"


def make_backend(name: BackendName, pool: PagePool) -> AttentionBackend:
    """Return the backend `name` over this pool."""
    if name == "triton":
        from lightthinker.attention.triton_backend import TritonBackend

        return TritonBackend(pool)
    from lightthinker.attention.torch_backend import TorchBackend

    return TorchBackend(pool)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
