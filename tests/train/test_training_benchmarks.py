"""The training benchmarks run at their smoke size and write the shapes that others read."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_import_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run_script(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("flags", [(), ("--lora", "--gradient-checkpointing")])
def test_bench_train(tmp_path, monkeypatch, capsys, flags):
    output = tmp_path / "bench_train.json"
    printed = run_script(
        monkeypatch, capsys, "bench_train.py", "--smoke", "--output", str(output), *flags
    )
    written = json.loads(output.read_text())
    assert written == printed
    assert [row["mask"] for row in written["rows"]] == [
        "lifetimes_flex",
        "causal_flash",
        "dense_padded",
        "dense_padded",
    ]
    assert [row["compiled"] for row in written["rows"]] == [True, True, False, True]
    for row in written["rows"]:
        assert {"model", "packing", "gpus", "mfu", "peak_memory_gb"} <= row.keys()
        assert 0 < row["useful_tokens_per_s"] < row["processed_tokens_per_s"]
    flex, causal, dense, _ = written["rows"]
    assert flex["rows"] == causal["rows"] < dense["rows"]
    assert flex["planned_memory_gb"] > 0
    (found,) = written["ratios"].values()
    assert found["processed_over_causal_flash"] == pytest.approx(
        flex["processed_tokens_per_s"] / causal["processed_tokens_per_s"], abs=1e-3
    )
    assert found["useful_over_dense_padded"] == pytest.approx(
        flex["useful_tokens_per_s"] / dense["useful_tokens_per_s"], abs=1e-3
    )


def row_of(**changes):
    row = {"model": "m", "mask": "lifetimes_flex", "packing": "best_fit", "gpus": 1,
           "compiled": True, "through": "loop", "processed_tokens_per_s": 90.0,
           "useful_tokens_per_s": 60.0}  # fmt: skip
    return row | changes


def test_runs_are_merged_into_one_file(tmp_path, monkeypatch):
    from train_results import merge

    file = tmp_path / "results" / "bench_train.json"
    monkeypatch.setattr(sys, "argv", ["first.py"])
    merge(file, [row_of(), row_of(mask="causal_flash", processed_tokens_per_s=100.0)], {"seed": 0})
    monkeypatch.setattr(sys, "argv", ["second.py"])
    slow = row_of(mask="dense_padded", compiled=False, useful_tokens_per_s=20.0)
    merge(file, [slow, row_of(processed_tokens_per_s=80.0)], {"seed": 0})
    merge(file, [row_of(gpus=2, through="trainer")], {"seed": 0})
    content = json.loads(file.read_text())
    assert len(content["rows"]) == 4
    assert content["ratios"] == {
        "m": {"processed_over_causal_flash": 0.8, "useful_over_dense_padded": 3.0}
    }
    assert content["command"] == "python first.py && python second.py"
    commands = {row["mask"]: row["command"] for row in content["rows"]}
    assert commands["causal_flash"] == "python first.py"
    assert commands["dense_padded"] == "python second.py"
    assert {"device", "versions", "seed"} <= content.keys()
    assert list(tmp_path.glob("results/*")) == [file]


def test_a_row_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    import bench_train

    def fails(mask, recipe, options):
        if mask == "causal_flash":
            raise RuntimeError("No available kernel")
        if options.batch_size > 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return bench_train.named(mask, options) | {"batch_size": options.batch_size}

    monkeypatch.setattr(bench_train, "measure", fails)
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--smoke"])
    options = bench_train.parse()
    options.device = torch.device("cpu")
    assert bench_train.measure_or_shrink("lifetimes_flex", options)["batch_size"] == 1
    row = bench_train.measure_or_shrink("causal_flash", options)
    assert row["error"] == "RuntimeError: No available kernel"
    assert row["processed_tokens_per_s"] is None


def test_resumed_losses_are_compared_step_by_step():
    from train_resume import STEPS, compare

    curve = {step: 10.0 - step / 10 for step in range(1, STEPS + 1)}
    shifted = curve | {STEPS - 1: curve[STEPS - 1] * (1 + 5e-4)}
    results = {
        "straight": {"losses": curve},
        "resumed": {"losses": shifted},
        "on_one": {"losses": shifted},
        "one": {"losses": {1: 9.9}, "error": "exit 2"},
    }
    resumed, on_one, one = compare(results)
    assert resumed["largest_relative_difference"] == pytest.approx(5e-4)
    assert not resumed["passed"]  # the same number of GPUs: equal
    assert on_one["passed"]  # another number: within 1e-3
    assert not one["passed"]
    assert one["error"] == "exit 2"


def test_benchmark_traces_are_of_realistic_length(tmp_path):
    from training_runs import make_traces

    make_traces(tmp_path / "traces.jsonl", 200, 4096)
    traces = [json.loads(line) for line in (tmp_path / "traces.jsonl").open()]
    thoughts = sorted(len(t["reasoning"].split("\n\n")) for t in traces)
    # 64 tokens, trigger, nine gists and continue for each thought; median 2,500 in all.
    assert thoughts[100] == pytest.approx((2500 - 150) / 75, abs=3)
    assert thoughts[-1] * 75 + 150 < 4096


def test_ablations_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    flags = ["--smoke", "--runs", str(tmp_path / "runs")]
    first = run_script(monkeypatch, capsys, "ablations.py", *flags, "--only", "C=1")
    (row,) = first["rows"]
    assert {"setting", "accuracy", "accuracy_ci95", "peak_tokens", "dep_full"} <= row.keys()
    done = tmp_path / "runs" / "rows_smoke" / "C_1.json"
    content = json.loads(done.read_text())
    content["accuracy"] = 0.75  # a mark that another run would remove
    done.write_text(json.dumps(content))
    both = run_script(monkeypatch, capsys, "ablations.py", *flags, "--only", "C=1,AnLLM")
    assert [row["setting"] for row in both["rows"]] == ["C=1", "AnLLM"]
    assert both["rows"][0]["accuracy"] == 0.75


def test_ablations_on_several_devices_survive_one_that_fails(tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    (runs / "retain_1_smoke").mkdir(parents=True)
    (runs / "retain_1_smoke" / "assets").write_text("no folder")  # what this setting fails at
    output = tmp_path / "ablations.json"
    flags = ["--smoke", "--runs", str(runs), "--devices", "cpu", "--per-device", "2"]
    names = "token level, 6 to 2,retain 1"
    with pytest.raises(SystemExit):
        run_script(
            monkeypatch, capsys, "ablations.py", *flags, "--only", names, "--output", str(output)
        )
    written = json.loads(output.read_text())
    assert [row["setting"] for row in written["rows"]] == ["token level, 6 to 2"]
    assert written["failed"] == {"retain 1": f"exit code 1, see {runs / 'retain_1.log'}"}
    assert "FileExistsError" in (runs / "retain_1.log").read_text()
    with pytest.raises(SystemExit):
        run_script(
            monkeypatch, capsys, "ablations.py", *flags, "--only", "retain 4", "--output",
            str(output), "--time-limit", "0.1",
        )  # fmt: skip
    late = json.loads(output.read_text())
    assert late["failed"] == {"retain 4": "not finished when time was up"}
    with pytest.raises(SystemExit, match="--only has 'C=3'"):
        run_script(monkeypatch, capsys, "ablations.py", "--only", "C=3")


def test_fewer_steps_of_an_ablation_warm_up_in_proportion(monkeypatch):
    script = runpy.run_path(str(BENCHMARKS / "ablations.py"))
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--max-steps", "900"])
    recipe = script["recipe_for"]("C=4", script["parse"]())
    assert (recipe.trainer["max_steps"], recipe.trainer["warmup_steps"]) == (900, 40)
