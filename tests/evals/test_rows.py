"""Rows of committed tables, several files in one, and the script that writes the tables."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightthinker.errors import DataError
from lightthinker.evals.combine import Run, combine
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.results import EvalResults, RunInfo
from lightthinker.evals.rows import ROW_KEYS, check_table, markdown, paired_rows, table_rows
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.records import simulated_record

ROOT = Path(__file__).resolve().parents[2]


def info(model: str = "m") -> RunInfo:
    return RunInfo(
        benchmark={"name": "tasks"}, model={"name": model}, device="cpu", seed=0, command="c"
    )


def records(*methods: str, wrong: int = 0) -> list[SampleRecord]:
    return [
        simulated_record(
            f"p{i}", method=method, family="programs" if i % 2 else "multiplication",
            correct=i >= wrong,
        )
        for method in methods for i in range(4)
    ]  # fmt: skip


def run(*methods: str, model: str = "m", wrong: int = 0, keep: bool = True) -> Run:
    rows = records(*methods, wrong=wrong)
    results = EvalResults.from_records(rows, info(model))
    return Run(results=results, records=rows if keep else ())


def table(**changes: Any) -> dict[str, Any]:
    rows = table_rows(run("full_cot", "lightthinker").results, suffix="/2k")
    keys = {"device": "cpu", "versions": {}, "command": "c", "seed": 0}
    return {"rows": rows, **keys, **changes}


def test_rows_have_exactly_the_promised_keys() -> None:
    rows = json.loads(json.dumps(table()["rows"]))

    assert all(tuple(row) == ROW_KEYS for row in rows)
    assert [row["task"] for row in rows[::2]] == ["multiplication/2k", "programs/2k", "all/2k"]
    assert {row["method"] for row in rows} == {"full_cot", "lightthinker"}
    assert rows[-1]["num_problems"] == 4
    assert rows[-1]["budget"] is None
    check_table({**table(), "rows": rows})
    assert markdown(rows).count("\n") == 1 + len(rows)
    pairs = paired_rows(run("full_cot", "lightthinker", wrong=1).results)
    assert {pair["accuracy_difference"] for pair in pairs} == {0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "no rows"),
        ({"accuracy": 1.5}, "interval"),
        ({"extra": 1}, "extra"),
        ({"peak_tokens": -1}, "cost"),
        ({"dep_full": 0}, "cost"),
    ],
)
def test_tables_that_break_the_contract_are_refused(change: dict[str, Any], message: str) -> None:
    good = table()
    broken = {**good, **change} if "rows" in change else good
    if "rows" not in change:
        broken = {**good, "rows": [{**good["rows"][0], **change}, *good["rows"][1:]]}
    with pytest.raises(DataError, match=message):
        check_table(broken)


def test_tables_name_their_origin_and_repeat_no_row() -> None:
    good = table()
    with pytest.raises(DataError, match="'device'"):
        check_table({key: value for key, value in good.items() if key != "device"})
    with pytest.raises(DataError, match="repeats"):
        check_table({**good, "rows": good["rows"] * 2})


def test_files_are_combined_with_pairs_across_them() -> None:
    one = run("full_cot", "lightthinker", model="a")
    together = combine([one, run("anllm", "lightthinker", model="b", wrong=2)])

    overall = together.results.overall
    assert list(overall.methods) == ["full_cot", "lightthinker", "anllm", "lightthinker @ b"]
    assert overall.against_full_cot["anllm"].accuracy_difference == -0.5
    assert len(together.records) == 16
    assert overall.num_problems == 4
    assert combine([one]) is one


def test_files_without_samples_are_put_side_by_side() -> None:
    together = combine([run("full_cot", "lightthinker"), run("anllm", keep=False)])

    assert set(together.results.overall.methods) == {"full_cot", "lightthinker", "anllm"}
    assert set(together.results.by_family["programs"].methods) == {
        "full_cot", "lightthinker", "anllm",
    }  # fmt: skip
    with pytest.raises(DataError, match="several of these files"):
        combine([run("h2o"), run("h2o"), run("h2o")])
    with pytest.raises(DataError, match="no results"):
        combine([])


@pytest.fixture(scope="module")
def reproduce() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module
    spec.loader.exec_module(module)
    return module


def test_the_main_table_is_written_and_its_steps_run_once(
    reproduce: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reproduce, "EVICTION", ("h2o", "random"))
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    arguments = [
        "main_table", "--smoke", "--device", "cpu", "--num-problems", "1", "--runs",
        str(tmp_path / "runs"), "--checkpoint", f"lightthinker={checkpoint}",
        "--num-kv-tokens", "4096",
    ]  # fmt: skip
    before = sorted((ROOT / "results").iterdir())

    reproduce.main(arguments)

    out = capsys.readouterr().out.splitlines()
    path = Path(json.loads(out[-1])["main_table"])
    written = json.loads(path.read_text())
    check_table(written)
    assert written["smoke"]
    assert sorted((ROOT / "results").iterdir()) == before
    methods = [row["method"] for row in written["rows"]]
    assert methods[:2] == ["lightthinker", "full_cot"]
    assert methods[-1] == "h2o:match=peak,keep_prompt=true"
    assert {m.partition(":")[0] for m in methods[2:]} == set(reproduce.EVICTION)
    assert all(row["budget"] is not None for row in written["rows"][2:])
    assert set(written["skipped"]) == {"anllm", "lightthinker_token"}
    assert len(written["against_full_cot"]) == len(methods) - 1
    assert (path.parent / "report.html").is_file()

    reproduce.main(arguments)
    assert capsys.readouterr().err.count("finished before") == 7
    with pytest.raises(SystemExit, match=r"other settings: seed: 0 -> 1"):
        reproduce.main([*arguments, "--seed", "1"])

    # The steps come from a machine with another torch, and one of them never finished there.
    for file in path.parent.glob("*.settings.json"):
        settings = json.loads(file.read_text())
        settings["versions"]["torch"] = "2.0.0"
        file.write_text(json.dumps(settings))
    (path.parent / "h2o_peak_prompt.json").unlink()
    path.unlink()
    with pytest.raises(SystemExit, match=r"2\.0\.0"):
        reproduce.main(arguments)
    capsys.readouterr()
    monkeypatch.setattr(reproduce, "command_line", lambda: "python here")
    with pytest.raises(SystemExit, match="1 steps are missing"):
        reproduce.main([*arguments, "--tables-only"])
    again = json.loads(path.read_text())
    assert [row["method"] for row in again["rows"]] == methods[:-1]
    assert again["skipped"]["h2o_peak_prompt"] == "not finished"
    assert again["command"] == f"{written['command']} && python here"


def test_targets_share_a_pool_and_a_step_that_fails_is_named(
    reproduce: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reproduce, "EVICTION", ("random",))
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    anllm = tmp_path / "anllm"  # A checkpoint that was not trained with AnLLM.
    shutil.copytree(checkpoint, anllm)
    arguments = [
        "main_table", "budget_sweep", "--smoke", "--devices", "cpu", "--num-problems",
        "main_table=2,budget_sweep=2", "--problems-per-job", "1", "--runs", str(tmp_path / "runs"),
        "--checkpoint", f"lightthinker={checkpoint}", "--checkpoint", f"anllm={anllm}",
        "--num-kv-tokens", "4096", "--no-report",
    ]  # fmt: skip

    with pytest.raises(SystemExit, match="1 steps are missing"):
        reproduce.main(arguments)

    captured = capsys.readouterr()
    paths = json.loads(captured.out.splitlines()[-1])
    main = json.loads(Path(paths["main_table"]).read_text())
    sweep = json.loads(Path(paths["budget_sweep"]).read_text())
    check_table(main)
    assert {row["method"] for row in main["rows"]} == {
        "lightthinker", "full_cot", "random:match=mean", "random:match=peak",
    }  # fmt: skip
    assert "trained" in main["skipped"]["anllm"]
    assert len({row["budget"] for row in sweep["rows"]}) == 3
    # Two targets have LightThinker and full CoT; they ran once, in two parts each.
    assert captured.err.count("lightthinker: part") == 2
    assert "budget_sweep/full_cot: part" not in captured.err
    first = [row for row in sweep["rows"] if row["method"] == "full_cot"]
    assert first == [row for row in main["rows"] if row["method"] == "full_cot"]
    assert sweep["skipped"] == {}
    (Path(paths["budget_sweep"]).parent / "random_400.json").unlink()
    with pytest.raises(SystemExit, match="1 steps are missing"):
        reproduce.main(["budget_sweep", "--tables-only", *arguments[2:]])
    sweep = json.loads(Path(paths["budget_sweep"]).read_text())
    assert sweep["skipped"] == {"random_400": "not finished"}


def test_a_trained_rival_that_ran_needs_its_checkpoint_no_more(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(reproduce, "EVICTION", ())
    monkeypatch.setattr(reproduce, "TRAINED", ("lightthinker_thought",))
    checkpoint, rival = (tiny_checkpoint(tmp_path / name) for name in ("tiny", "rival"))
    arguments = [
        "main_table", "--smoke", "--device", "cpu", "--num-problems", "1", "--runs",
        str(tmp_path / "runs"), "--checkpoint", f"lightthinker={checkpoint}",
        "--num-kv-tokens", "4096", "--no-report",
    ]  # fmt: skip
    reproduce.main([*arguments, "--checkpoint", f"lightthinker_thought={rival}"])
    (path,) = json.loads(capsys.readouterr().out.splitlines()[-1]).values()
    first = json.loads(Path(path).read_text())
    shutil.rmtree(rival)
    reproduce.main(arguments)
    again = json.loads(Path(path).read_text())
    assert again["rows"] == first["rows"]
    assert [row["method"] for row in again["rows"]].count("lightthinker_thought") == 1
    assert again["skipped"] == {}


def test_when_time_is_up_finished_samples_are_kept(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    arguments = [
        "main_table", "--smoke", "--devices", "cpu", "--num-problems", "1", "--runs",
        str(tmp_path / "runs"), "--checkpoint", f"lightthinker={checkpoint}",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="22 steps are missing"):
        reproduce.main([*arguments, "--time-limit", "0"])
    assert json.loads(capsys.readouterr().out) == {}
    assert (tmp_path / "runs/smoke/main_table/lightthinker.parts").is_dir()


def test_processes_that_share_a_gpu_are_told_their_part(reproduce: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--num-kv-tokens"):
        reproduce.main(["main_table", "--devices", "cuda:0,cuda:0"])
    with pytest.raises(SystemExit, match="--num-problems is 'main_tabel=3'"):
        reproduce.main(["main_table", "--smoke", "--num-problems", "main_tabel=3"])


def test_tables_only_runs_and_deletes_nothing(reproduce: ModuleType) -> None:
    for more in (["--overwrite"], ["bundled_model"]):
        with pytest.raises(SystemExit, match="--tables-only runs nothing"):
            reproduce.main(["main_table", *more, "--tables-only"])


def test_unknown_checkpoints_are_refused(reproduce: ModuleType) -> None:
    with pytest.raises(SystemExit, match="unknown checkpoint 'lightthinkr'"):
        reproduce.main(["main_table", "--checkpoint", "lightthinkr=x"])
