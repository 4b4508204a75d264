"""The training benchmarks run at their smoke size and write the shapes that others read."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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
    ]
    for row in written["rows"]:
        assert {"model", "packing", "gpus", "mfu", "peak_memory_gb"} <= row.keys()
        assert 0 < row["useful_tokens_per_s"] < row["processed_tokens_per_s"]
    flex, causal, dense = written["rows"]
    assert flex["rows"] == causal["rows"] < dense["rows"]
    assert flex["planned_memory_gb"] > 0
    assert written["ratios"].keys() == {"processed_over_causal_flash", "useful_over_dense_padded"}


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
