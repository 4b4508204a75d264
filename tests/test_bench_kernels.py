"""The kernel benchmark runs without a GPU and ends with one JSON object."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture(scope="module")
def bench(import_benchmark):
    return import_benchmark("bench_kernels")


def test_smoke_run_covers_every_kernel(bench, capsys, tmp_path):
    output = tmp_path / "results" / "bench_kernels.json"
    bench.main(["--smoke", "--seed", "3", "--output", str(output)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads(output.read_text())
    assert last["seed"] == 3
    kernels = {row["kernel"] for row in last["rows"]}
    assert {"rows_attention", "tiled_attention", "store_kv", "compact", "sample"} <= kernels
    for row in last["rows"]:
        assert row["time_us"] > 0
    decode = [row for row in last["rows"] if row["kernel"] == "rows_attention"]
    # 2 sequences x 24 tokens x 2 KV heads x 16 x (K and V) x 4 bytes at 3.0 TB/s
    size = 4 if not torch.cuda.is_available() else 2
    assert decode[0]["floor_us"] == round(2 * 24 * 2 * 16 * 2 * size / 3.0e6, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the whole benchmark")
def test_a_full_run_needs_a_gpu(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main([])
    assert "only --smoke runs here" in capsys.readouterr().err
