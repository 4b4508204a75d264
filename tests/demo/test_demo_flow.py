"""The demonstration from start to report, with a tiny model that samples reference traces."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lightthinker.bundled import bundled_model_path
from lightthinker.demo import flow
from lightthinker.demo.flow import DemoSettings, run_demo
from lightthinker.engine.llm import LLM
from lightthinker.errors import CheckpointError
from lightthinker.evals.benchmarks import HELD_OUT_SEEDS
from lightthinker.tasks import generate
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.scripted import TraceSampler

FAMILY, SEED_STRIDE = "programs", 2**20


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose engine, wherever the demo opens it, answers all but the second problem."""
    folder = tiny_checkpoint(tmp_path / "model")
    problems = [
        generate(FAMILY, seed=HELD_OUT_SEEDS + SEED_STRIDE + i, difficulty="tiny") for i in range(3)
    ]

    def open_llm(model: str) -> LLM:
        llm = LLM(model, device="cpu", num_kv_tokens=8192)
        TraceSampler(llm, problems, {problems[1].question: "wrong"})
        return llm

    monkeypatch.setattr(flow, "open_llm", open_llm)
    monkeypatch.setattr(flow, "DIFFICULTY", "tiny")
    return folder


def test_the_demo_shows_measures_and_reports(checkpoint: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    output = tmp_path / "runs" / "demo"
    settings = DemoSettings(
        num_problems=3, seed=1, family=FAMILY, output=output, model=str(checkpoint)
    )

    first = run_demo(settings, console, command="lightthinker demo")
    second = run_demo(settings, console)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert text.count("✓ correct") == text.count("✗ wrong, expected") == 2
    assert " gists)" in text
    assert "LightThinker" in text
    assert first == output / "report.html"
    assert second == tmp_path / "runs" / "demo-2" / "report.html"
    assert "Expected answer" in first.read_text(encoding="utf-8")
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["num_problems"] == 3
    assert results["methods"]["lightthinker"]["accuracy"] == pytest.approx(2 / 3)
    assert results["paired"]["accuracy_difference"] == 0
    assert results["command"] == "lightthinker demo"


def test_a_model_that_cannot_compress_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["lightthinker"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(flow, "open_llm", lambda model: LLM(model, num_kv_tokens=256))
    console = Console(file=io.StringIO())

    with pytest.raises(CheckpointError, match="was not trained with LightThinker"):
        run_demo(DemoSettings(num_problems=1, model=str(checkpoint)), console)


def test_without_a_bundled_model_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightthinker.bundled.files", lambda package: tmp_path)

    with pytest.raises(CheckpointError, match="--model"):
        bundled_model_path()

    folder = tmp_path / "assets" / "bundled_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert bundled_model_path() == folder


def test_problems_of_different_families_are_shown() -> None:
    problems = flow.load_benchmark("tasks", num_problems=20, difficulty="tiny")

    shown = flow._to_show(problems)

    assert len(shown) == flow.NUM_SHOWN
    assert len({problem.family for problem in shown}) == flow.NUM_SHOWN
