"""Every kernel compiles for an H100 on a machine without a GPU, with the loads it should have.

The interpreter, which the other tests run kernels in, accepts Python that the compiler refuses.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightthinker.testing.compiling import SHARED_BYTES

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "compile_kernels.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def report():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    if "Cannot find a working triton" in done.stderr or "ptxas" in done.stderr:
        pytest.skip("triton cannot compile for sm_90 here")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def kernels(report):
    """Return a function that lists a kernel's compilations."""

    def of(name):
        found = [k for k in report["kernels"] if k["kernel"] == name]
        assert found, name
        return found

    return of


def test_the_compiler_accepts_every_launch(report):
    assert not report["errors"], "\n\n".join(f"{k}: {v}" for k, v in report["errors"].items())


def test_no_kernel_is_left_out(report):
    jit = re.compile(r"^@triton\.jit[^@]*?^def _?(\w+)_kernel\(", re.MULTILINE)
    sources = (ROOT / "src").rglob("*.py")
    ours = {name for file in sources for name in jit.findall(file.read_text())}
    assert len(ours) == 15
    assert {k["kernel"] for k in report["kernels"]} == ours


def test_shared_memory_suffices(report):
    for kernel in report["kernels"]:
        assert kernel["shared_bytes"] <= SHARED_BYTES, kernel


def test_decode_prefetches_and_uses_tensor_cores(kernels):
    for kernel in kernels("rows"):
        assert kernel["cp_async_16"] > 0
        assert kernel["acquire_release"] == 1, "the count of programs that have stored a piece"
        assert kernel["waits_first"] == 1, "memory was touched before earlier kernels had ended"
        if "fp32" in kernel["case"]:  # exact float32: no tensor cores
            continue
        assert kernel["mma"] > 0
        assert kernel["shared_bytes"] < SHARED_BYTES // kernel["programs"] - 1024, "they don't fit"


def test_decode_programs_find_registers(kernels):
    for model in ("Qwen2.5", "Llama", "groups of 24"):
        found = [k for k in kernels("rows") if k["case"].startswith(model)]
        assert found
        for kernel in found:
            assert kernel["fit"] >= kernel["programs"], kernel
            assert kernel["stack_bytes"] <= 64, kernel


def test_prefill_uses_hopper_tensor_cores(kernels):
    for kernel in kernels("tile"):
        if "fp32" in kernel["case"]:
            continue
        assert kernel["cp_async_16"] > 0
        assert kernel["wgmma"] > 0


def test_storing_waits_for_earlier_kernels(kernels):
    assert all(k["waits_first"] == 1 for k in kernels("store_kv"))


def test_weights_go_from_memory_to_hopper_tensor_cores(kernels):
    for kernel in kernels("linear"):
        assert kernel["cp_async_16"] > 0
        assert kernel["wgmma"] > 0
        assert kernel["mma"] == 0


def test_eviction_fits_smaller_gpus(kernels):
    assert kernels("compact_heads")[0]["vector_stores"] > 0
    for kernel in kernels("observe"):
        assert kernel["shared_bytes"] <= 99 * 1024


def test_copies_are_wide(kernels):
    compact = kernels("compact")[0]
    assert compact["vector_loads"] > 0
    assert compact["vector_stores"] > 0
    for name in ("top", "list", "draw"):
        assert kernels(name)[0]["vector_loads"] > 0
