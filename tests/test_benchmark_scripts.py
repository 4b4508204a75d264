"""Every benchmark can at least be loaded and says what it takes; they run elsewhere."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_it_loads(file, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.__doc__


def test_a_smoke_run_prints_one_json_object_last():
    command = [sys.executable, str(FOLDER / "bench_decode.py"), "--smoke", "--batches", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert '"rows": [{"model": "tiny"' in done.stdout.splitlines()[-1]


def test_the_server_is_measured_beside_its_engine_on_a_device_that_sleeps(tmp_path):
    out = tmp_path / "overhead.json"
    command = [sys.executable, str(FOLDER / "serve_overhead.py"), "--smoke", "--paced-ms", "1"]
    done = subprocess.run(
        [*command, "--output", str(out)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["requests"] == 8
    for name in ("bare", "served", "bare_streaming"):
        (rate,) = row[f"{name}_tokens_per_s"]
        assert 0 < rate < 4000, "four streams, a step each millisecond"
