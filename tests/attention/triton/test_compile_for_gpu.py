"""Every kernel compiles for an H100 on a machine without a GPU, with the loads it should have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "compile_kernels.py"


@pytest.fixture(scope="module")
def kernels():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    if "Cannot find a working triton" in done.stderr or "ptxas" in done.stderr:
        pytest.skip("triton cannot compile for sm_90 here")
    assert done.returncode == 0, done.stderr[-3000:]
    return {k["kernel"]: k for k in json.loads(done.stdout.splitlines()[-1])["kernels"]}


def test_decode_prefetches_and_uses_tensor_cores(kernels):
    rows = [k for name, k in kernels.items() if name.startswith("rows ")]
    assert len(rows) == 12
    for kernel in rows:
        assert kernel["cp_async_16"] > 0
        assert kernel["acquire_release"] == 1, "the count of programs that have stored a piece"
        assert kernel["waits_first"] == 1, "memory was touched before earlier kernels had ended"
        if "fp32" in kernel["kernel"]:  # exact float32: no tensor cores
            continue
        assert kernel["mma"] > 0
        assert kernel["shared_bytes"] < 227 * 1024 // kernel["programs"] - 1024, "they do not fit"


def test_prefill_uses_hopper_tensor_cores(kernels):
    tiles = [k for name, k in kernels.items() if name.startswith("tiles ")]
    assert len(tiles) == 6
    for kernel in tiles:
        assert kernel["shared_bytes"] < 227 * 1024
        if "fp32" in kernel["kernel"]:
            continue
        assert kernel["cp_async_16"] > 0
        assert kernel["wgmma"] > 0


def test_storing_waits_for_earlier_kernels(kernels):
    stores = [k for name, k in kernels.items() if name.startswith("store_kv ")]
    assert len(stores) == 6
    assert all(k["waits_first"] == 1 for k in stores)


def test_weights_go_from_memory_to_hopper_tensor_cores(kernels):
    linears = [k for name, k in kernels.items() if "linear of" in name]
    assert len(linears) == 8
    for kernel in linears:
        assert kernel["cp_async_16"] > 0
        assert kernel["wgmma"] > 0
        assert kernel["mma"] == 0
        assert kernel["shared_bytes"] < 227 * 1024 // 2, "two programs fit a multiprocessor"


def test_eviction_fits_smaller_gpus(kernels):
    assert kernels["compact heads"]["vector_stores"] > 0
    for dim in (128, 256):
        assert kernels[f"observe, heads of {dim}"]["shared_bytes"] <= 99 * 1024


def test_copies_are_wide(kernels):
    compact = kernels["compact 16-bit words, 8 aligned"]
    assert compact["vector_loads"] > 0
    assert compact["vector_stores"] > 0
    for name in ("top", "list", "draw"):
        assert kernels[f"sample: {name}"]["vector_loads"] > 0
