"""A pool of processes: what becomes of jobs whose process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lightthinker.evals import pool
from lightthinker.evals.journal import journal_path
from lightthinker.evals.pool import Work, run_pool
from lightthinker.evals.results import read_results
from lightthinker.evals.settings import EvalSettings
from lightthinker.testing.models import tiny_checkpoint


def work(tmp_path: Path, name: str, **settings: object) -> Work:
    given = {
        "tasks": ("programs",), "difficulty": "tiny", "num_problems": 2, "max_tokens": 20,
        "methods": ("full_cot",), **settings,
    }  # fmt: skip
    checkpoint = tmp_path / "tiny"
    if not checkpoint.exists():
        tiny_checkpoint(checkpoint)
    made = Work(
        path=tmp_path / "runs" / f"{name}.json", model=str(checkpoint), num_shards=2,
        settings=EvalSettings(**given), command="test",  # type: ignore[arg-type]
        options={"dtype": "float32", "num_kv_tokens": 4096},
    )  # fmt: skip
    evaluation = made.evaluation(lambda: pytest.fail("nothing is run here"))
    evaluation.prepare()
    return made


def test_a_job_whose_process_dies_is_done_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = work(tmp_path, "only")
    hand_out, killed = pool._Pool._hand_out, []

    def murderous(self: pool._Pool) -> None:
        hand_out(self)
        if not killed:
            killed.append(self.workers[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(pool._Pool, "_hand_out", murderous)
    said: list[str] = []
    assert run_pool([only], ["cpu", "cpu"], say=said.append) == {}
    assert sum("another takes its job" in words for words in said) == 1
    assert read_results(only.path).overall.num_problems == 2
    assert not journal_path(only.path).exists()


def test_what_waits_for_a_failure_is_named_and_the_rest_runs(tmp_path: Path) -> None:
    light = work(tmp_path, "light", methods=("anllm",))  # The checkpoint was not trained for it.
    waiting = work(tmp_path, "waiting", methods=("full_cot",))
    waiting = Work(**{**vars(waiting), "after": light.path})
    other = work(tmp_path, "other")
    reasons = run_pool([light, waiting, other], ["cpu"])
    assert set(reasons) == {light.path, waiting.path}
    assert "trained" in reasons[light.path]
    assert reasons[waiting.path] == "light has no results"
    assert other.path.is_file()
