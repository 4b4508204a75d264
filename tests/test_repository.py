"""What the repository promises: README tables from results, no remote code, small modules."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightthinker.evals.results import EvalResults
from lightthinker.evals.rows import check_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["update_readme", "draw_figures"])
def test_documents_say_what_the_results_files_say(name):
    script = ROOT / "scripts" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SCRIPTS = [f for f in sorted((ROOT / "scripts").glob("*.py")) if "__main__" in f.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: f.stem)
def test_scripts_say_what_they_do_and_do_nothing_else_when_asked(script):
    command = [sys.executable, script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name}")
    assert str(ast.get_docstring(ast.parse(script.read_text()))).splitlines()[0] in done.stdout


@pytest.fixture
def update_readme(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("update_readme")


def offline_row(method, requests, tokens_per_s):
    return {
        "model": "7B", "method": method, "requests": requests, "generated_tokens": 64,
        "useful_tokens_per_s": tokens_per_s,
    }  # fmt: skip


def test_a_table_in_any_document_is_written_checked_and_its_ratios_computed(
    update_readme, tmp_path, capsys
):
    rows = [
        offline_row("full_cot", 256, 40.0),
        offline_row("lightthinker", 256, 110.0),
        offline_row("full_cot", 999, 44.0),
        offline_row("hf_generate", 999, 11.0),
    ]
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/bench_offline.json").write_text(json.dumps({"rows": rows}))
    name = "bench_offline/ratios"
    document = tmp_path / "docs/speed.md"
    document.write_text(f"Fast.\n<!-- results: {name} -->\n<!-- end of results: {name} -->\nEnd.")
    with pytest.raises(SystemExit, match=r"docs/speed\.md: not what results/ says"):
        update_readme.main(["--check"], tmp_path)
    update_readme.main([], tmp_path)
    update_readme.main(["--check"], tmp_path)
    text = document.read_text()
    assert text.startswith("Fast.\n<!--")
    assert text.endswith("-->\nEnd.")
    ratios = [line.split("|")[4:6] for line in text.splitlines() if line.startswith("| 64")]
    assert ratios == [[" 4.00 ", " "], [" 2.75 ", " 2.5 "], [" 2.50 ", " "]]
    assert "rewrote docs/speed.md" in capsys.readouterr().out
    document.write_text(text.replace("2.75", "2.95"))
    with pytest.raises(SystemExit, match="docs/speed"):
        update_readme.main(["--check"], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: missing -->\n<!-- end of results: missing -->", "missing.json does not"),
        ("<!-- results: bench_decode -->\n", "no end"),
        ("<!-- results: bench_decode/x -->\n<!-- end of results: bench_decode/x -->", "no view"),
    ],
)
def test_marks_that_cannot_be_filled_are_refused(update_readme, text, message):
    with pytest.raises(ValueError, match=message):
        update_readme.filled(text, ROOT / "results")


def test_the_committed_profile_covers_every_decode_step(update_readme):
    tables = importlib.import_module("benchmark_tables")
    profile = tables.read_profile((ROOT / "results/bench_decode_profile.txt").read_text())
    decode = json.loads((ROOT / "results/bench_decode.json").read_text())
    assert profile.keys() == {(row["model"], row["batch"]) for row in decode["rows"]}
    for total, kernels in profile.values():
        assert 0.9 * total < sum(ms for _, ms in kernels) < total


def test_the_bundled_model_is_as_right_on_a_gpu_as_on_a_cpu():
    gpu, cpu = (
        json.loads((ROOT / "results" / f"{name}.json").read_text())
        for name in ("bundled_model", "bundled_model_cpu")
    )
    assert gpu["model"]["weights_sha256"] == cpu["model"]["weights_sha256"]
    for family, values in cpu["by_family"].items():
        assert gpu["by_family"][family]["paired"] == values["paired"]
        for method, summary in values["methods"].items():
            assert gpu["by_family"][family]["methods"][method]["accuracy"] == summary["accuracy"]


SERVE_ROBUSTNESS = ROOT / "results" / "serve_robustness.json"
BENCHMARKS = {
    "bench_decode": {"model", "batch", "live_tokens", "step_ms", "floor_ms", "ratio"},
    "bench_offline": {
        "model", "method", "requests", "generated_tokens", "kv_budget_gb", "useful_tokens_per_s",
    },
    "bench_latency": {"model", "method", "requests_per_s", "p50_ttft_ms", "p99_itl_ms"},
    "bench_memory": {"model", "method", "step", "live_tokens", "pages_held"},
    "bench_kernels": {"kernel", "time_us"},
    "bench_start": {"model", "start", "compile_s", "graphs_s", "ready_s", "first_token_s"},
    "bench_train": {
        "model", "mask", "packing", "gpus", "processed_tokens_per_s", "useful_tokens_per_s", "mfu",
        "peak_memory_gb", "planned_memory_gb",
    },
    "train_resume": {"comparison", "largest_relative_difference", "allowed", "passed"},
    "serve_overhead": {
        "model", "requests", "tokens", "bare_tokens_per_s", "served_tokens_per_s",
        "overhead_percent",
    },
    "ablations": {"setting", "accuracy", "accuracy_ci95", "peak_tokens", "dep_full"},
}  # fmt: skip
BENCHMARKS["serve_overhead_paced"] = BENCHMARKS["serve_overhead"]
"""What a row of each benchmark's results has at least."""
EVALUATIONS = sorted(set((ROOT / "results").glob("*.json")) - {SERVE_ROBUSTNESS})


