"""Compile what our launchers launch for an H100, on a machine without a GPU.

Triton's interpreter runs a kernel's Python and accepts what the compiler refuses (a name that one
side of a branch does not define, a tile that is not a power of two). Here launches compile and
nothing runs: the launchers choose grids, constants and specialisations themselves, given CPU
tensors. Triton thinks that its device is an H100, and so do our launch settings.

Needs the NVIDIA backend of Triton's wheel (3.6 or later), and kernels that were not made for the
interpreter. Knows no kernel by name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from lightthinker.attention.triton import launch

H100 = GPUTarget("cuda", 90, 32)
NUM_MULTIPROCESSORS = 132
SHARED_BYTES = 227 * 1024
"""Most that one program can have (CUDA C++ Programming Guide, compute capability 9.0)."""


@dataclass(frozen=True)
class CompiledLaunch:
    """A kernel as one launch would run it.

    Attributes:
        kernel: Name of its function.
        num_programs: Size of the grid.
        num_warps: Of each program.
        shared_bytes: Shared memory of each program.
        ptx: The compiled code.
        cubin: The machine code.
    """

    kernel: str
    num_programs: int
    num_warps: int
    shared_bytes: int
    ptx: str
    cubin: bytes

    def registers_and_stack(self) -> tuple[int, int]:
        """Return a thread's registers, and the bytes of stack that it spills to."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack_bytes = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
        return int(registers), int(stack_bytes)


class _Driver:
    """What Triton asks of the driver in order to compile."""

    def get_current_target(self) -> Any:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for_h100() -> Iterator[list[CompiledLaunch]]:
    """Compile every launch inside the block; none runs, so no result may be relied on.

    Import the launchers before: they are told that the device is an H100.

    Yields:
        The launches so far, in order.

    Raises:
        triton.compiler.CompilationError: Inside the block, where the compiler refuses a kernel.
    """
    assert os.environ.get("TRITON_INTERPRET") != "1", "kernels are made for the interpreter"
    launches: list[CompiledLaunch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        num_programs = 1
        for size in grid:
            num_programs *= size
        metadata = compiled.metadata
        launches.append(
            CompiledLaunch(
                self.fn.__name__,
                num_programs,
                metadata.num_warps,
                metadata.shared,
                compiled.asm["ptx"],
                compiled.asm["cubin"],
            )
        )

    device_settings: list[tuple[Callable[..., Any], Any]] = [
        (launch.pdl_supported, True),
        (launch.num_multiprocessors, NUM_MULTIPROCESSORS),
    ]
    with ExitStack() as stack:
        stack.enter_context(patch.object(driver, "_active", _Driver()))
        stack.enter_context(patch.object(JITFunction, "run", compile_only))
        for function, value in device_settings:
            for module, name in _uses(function):
                stack.enter_context(patch.object(module, name, _constant(value)))
        yield launches


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def _uses(function: Callable[..., Any]) -> list[tuple[ModuleType, str]]:
    """Return where imported modules of ours keep this function."""
    return [
        (module, key)
        for name, module in list(sys.modules.items())
        if name.startswith("lightthinker.")
        for key, value in list(vars(module).items())
        if value is function
    ]
