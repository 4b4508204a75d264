"""What the repository promises: README tables from results, no remote code, small modules."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightthinker.evals.results import EvalResults
from lightthinker.evals.rows import check_table

ROOT = Path(__file__).resolve().parents[1]


def test_readme_tables_say_what_the_results_files_say():
    script = ROOT / "scripts" / "update_readme.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda f: f.stem)
def test_scripts_say_what_they_do_and_do_nothing_else_when_asked(script):
    command = [sys.executable, script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name}")
    assert str(ast.get_docstring(ast.parse(script.read_text()))).splitlines()[0] in done.stdout


SERVE_ROBUSTNESS = ROOT / "results" / "serve_robustness.json"
BENCHMARKS = {
    "bench_decode": {"model", "batch", "live_tokens", "step_ms", "floor_ms", "ratio"},
    "bench_offline": {
        "model", "method", "requests", "generated_tokens", "kv_budget_gb", "useful_tokens_per_s",
    },
    "bench_latency": {"model", "method", "requests_per_s", "p50_ttft_ms", "p99_itl_ms"},
    "bench_memory": {"model", "method", "step", "live_tokens", "pages_held"},
    "bench_kernels": {"kernel", "time_us"},
    "bench_train": {
        "model", "mask", "packing", "gpus", "processed_tokens_per_s", "useful_tokens_per_s", "mfu",
        "peak_memory_gb", "planned_memory_gb",
    },
    "ablations": {"setting", "accuracy", "accuracy_ci95", "peak_tokens", "dep_full"},
}  # fmt: skip
"""What a row of each benchmark's results has at least."""
EVALUATIONS = sorted(set((ROOT / "results").glob("*.json")) - {SERVE_ROBUSTNESS})


@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda f: f.stem)
def test_results_name_device_versions_command_and_seed(file):
    results = json.loads(file.read_text())
    for key in ("device", "versions", "command", "seed"):
        assert key in results, key
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
        assert "trust_remote_code" not in text, file
        assert "torch.load(" not in text, file


def test_modules_stay_readable():
    lengths = {f: len(f.read_text().splitlines()) for f in (ROOT / "src").rglob("*.py")}
    assert {f.name: n for f, n in lengths.items() if n > 420} == {}