@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda f: f.stem)
def test_results_name_device_versions_command_and_seed(file):
    results = json.loads(file.read_text())
    for key in ("device", "versions", "command", "seed"):
        assert key in results, key
    assert not re.search(r"[ =]/\w", results["command"]), "a path of the machine that ran it"
    if file.stem in BENCHMARKS:
        assert all(BENCHMARKS[file.stem] <= row.keys() for row in results["rows"])
        assert "--smoke" not in results["command"]
        return
    if "rows" in results:
        check_table(results)
        assert not results.get("smoke"), "a smoke run's table is not a result"
        return
    if "methods" not in results:
        return
    for key in ("num_problems", "by_family"):
        assert key in results, key
    for values in results["methods"].values():
        low, high = values["accuracy_ci95"]
        assert low <= values["accuracy"] <= high
    assert EvalResults.from_dict(results).to_dict()["methods"].keys() == results["methods"].keys()


def test_serve_robustness_says_what_was_run_and_that_nothing_broke():
    result = json.loads(SERVE_ROBUSTNESS.read_text())
    counts = (
        "requests", "aborted", "failed", "mismatched", "pages_held_after", "fuzz_cases", "fuzz_5xx",
        "soak_requests", "seed",
    )  # fmt: skip
    assert all(isinstance(result[key], int) for key in counts)
    assert all(isinstance(result[k], float) for k in ("rss_growth_mb", "overhead_percent"))
    assert result["soak_minutes"] > 0
    assert result["requests"] >= 200
    assert result["aborted"] >= result["requests"] / 10
    assert result["failed"] == result["mismatched"] == result["pages_held_after"] == 0
    assert result["fuzz_cases"] >= 5000
    assert result["fuzz_5xx"] == 0
    assert sum(result["fuzz_statuses"].values()) == result["fuzz_cases"]
    assert result["device"]
    assert result["versions"]
    assert "serve_robustness.py" in result["command"]


def test_no_module_runs_remote_code_or_reads_pickles():
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text()
        assert text.count("trust_remote_code") == text.count("trust_remote_code=False"), file
        assert "torch.load(" not in text, file


def test_modules_stay_readable():
    lengths = {f: len(f.read_text().splitlines()) for f in (ROOT / "src").rglob("*.py")}
    assert {f.name: n for f, n in lengths.items() if n > 420} == {}
