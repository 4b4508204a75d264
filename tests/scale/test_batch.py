"""Offline batches: every row once, whatever happens in between."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lightthinker.cli.app import main
from lightthinker.engine.llm import LLM
from lightthinker.errors import ConfigError, DataError
from lightthinker.scale.batch import BatchSettings, answer_rows, pending
from lightthinker.scale.journal import Journal
from lightthinker.scale.ray_batch import MAX_DEATHS, _after_death
from lightthinker.scale.rows import BatchRow, read_rows
from lightthinker.tasks import generate
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.scripted import TraceSampler

PROBLEMS = [generate("programs", seed=i, difficulty="tiny") for i in range(6)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    llm = LLM(str(folder), device="cpu", num_kv_tokens=4096)
    TraceSampler(llm, PROBLEMS)
    return llm


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"question": p.question}) + "\n" for p in PROBLEMS))
    return path


SETTINGS = BatchSettings(model="m", max_tokens=600, window=2)


def results_of(path: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_killed_batch_goes_on_where_it_was(llm: LLM, questions: Path, tmp_path: Path) -> None:
    rows, output, asked = read_rows(questions), tmp_path / "out.jsonl", Counter()

    class Killed(Exception):
        pass

    def once(limit: int) -> None:
        with Journal(output, {"model": "m"}) as journal:
            todo = pending(rows, journal.done)
            asked.update(row.id for _, row in todo[:limit])

            def write(results: list) -> None:  # type: ignore[type-arg]
                journal.write(results)
                if len(journal.done) >= limit:
                    raise Killed

            answer_rows(llm, todo, SETTINGS, write)
            journal.finish([row.id for row in rows])

    with pytest.raises(Killed):
        once(2)
    for name in [row.id for row in rows]:
        llm.engine.abort_request(name)
    assert not output.exists()
    with (tmp_path / "out.jsonl.journal").open("ab") as torn:
        torn.write(b'{"id": "5", "answ')
    once(100)

    results = results_of(output)
    assert [r["id"] for r in results] == [str(i) for i in range(6)]
    assert [r["answer"] for r in results] == [p.answer for p in PROBLEMS]
    assert all(
        r["reasoning"].startswith(p.thoughts[0]) for r, p in zip(results, PROBLEMS, strict=True)
    )
    assert all(r["usage"]["kv_tokens_freed"] > 0 and r["error"] is None for r in results)
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_the_journal_writes_a_row_once_and_guards_its_settings(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with Journal(output, {"model": "a", "seed": 0}) as journal:
        journal.write([{"id": "x", "answer": "1"}, {"id": "x", "answer": "1"}])
        journal.write([{"id": "x", "answer": "2"}])
        with pytest.raises(ConfigError, match="in use by another batch"):
            Journal(output, {"model": "a", "seed": 0}).__enter__()
    with pytest.raises(ConfigError, match="begun with seed = 0, now it is 1"):
        Journal(output, {"model": "a", "seed": 1}).__enter__()
    with Journal(output, {"model": "a", "seed": 0}) as journal:
        assert journal.done == {"x"}
        journal.finish(["x"])
    assert results_of(output) == [{"id": "x", "answer": "1"}]
    with pytest.raises(ConfigError, match="exists already"):
        Journal(output, {"model": "a", "seed": 0}).__enter__()


def test_a_row_that_cannot_be_served_is_a_result(llm: LLM) -> None:
    long = BatchRow("long", ({"role": "user", "content": "1+1\n" * 5000},))
    good = BatchRow("good", ({"role": "user", "content": PROBLEMS[0].question},))
    results: dict[str, dict] = {}  # type: ignore[type-arg]

    answer_rows(
        llm, pending([long, good], set()), SETTINGS,
        lambda found: results.update({r["id"]: r for r in found}),
    )  # fmt: skip

    assert results["long"]["finish_reason"] == "error"
    assert results["long"]["error"]
    assert results["good"]["answer"] == PROBLEMS[0].answer


def test_parquet_in_and_out(llm: LLM, tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(
        pa.table({"id": ["b", "a"], "prompt": [p.question for p in PROBLEMS[:2]]}), source
    )
    rows = read_rows(source)
    with Journal(output, {}) as journal:
        answer_rows(llm, pending(rows, journal.done), SETTINGS, journal.write)
        journal.finish([row.id for row in rows])

    written = parquet.read_table(output).to_pylist()
    assert [(r["id"], r["answer"]) for r in written] == [
        ("b", PROBLEMS[0].answer), ("a", PROBLEMS[1].answer),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x", "id": 1}\n{"prompt": "y", "id": "1"}\n', "two rows have the id '1'"),
        ('{"text": "x"}\n', "row 0: expected `messages` or prompt"),
        ("{\n", "line 1: no JSON"),
        ('{"messages": [{"role": "user"}]}\n', "each message needs"),
    ],
)
def test_input_is_checked(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)

    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_rows_of_dying_workers_are_isolated_and_given_up() -> None:
    job = tuple((i, BatchRow(str(i), ())) for i in range(8))
    deaths: Counter[str] = Counter()
    jobs, given_up, killer = [job], [], "5"

    for _ in range(100):
        if not jobs:
            break
        job = jobs.pop(0)
        if any(row.id == killer for _, row in job):
            retry, lost = _after_death(job, deaths)
            jobs = [*retry, *jobs]
            given_up += lost

    assert [row.id for _, row in given_up] == [killer]
    assert deaths[killer] >= MAX_DEATHS
    assert not jobs


WRITER = """
import sys
from pathlib import Path
from lightthinker.scale.journal import Journal

with Journal(Path(sys.argv[1]), {"model": "m"}) as journal:
    for number in range(100_000):
        if str(number) not in journal.done:
            journal.write([{"id": str(number), "answer": "x" * 3000}])
            print(number, flush=True)
"""


def test_what_was_written_survives_kill_nine(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    told: list[int] = []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(20):
                told.append(int(process.stdout.readline()))
            process.kill()
            told += [int(line) for line in process.stdout.read().split("\n")[:-1]]

    with Journal(output, {"model": "m"}) as journal:
        done = set(journal.done)
        journal.finish(sorted(done, key=int))

    written = [int(r["id"]) for r in results_of(output)]
    assert written == list(range(len(written)))
    assert told == sorted(set(told))
    assert set(told) <= set(written)
    assert len(written) - len(told) <= 2


def test_the_command(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    output = tmp_path / "out.jsonl"

    main(["batch", str(questions), str(output), "--model", str(model), "--max-tokens", "8"])

    assert f"Rows in {output}: 6\n" in capsys.readouterr().out
    assert [r["finish_reason"] for r in results_of(output)] == ["length"] * 6
