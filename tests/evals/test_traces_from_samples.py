"""scripts/traces_from_samples.py: checked answers are learned from, the rest is counted."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightthinker.data.sources import read_traces
from lightthinker.errors import DataError
from lightthinker.evals.journal import JournalWriter, open_journal
from lightthinker.evals.records import SampleRecord, write_samples
from lightthinker.segment import SegmentConfig
from lightthinker.testing.records import simulated_record

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "traces_from_samples.py"
RIGHT = "Half of 48 is 24.\n\nTogether 48+24=72.\n\nSo the answer is \\boxed{72}.\n\nBye."


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("traces_from_samples", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sample(problem: str, number: int, text: str = RIGHT, **changes: Any) -> SampleRecord:
    record = simulated_record(problem, method="full_cot", family="gsm8k", correct=True)
    known = {
        "question": f"Question {problem}?", "text": text, "sample": number, "reference": "72",
        "correct_strict": True, "extracted_strict": "72", "finish_reason": "stop",
    }  # fmt: skip
    return dataclasses.replace(record, **{**known, **changes})


@pytest.mark.parametrize(
    ("text", "wanted", "answer"),
    [
        ("It is 3.\n\nSo \\boxed{5}.\n\nAs 15/3 is.", "5", "So \\boxed{5}.\n\nAs 15/3 is."),
        ("One.\n\nSo \\boxed{1{,}234}.", "1234", "So \\boxed{1{,}234}."),
        ("One.\n\nSo \\boxed{−18}.", "-18", "So \\boxed{−18}."),
        ("It is 7.\n\nSo it is \\boxed{7}.\n\nYes, 7.", "7", "So it is \\boxed{7}.\n\nYes, 7."),
    ],
)  # fmt: skip
def test_the_answer_is_the_number_itself_where_it_is_marked(
    script: ModuleType, text: str, wanted: str, answer: str
) -> None:
    record = sample("a", 0, text, extracted_strict=wanted, reference=wanted)
    kept = script.traces([record], pieces=SegmentConfig(by="paragraph"))
    assert [row["response"] for row in kept.rows] == [answer]


def test_only_finished_right_marked_and_different_samples_are_kept(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "48/2=24\n\n48+24=72\n\n\\boxed{72}"
    records = [
        sample("a", 0), sample("a", 1), sample("a", 2, other), sample("a", 3, other + "!"),
        sample("b", 0, correct=False, correct_strict=False),
        sample("b", 1, finish_reason="length"),
        sample("b", 2, correct_strict=False),
        sample("b", 3, "It is \\boxed{72}."),
        sample("c", 0, "```python\n\n\\boxed{72}"),
    ]  # fmt: skip
    samples, output = tmp_path / "s.samples.jsonl", tmp_path / "own.jsonl"
    write_samples(records, samples)
    arguments = [str(samples), "--output", str(output), "--per-problem", "2", "--without", "```"]

    script.main(arguments)

    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["samples"] == 9
    assert summary["problems"] == 3
    assert summary["traces"] == 2
    assert summary["problems_with_traces"] == 1
    assert summary["dropped"] == {
        "the same text again": 1, "enough of this problem": 1, "wrong": 1, "not finished": 1,
        "right, but not marked as the answer": 1,
        "no reasoning before the answer, or no answer found": 1,
        "contains what was not wanted": 1,
    }  # fmt: skip
    reader = read_traces(output)
    first, second = list(reader)
    assert reader.report.format == "columns"
    assert reader.report.num_dropped == 0
    assert first.question == "Question a?"
    assert first.reference == "72"
    assert first.reasoning == "Half of 48 is 24.\n\nTogether 48+24=72."
    assert first.answer == "So the answer is \\boxed{72}.\n\nBye."
    assert second.answer == "\\boxed{72}"
    with pytest.raises(SystemExit, match="exists"):
        script.main(arguments)


def test_reasoning_between_tags_is_taken_as_it_is(script: ModuleType) -> None:
    tagged = sample("a", 0, "<think>\nHalf is 24.\n</think>\n\nThe sum is 72.")
    broken = sample("b", 0, "<think>\n72</think></think>72")
    kept = script.traces([tagged, broken], pieces=SegmentConfig())
    (row,) = kept.rows
    assert (row["reasoning"], row["response"]) == ("Half is 24.", "The sum is 72.")
    assert dict(kept.drops) == {"misplaced reasoning tag": 1}


def test_where_the_answer_begins_follows_the_pieces(script: ModuleType) -> None:
    lines = sample("a", 0, "48/2=24\n48+24=72\n#### 72")
    (row,) = script.traces([lines], pieces=SegmentConfig(by="line")).rows
    assert (row["reasoning"], row["response"]) == ("48/2=24\n48+24=72", "#### 72")
    assert dict(script.traces([lines], pieces=SegmentConfig()).drops) == {
        "no reasoning before the answer, or no answer found": 1
    }


def test_samples_with_a_system_prompt_are_refused(script: ModuleType) -> None:
    with pytest.raises(DataError, match="r1 or plain"):
        script.traces([sample("a", 0, prompt="gsm8k:chat@1")], pieces=SegmentConfig())


def test_a_journal_that_was_cut_short_is_read(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "samples.parts"
    open_journal(journal, {"model": "m"})
    with JournalWriter(journal, shard=0, num_shards=2) as writer:
        for record in (sample("b", 1), sample("a", 1), sample("a", 0, RIGHT + " Once more.")):
            writer.write(record)
    with next(journal.glob("*.jsonl")).open("a") as part:
        part.write('{"problem_id": "c", "fam')
    output = tmp_path / "own.jsonl"
    script.main([str(journal), "--output", str(output), "--per-problem", "1"])
    assert json.loads(capsys.readouterr().out)["traces"] == 2
    # The first samples come first, whichever process wrote them.
    assert "Once more." in output.read_text().splitlines()[0]
    with pytest.raises(SystemExit, match="run the evaluation with --samples"):
        script.main([str(tmp_path / "none"), "--output", str(output)])
