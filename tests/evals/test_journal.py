"""The journal: nothing is lost or run twice, whatever kills the process; settings must match."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lightthinker.engine.llm import LLM
from lightthinker.errors import ConfigError, DataError
from lightthinker.evals.evaluate import Evaluation, evaluate, shard_worker
from lightthinker.evals.journal import (
    JournalFollower,
    JournalWriter,
    check_idle,
    device_names,
    open_journal,
    part_path,
    read_journal,
    settings_difference,
)
from lightthinker.evals.records import SampleRecord, read_samples
from lightthinker.evals.results import EvalResults, RunInfo, read_results, write_results
from lightthinker.evals.settings import EvalSettings
from lightthinker.evals.shards import Shard, run_processes
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.records import simulated_record

SETTINGS = EvalSettings(
    tasks=("programs", "multiplication"), num_problems=3, difficulty="tiny", max_tokens=12,
    methods=("full_cot", "lightthinker", "h2o:match=peak"),
)  # fmt: skip
NUM_RECORDS = 3 * 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return LLM(checkpoint, device="cpu", num_kv_tokens=4096)


@pytest.fixture
def begin(llm: LLM, checkpoint: Path, tmp_path: Path) -> Callable[..., Evaluation]:
    def make(settings: EvalSettings = SETTINGS, **changes: object) -> Evaluation:
        evaluation = Evaluation(
            open_llm=lambda: llm, settings=settings, model=checkpoint, command="c",
            journal=tmp_path / "run.parts", **changes,  # type: ignore[arg-type]
        )  # fmt: skip
        evaluation.prepare()
        return evaluation

    return make


def without_time(records: list[SampleRecord]) -> list[SampleRecord]:
    return [dataclasses.replace(record, time_s=0.0) for record in records]


@pytest.fixture(scope="module")
def uninterrupted(llm: LLM, checkpoint: Path) -> list[SampleRecord]:
    _, records = evaluate(lambda: llm, SETTINGS, model=checkpoint, command="c")
    return without_time(records)


def test_a_killed_run_goes_on_where_it_was(
    begin: Callable[..., Evaluation], tmp_path: Path, uninterrupted: list[SampleRecord]
) -> None:
    folder, kill_after = tmp_path / "run.parts", 7
    child = os.fork()
    if child == 0:
        finished: list[None] = []

        def check() -> None:
            finished.append(None)
            if len(finished) == kill_after:
                path = part_path(folder, shard=0, num_shards=1)
                with path.open("a") as stream:
                    stream.write('{"problem_id": "half-wri')
                os.kill(os.getpid(), signal.SIGKILL)

        begin().run(check=check)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(read_journal(folder)) == kill_after

    run: list[None] = []
    evaluation = begin()
    records = evaluation.run(check=lambda: run.append(None))
    results, ordered = evaluation.results(records)

    assert len(run) == NUM_RECORDS - kill_after
    assert len(read_journal(folder)) == NUM_RECORDS
    assert without_time(ordered) == uninterrupted
    assert results.overall.methods["h2o:match=peak"].budget is not None
    # A run that is complete loads no model.
    assert "llm" not in begin().__dict__
    again = begin()
    again.run()
    assert "llm" not in again.__dict__


def test_shards_wait_for_matched_budgets_and_merge_to_the_same(
    begin: Callable[..., Evaluation], tmp_path: Path, uninterrupted: list[SampleRecord]
) -> None:
    first, second = Shard(index=0, count=2), Shard(index=1, count=2)
    evaluation = begin()

    assert evaluation.num_missing(first, evaluation.run(first)) == 3
    assert evaluation.num_missing(second, evaluation.run(second)) == 0
    with pytest.raises(DataError, match="3 of 18 samples are missing"):
        evaluation.results(read_journal(tmp_path / "run.parts"))
    assert evaluation.num_missing(first, begin().run(first)) == 0
    _, records = begin().results(begin().run())

    assert without_time(records) == uninterrupted
    (name,) = device_names(tmp_path / "run.parts")
    assert " x " not in name, "both shards ran on this machine"


def test_devices_are_counted_and_not_who_shares_them(tmp_path: Path) -> None:
    places = [("H100", "a"), ("H100", "b"), ("H100", "a"), ("L4", "c")]
    for shard, (name, unit) in enumerate(places):
        with JournalWriter(tmp_path, shard=shard, num_shards=4) as journal:
            journal.note_device(name, unit)
    assert device_names(tmp_path) == ["2 x H100", "L4"]


def test_two_processes_at_once_give_the_records_of_one(
    begin: Callable[..., Evaluation], uninterrupted: list[SampleRecord]
) -> None:
    plain = dataclasses.replace(SETTINGS, methods=("full_cot", "lightthinker"))
    children = []
    for index in (0, 1):
        child = os.fork()
        if child == 0:
            begin(plain).run(Shard(index=index, count=2))
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]

    evaluation = begin(plain)
    assert evaluation.journal is not None
    counts = [
        len(part_path(evaluation.journal, shard=i, num_shards=2).read_text().splitlines())
        for i in (0, 1)
    ]
    assert counts == [6, 6]
    _, records = evaluation.results(evaluation.run())
    assert without_time(records) == uninterrupted[:12]


def test_a_worker_loads_its_own_model(begin: Callable[..., Evaluation], checkpoint: Path) -> None:
    evaluation = begin()
    assert evaluation.journal is not None
    options = {"device": "cpu", "dtype": "auto", "num_kv_tokens": 4096}
    calls: list[None] = []

    shard_worker(
        str(checkpoint), options, SETTINGS, evaluation.journal, Shard(index=1, count=2),
        lambda: calls.append(None),
    )  # fmt: skip

    assert len(calls) == len(read_journal(evaluation.journal)) == 6


def test_processes_are_started_and_failures_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    run_processes(os.symlink, [(source, tmp_path / "a"), (source, tmp_path / "b")])
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_symlink()
    with pytest.raises(DataError, match="Shard 1 of 2 failed"):
        run_processes(os.symlink, [(source, tmp_path / "c"), (source, tmp_path / "a")])


def test_other_settings_are_refused_with_the_difference(begin: Callable[..., Evaluation]) -> None:
    begin()
    other = dataclasses.replace(SETTINGS, max_tokens=13, seed=1)
    with pytest.raises(ConfigError, match=r"max_tokens: 12 -> 13") as refused:
        begin(other)
    assert "seed: 0 -> 1" in str(refused.value)
    assert "--overwrite" in str(refused.value)
    begin(other, overwrite=True)
    with pytest.raises(ConfigError, match=r"max_tokens: 13 -> 12"):
        begin()


def test_differences_name_nested_settings() -> None:
    begun = {"a": 1, "versions": {"torch": "2", "x": 1}}
    wanted = {"a": 1, "versions": {"torch": "3", "x": 1}, "new": [1]}
    assert settings_difference(begun, wanted) == [
        'versions.torch: "2" -> "3"',
        "new: null -> [1]",
    ]
    assert settings_difference(begun, begun) == []


def test_a_half_written_line_is_cut_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    open_journal(tmp_path, {"a": 1})
    whole = simulated_record("p0", method="full_cot", question="Zürich\u2028 …")
    with JournalWriter(tmp_path) as journal:
        journal.write(whole)
    path = part_path(tmp_path, shard=0, num_shards=1)
    line = path.read_bytes()
    path.write_bytes(line + line[:50])
    assert read_journal(tmp_path) == [whole]

    with JournalWriter(tmp_path) as journal:
        assert path.read_bytes() == line
        journal.write(simulated_record("p1", method="full_cot"))
    assert [r.problem_id for r in read_journal(tmp_path)] == ["p0", "p1"]

    path.write_bytes(line + b"{}\n" + line)
    with pytest.raises(DataError, match=r"jsonl, line 2: not a sample record"):
        read_journal(tmp_path)
    path.write_bytes(line + line)
    with pytest.raises(DataError, match="twice"):
        read_journal(tmp_path)


def test_a_follower_sees_every_whole_line_once(tmp_path: Path) -> None:
    open_journal(tmp_path, {})
    follower = JournalFollower(tmp_path)
    assert follower.new_records() == []
    records = [simulated_record(f"p{i}", method="full_cot", question="ü") for i in range(3)]
    with JournalWriter(tmp_path) as journal:
        journal.write(records[0])
        assert follower.new_records() == records[:1]
        with journal.path.open("ab") as stream:
            line = records[1].to_json().encode()
            stream.write(line[:40])
            stream.flush()
            assert follower.new_records() == []
            stream.write(line[40:] + b"\n")
        journal.write(records[2])
    assert follower.new_records() == records[1:]


def test_a_part_has_one_writer(tmp_path: Path) -> None:
    open_journal(tmp_path, {})
    with JournalWriter(tmp_path, shard=0, num_shards=2):
        with pytest.raises(ConfigError, match="another process"):
            JournalWriter(tmp_path, shard=0, num_shards=2)
        with pytest.raises(ConfigError, match="another process"):
            check_idle(tmp_path)
        with pytest.raises(ConfigError, match="another process"):
            open_journal(tmp_path, {"other": 1}, overwrite=True)
        check_idle(tmp_path, num_shards=2)
    check_idle(tmp_path)
    JournalWriter(tmp_path, shard=0, num_shards=2).__exit__(None, None, None)


def test_half_written_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    record = simulated_record("p0", method="full_cot")
    samples = tmp_path / "r.samples.jsonl"
    samples.write_text(record.to_json() + "\n" + record.to_json()[:80])
    with pytest.raises(DataError, match="line 2: the file ends in the middle of a record"):
        read_samples(samples)

    info = RunInfo(
        benchmark={"name": "tasks"}, model={"name": "m"}, device="cpu", seed=0, command="c"
    )
    path = tmp_path / "r.json"
    write_results(EvalResults.from_records([record], info), path)
    path.write_text(path.read_text()[:-200])
    with pytest.raises(DataError, match="half-written"):
        read_results(path)


@pytest.mark.parametrize(
    ("index", "count", "message"), [(2, 2, "from 0 to 1"), (0, 0, "at least 1"), (-1, 2, "shard")]
)
def test_shards_out_of_range(index: int, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shard(index=index, count=count)
