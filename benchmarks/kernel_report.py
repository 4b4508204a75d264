"""What the results of the kernels' benchmarks begin with."""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch
import triton


def heading(script: str, seed: int) -> dict[str, Any]:
    """Return benchmark, device, versions, command and seed."""
    on_cuda = torch.cuda.is_available()
    return {
        "benchmark": script,
        "device": torch.cuda.get_device_name() if on_cuda else "cpu (Triton interpreter)",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
        },
        "command": " ".join(["python", f"benchmarks/{script}.py", *sys.argv[1:]]),
        "seed": seed,
    }
