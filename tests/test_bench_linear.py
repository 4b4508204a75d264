"""The matmuls' sweep runs without a GPU, compares with the exact result and ends with JSON."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture(scope="module")
def bench(import_benchmark):
    return import_benchmark("bench_linear")


def test_smoke_run_times_every_layer_and_their_chain(bench, capsys, tmp_path):
    output = tmp_path / "results" / "bench_linear.json"
    bench.main(["--smoke", "--output", str(output)])
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last == json.loads(output.read_text())
    assert "WRONG" not in printed
    assert "NOT THE SAME" not in printed
    assert {row["layer"] for row in last["rows"]} == {"gate_up", "down", "qkv", "o"}
    for row in last["rows"]:
        assert row["library_us"] > 0
        assert row["best_us"] > 0
        assert row["error"] < (1e-5 if not torch.cuda.is_available() else 0.02)
    (chain,) = last["chain_ms_per_layer"]
    assert chain["library"] > 0
    assert chain["ours+pdl128"] > 0


def test_pieces_are_offered_where_tiles_are_few(bench):
    few = bench.candidates(bench.Layer("few", 1024, 8192), 1)
    many = bench.candidates(bench.Layer("many", 64_000, 8192), 1)
    assert max(config.splits for config in few) > 4
    assert {config.splits for config in many} == {1}


def test_a_setting_that_is_wrong_does_not_count(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "skinny_linear", lambda x, w, b, config: x @ w.T * 1.1)
    rows = bench.sweep(
        bench.Plan({"m": (bench.Layer("o", 8, 16),)}, (1,)), {}, bench.time.monotonic() + 60
    )
    assert "config" not in rows[0]
    assert "WRONG" in capsys.readouterr().out
