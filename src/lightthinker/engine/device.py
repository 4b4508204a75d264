"""Where an engine runs and in what numbers: what users write -> torch's device and dtype.

Invariant: nothing here opens a CUDA context; a process whose engine runs in another needs none.
"""

from __future__ import annotations

import torch

from lightthinker.errors import RequestError


def resolve_device(name: str | None) -> torch.device:
    """Return the device of this name; None: CUDA if there is any."""
    has_cuda = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if has_cuda else "cpu"))
    except RuntimeError as error:
        raise RequestError(f"device is {name!r}; it must be cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not has_cuda:
        raise RequestError(f"device is {name!r}, but this machine has no CUDA device.")
    if device.type == "cuda" and device.index is None:
        # Asking for the current device would open a context, which a parent of workers should not.
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        return torch.device("cuda", index)
    return device


def wants_engine_process(name: str | None) -> bool:
    """Whether a server's engine on this device should be in a process of its own.

    On a GPU the engine's Python and the server's each take a core. On a CPU the model wants all
    cores anyway.
    """
    return resolve_device(name).type == "cuda"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """Return the dtype of this name; `auto`: the checkpoint's, but float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in allowed:
        raise RequestError(f"dtype is {name!r}; it must be auto, {', '.join(allowed)}.")
    return allowed[name]
