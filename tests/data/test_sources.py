from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lightthinker.data.rows import HubOptions
from lightthinker.data.sources import read_traces
from lightthinker.data.trace import DropReason, Message, Trace, TraceError
from lightthinker.errors import ConfigError, DataError

TAGGED = (
    "<|begin_of_thought|>\n\nTwo pairs.\n\nSo four.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{4}.\n\n<|end_of_solution|>"
)
STRATOS_ROW = {
    "system": "Your role as an assistant ...",
    "conversations": [
        {"from": "user", "value": "Return your final response within \\boxed{}. 2+2?"},
        {"from": "assistant", "value": TAGGED},
    ],
}
UPSTREAM_ROW = {
    "system_prompt": "Your role as an assistant ...",
    "system_list": ["Your role", "as an assistant ..."],
    "question": "2+2?",
    "question_list": ["2+2?"],
    "thoughts_list": [
        "<|begin_of_thought|>\n\nTwo pairs.",
        "So four.\n\n<|end_of_thought|>",
        "<|begin_of_solution|>\n\nIt is \\boxed{4}.\n\n<|end_of_solution|>",
    ],
    "gt_output": TAGGED,
    "add_eos": True,
}
GSM8K_ROW = {
    "question": "2*2+1?",
    "answer": "Twice 2 is 2*2=<<2*2=4>>4.\nOne more is <<4+1=5>>5.\n#### 5",
}
FLAT_ROW = {"question": "2+2?", "reasoning": "Two pairs.", "answer": "4"}


def write_lines(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_one(folder: Path, row: object, **options: Any) -> Trace:
    (trace,) = read_traces(write_lines(folder, row), strict=True, **options)
    return trace


def reason_for(folder: Path, row: object, **options: Any) -> DropReason:
    reader = read_traces(write_lines(folder, row), **options)
    assert list(reader) == []
    (reason,) = reader.report.drops
    return reason


def messages_row(*turns: tuple[str, object], **last: object) -> dict[str, object]:
    messages: list[dict[str, object]] = [{"role": role, "content": text} for role, text in turns]
    messages[-1].update(last)
    return {"messages": messages}


def test_stratos(tmp_path: Path) -> None:
    assert read_one(tmp_path, STRATOS_ROW) == Trace(
        question="Return your final response within \\boxed{}. 2+2?",
        reasoning="Two pairs.\n\nSo four.",
        answer="It is \\boxed{4}.",
        system="Your role as an assistant ...",
        source="rows.jsonl:1",
    )


def test_sharegpt_with_human_gpt_and_think_tags(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "2+2?"},
        {"from": "gpt", "value": "<think>Two pairs.</think>4"},
    ]
    trace = read_one(tmp_path, {"conversations": turns})
    assert (trace.system, trace.question, trace.reasoning, trace.answer) == (
        "Be brief.",
        "2+2?",
        "Two pairs.",
        "4",
    )


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_messages_with_separate_reasoning(tmp_path: Path, key: str) -> None:
    row = messages_row(("user", "2+2?"), ("assistant", "4"), **{key: "Two pairs.\n"})
    trace = read_one(tmp_path, row)
    assert (trace.reasoning, trace.answer) == ("Two pairs.", "4")


def test_messages_whose_template_supplied_the_opening_tag(tmp_path: Path) -> None:
    row = messages_row(("user", "2+2?"), ("assistant", "Two pairs.\n</think>\n\n4"))
    trace = read_one(tmp_path, row)
    assert (trace.reasoning, trace.answer) == ("Two pairs.", "4")


def test_messages_in_parts(tmp_path: Path) -> None:
    row = messages_row(
        ("user", [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]),
        ("assistant", "<think>Two pairs.</think>4"),
    )
    assert read_one(tmp_path, row).question == "2+2?"


def test_the_last_answer_is_the_target_and_earlier_reasoning_is_dropped(tmp_path: Path) -> None:
    row = messages_row(
        ("developer", "Be brief."),
        ("user", "1+1?"),
        ("assistant", "<think>One pair.</think>2"),
        ("user", "2+2?"),
        ("assistant", "<think>Two pairs.</think>4"),
        ("user", "Thanks!"),
    )
    trace = read_one(tmp_path, row)
    assert (trace.system, trace.question, trace.reasoning) == ("Be brief.", "2+2?", "Two pairs.")
    assert trace.history == (
        Message(role="user", content="1+1?"),
        Message(role="assistant", content="2"),
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (messages_row(("user", "2+2?"), ("assistant", "4")), DropReason.NO_REASONING),
        (
            messages_row(("user", "?"), ("assistant", "<think>\n\n</think>\n\n4")),
            DropReason.NO_REASONING,
        ),
        (messages_row(("user", "?"), ("assistant", "<think>Hm")), DropReason.UNCLOSED_TAG),
        (messages_row(("user", "?"), ("assistant", "<think>Hm</think> ")), DropReason.NO_ANSWER),
        (messages_row(("user", "2+2?")), DropReason.NO_ANSWER),
        (messages_row(("assistant", "Hm</think>4")), DropReason.NO_QUESTION),
        (messages_row(("tool", "4"), ("assistant", "Hm</think>4")), DropReason.NO_QUESTION),
        (messages_row(("narrator", "4")), DropReason.UNKNOWN_ROLE),
        (messages_row((["user"], "4")), DropReason.UNKNOWN_ROLE),
        (messages_row(("user", None)), DropReason.NOT_TEXT),
        (messages_row(("user", [{"type": "image_url"}])), DropReason.NOT_TEXT),
        (messages_row(("user", "?"), ("assistant", "4"), reasoning=[1]), DropReason.NOT_TEXT),
        ({"messages": "hello"}, DropReason.NOT_TEXT),
        ({"messages": [1]}, DropReason.NOT_TEXT),
    ],
)
def test_conversations_that_yield_no_trace(
    tmp_path: Path, row: dict[str, object], reason: DropReason
) -> None:
    assert reason_for(tmp_path, row) is reason


@pytest.mark.parametrize("question", ["question", "prompt", "problem", "instruction"])
@pytest.mark.parametrize("reasoning", ["reasoning", "thinking", "cot", "rationale", "solution"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "response", "output", "completion"])
def test_columns_by_their_common_names(
    tmp_path: Path, question: str, reasoning: str, answer: str
) -> None:
    trace = read_one(tmp_path, {question: "2+2?", reasoning: "Two pairs.", answer: "4"})
    assert (trace.question, trace.reasoning, trace.answer) == ("2+2?", "Two pairs.", "4")
    assert trace.reference is None


def test_an_empty_column_counts_as_absent(tmp_path: Path) -> None:
    row = {"question": "2+2?", "reasoning": "", "thinking": "Two pairs.", "answer": "4"}
    assert read_one(tmp_path, row).reasoning == "Two pairs."


def test_a_response_beside_an_answer_makes_the_answer_the_reference(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "cot": "Two pairs.", "response": "It is 4.", "answer": 4}
    trace = read_one(tmp_path, row)
    assert (trace.answer, trace.reference) == ("It is 4.", "4")


def test_columns_with_tags_inside(tmp_path: Path) -> None:
    in_answer = {"instruction": "Add.", "input": "2+2", "output": "<think>Two pairs.</think>4"}
    trace = read_one(tmp_path, in_answer)
    assert (trace.question, trace.reasoning, trace.answer) == ("Add.\n\n2+2", "Two pairs.", "4")
    whole = read_one(tmp_path, {"problem": "2+2?", "cot": "<think> Two pairs.\n</think> 4"})
    assert (whole.reasoning, whole.answer) == ("Two pairs.", "4")


def test_a_first_row_without_reasoning_does_not_hide_the_format(tmp_path: Path) -> None:
    bare = {"prompt": "2+2?", "completion": "4"}
    row = {"prompt": "2+2?", "completion": "<think>Two pairs.</think>4"}
    reader = read_traces(write_lines(tmp_path, bare, row))
    assert [trace.reasoning for trace in reader] == ["Two pairs."]
    drops = reader.report.drops[DropReason.NO_REASONING]
    assert (drops.count, drops.lines) == (1, [1])
    assert "<think> tags" in drops.detail


def test_columns_named_by_the_user(tmp_path: Path) -> None:
    row = {"q": "2+2?", "deepseek_thinking_trajectory": ["Two pairs."], "deepseek_attempt": "4"}
    columns = {
        "question": "q",
        "reasoning": "deepseek_thinking_trajectory",
        "answer": "deepseek_attempt",
    }
    trace = read_one(tmp_path, row, columns=columns)
    assert (trace.question, trace.reasoning, trace.answer) == ("2+2?", "Two pairs.", "4")


def test_thoughts_column_keeps_its_pieces(tmp_path: Path) -> None:
    row = {"question": "2+2?", "thoughts": ["Two pairs.", "", "So\n", "four.\n"], "answer": "4"}
    trace = read_one(tmp_path, row)
    assert trace.thoughts == ("Two pairs.\n\n", "So\n", "four.")
    assert trace.reasoning == "Two pairs.\n\nSo\nfour."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**FLAT_ROW, "question": 4}, DropReason.NOT_TEXT),
        ({**FLAT_ROW, "reasoning": {"text": "Hm."}}, DropReason.NOT_TEXT),
        ({**FLAT_ROW, "reasoning": ["Two", "generations"]}, DropReason.NOT_TEXT),
        ({**FLAT_ROW, "answer": float("nan")}, DropReason.NOT_TEXT),
        ({**FLAT_ROW, "answer": True}, DropReason.NOT_TEXT),
        ({**FLAT_ROW, "reasoning": " "}, DropReason.NO_REASONING),
        ({**FLAT_ROW, "answer": None}, DropReason.NO_ANSWER),
        ({**FLAT_ROW, "question": ""}, DropReason.NO_QUESTION),
        ({"question": "?", "thoughts": "Hm.", "answer": "4"}, DropReason.NOT_TEXT),
        ({"question": "?", "thoughts": [" "], "answer": "4"}, DropReason.NO_REASONING),
        ({**FLAT_ROW, "thoughts": ["Else."]}, DropReason.THOUGHTS_MISMATCH),
        (
            {"instruction": "Add.", "input": [2], "output": "Hm</think>4"},
            DropReason.NOT_TEXT,
        ),
    ],
)
def test_flat_rows_that_yield_no_trace(
    tmp_path: Path, row: dict[str, object], reason: DropReason
) -> None:
    assert reason_for(tmp_path, row, format="columns") is reason


def test_a_column_that_the_user_named_must_be_there(tmp_path: Path) -> None:
    assert reason_for(tmp_path, FLAT_ROW, columns={"answer": "gold"}) is DropReason.MISSING_FIELD
    assert reason_for(tmp_path, FLAT_ROW, columns={"thoughts": "steps"}) is DropReason.NOT_TEXT


def test_gsm8k(tmp_path: Path) -> None:
    assert read_one(tmp_path, GSM8K_ROW) == Trace(
        question="2*2+1?",
        reasoning="Twice 2 is 2*2=4.\nOne more is 5.",
        answer="#### 5",
        reference="5",
        source="rows.jsonl:1",
    )
    kept = read_one(tmp_path, GSM8K_ROW, keep_calculator=True)
    assert kept.reasoning == "Twice 2 is 2*2=<<2*2=4>>4.\nOne more is <<4+1=5>>5."


def test_gsm8k_marks_beside_a_reasoning_column_are_not_gsm8k(tmp_path: Path) -> None:
    trace = read_one(tmp_path, {"question": "2+2?", "cot": "Two pairs.", "answer": "#### 4"})
    assert (trace.reasoning, trace.answer) == ("Two pairs.", "#### 4")


def test_gsm8k_without_final_answer(tmp_path: Path) -> None:
    row = {"question": "2+2?", "answer": "Two pairs. ####"}
    assert reason_for(tmp_path, row) is DropReason.NO_ANSWER


def test_upstream(tmp_path: Path) -> None:
    assert read_one(tmp_path, UPSTREAM_ROW) == Trace(
        question="2+2?",
        reasoning="Two pairs.\n\nSo four.",
        answer="It is \\boxed{4}.",
        system="Your role as an assistant ...",
        thoughts=("Two pairs.\n\n", "So four."),
        answer_pieces=("It is \\boxed{4}.",),
        source="rows.jsonl:1",
    )


def test_upstream_without_tags_takes_the_last_piece_as_answer(tmp_path: Path) -> None:
    row = {**UPSTREAM_ROW, "gt_output": "a.\n\nb.\n\n4", "thoughts_list": ["a.", "b.", "4"]}
    trace = read_one(tmp_path, row)
    assert (trace.thoughts, trace.answer) == (("a.\n\n", "b."), "4")


def test_upstream_pieces_that_repeat(tmp_path: Path) -> None:
    row = {**UPSTREAM_ROW, "gt_output": "a.\n\na.\n\n4", "thoughts_list": ["a.", "a.", "4"]}
    assert read_one(tmp_path, row).thoughts == ("a.\n\n", "a.")


def test_upstream_without_pieces_leaves_segmenting_to_us(tmp_path: Path) -> None:
    trace = read_one(tmp_path, {**UPSTREAM_ROW, "thoughts_list": []})
    assert (trace.reasoning, trace.thoughts) == ("Two pairs.\n\nSo four.", None)


def test_upstream_reasoning_that_also_occurs_in_the_tag(tmp_path: Path) -> None:
    output = "<|begin_of_thought|>thought<|end_of_thought|>4"
    row = {**UPSTREAM_ROW, "gt_output": output, "thoughts_list": ["thought<|end_of_thought|>", "4"]}
    assert read_one(tmp_path, row).thoughts == ("thought",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"add_eos": False}, DropReason.UNFINISHED),
        ({"thoughts_list": ["Three pairs."]}, DropReason.THOUGHTS_MISMATCH),
        ({"thoughts_list": ["So four.", "Two pairs."]}, DropReason.THOUGHTS_MISMATCH),
        ({"thoughts_list": "Two pairs."}, DropReason.NOT_TEXT),
        ({"thoughts_list": [2]}, DropReason.NOT_TEXT),
        ({"question": None}, DropReason.MISSING_FIELD),
        ({"gt_output": "4", "thoughts_list": ["4"]}, DropReason.NO_REASONING),
    ],
)
def test_upstream_rows_that_yield_no_trace(
    tmp_path: Path, changes: dict[str, object], reason: DropReason
) -> None:
    assert reason_for(tmp_path, {**UPSTREAM_ROW, **changes}) is reason


BAD_LINES = [
    (b"", DropReason.EMPTY_LINE),
    (b'{"question": ', DropReason.MALFORMED_JSON),
    (b"[" * 100_000, DropReason.MALFORMED_JSON),
    (b"1" * 5000, DropReason.MALFORMED_JSON),
    (b'{"question": "\xff"}', DropReason.INVALID_UTF8),
    (b'["question"]', DropReason.NOT_AN_OBJECT),
    (b"null", DropReason.NOT_AN_OBJECT),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_costs_one_line(tmp_path: Path, line: bytes, reason: DropReason) -> None:
    good = json.dumps(FLAT_ROW).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([line, good, line, good]))
    reader = read_traces(path)
    assert [trace.source for trace in reader] == ["rows.jsonl:2", "rows.jsonl:4"]
    report = reader.report.to_dict()
    assert report["drops"][str(reason)].pop("detail")
    assert report == {
        "source": "rows.jsonl",
        "format": "columns",
        "num_read": 4,
        "num_kept": 2,
        "drops": {str(reason): {"count": 2, "lines": [1, 3]}},
    }


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_strict_raises_with_the_line_number(
    tmp_path: Path, line: bytes, reason: DropReason
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(FLAT_ROW).encode() + b"\n" + line + b"\n")
    traces = iter(read_traces(path, strict=True))
    assert next(traces).question == "2+2?"
    with pytest.raises(TraceError, match=r"rows\.jsonl:2") as caught:
        next(traces)
    assert caught.value.reason is reason


def test_a_file_in_utf16_says_how_to_save_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FLAT_ROW), encoding="utf-16")
    with pytest.raises(TraceError, match="Save the file as UTF-8"):
        list(read_traces(path, strict=True))


def test_byte_order_marks_and_other_line_separators_are_harmless(tmp_path: Path) -> None:
    row = json.dumps({**FLAT_ROW, "reasoning": "a\u2028b"}, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n" + b"\xef\xbb\xbf" + row + b"\r\n")
    assert [trace.reasoning for trace in read_traces(path)] == ["a\u2028b", "a\u2028b"]


def test_the_report_reads_well(tmp_path: Path) -> None:
    no_reasoning = {**FLAT_ROW, "reasoning": ""}
    reader = read_traces(write_lines(tmp_path, FLAT_ROW, *[no_reasoning] * 7))
    assert len(list(reader)) == 1
    assert reader.report.num_dropped == 7
    assert str(reader.report) == (
        "rows.jsonl: 1 of 8 rows kept\n  7 dropped: no reasoning (line 2, 3, 4, 5, 6, ...)"
    )


def test_each_pass_reads_anew_and_counts_anew(tmp_path: Path) -> None:
    reader = read_traces(write_lines(tmp_path, FLAT_ROW, FLAT_ROW))
    assert list(reader) == list(reader)
    assert reader.report.num_read == 2


def test_limit_counts_traces_and_stops_reading(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {**FLAT_ROW, "reasoning": ""}, FLAT_ROW, FLAT_ROW, FLAT_ROW)
    reader = read_traces(path, limit=2)
    assert [trace.source for trace in reader] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert reader.report.num_read == 3


def test_lines_are_read_as_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(FLAT_ROW) + "\n"
    path.write_text(line * 5000)
    reader = iter(read_traces(path))
    next(reader)
    path.write_text(line)
    assert len(list(islice(reader, 5000))) < 4999


def test_json_arrays(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([FLAT_ROW, 4, FLAT_ROW], indent=2), encoding="utf-8-sig")
    reader = read_traces(path)
    assert [trace.source for trace in reader] == ["rows.json:1", "rows.json:3"]
    assert reader.report.drops[DropReason.NOT_AN_OBJECT].lines == [2]


def test_json_files_that_hold_lines(tmp_path: Path) -> None:
    assert len(list(read_traces(write_lines(tmp_path, FLAT_ROW, FLAT_ROW, name="r.json")))) == 2


def test_a_broken_json_array_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[{},")
    with pytest.raises(DataError, match="not a JSON array"):
        list(read_traces(path))


@pytest.mark.parametrize("row", [STRATOS_ROW, UPSTREAM_ROW, GSM8K_ROW, FLAT_ROW])
def test_parquet_gives_what_json_lines_give(tmp_path: Path, row: dict[str, object]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row] * 600), path)
    traces = list(read_traces(path, strict=True))
    assert [trace.source for trace in traces[::300]] == ["rows.parquet:1", "rows.parquet:301"]
    assert vars(traces[599]) == {**vars(read_one(tmp_path, row)), "source": "rows.parquet:600"}


def test_a_broken_parquet_file_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read"):
        list(read_traces(path))


def test_a_hub_dataset_that_does_not_hold_together_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_lines(folder, STRATOS_ROW, name="train.jsonl")
    write_lines(folder, FLAT_ROW, name="test.jsonl")
    with pytest.raises(DataError, match="Cannot load dataset"):
        list(read_traces(str(folder)))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_lines(folder, STRATOS_ROW, STRATOS_ROW, name="train.jsonl")
    write_lines(folder, STRATOS_ROW, name="test.jsonl")
    (trace, last) = read_traces(str(folder), hub=HubOptions(streaming=streaming))
    assert trace.reasoning == "Two pairs.\n\nSo four."
    assert last.source == f"{folder}[train]:2"
    assert any((tmp_path / "cache").rglob("*.arrow")) is not streaming


def test_a_hub_dataset_that_cannot_be_loaded_is_an_error() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="Cannot load dataset no-such-owner/no-such-set"):
        list(read_traces("no-such-owner/no-such-set"))


@pytest.mark.parametrize(("library", "name"), [("pyarrow", "r.parquet"), ("datasets", "set")])
def test_missing_libraries_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.chdir(tmp_path)
    Path("r.parquet").touch()
    with pytest.raises(DataError, match=rf"needs {library}: pip install 'lightthinker\[train\]'"):
        list(read_traces(name))


@pytest.mark.parametrize("source", ["rows.jsonl", "no/such/folder/x", Path("set"), "a b"])
def test_a_source_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        read_traces(source)


def test_unknown_kinds_of_file_and_misplaced_options(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.touch()
    with pytest.raises(DataError, match=r"allowed: \.jsonl, \.ndjson, \.json, \.parquet"):
        read_traces(table)
    path = write_lines(tmp_path, FLAT_ROW)
    with pytest.raises(DataError, match="is a file; subset, split"):
        read_traces(path, hub=HubOptions(split="test"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gsm8"}, "format is 'gsm8'; allowed: auto, upstream.*Did you mean 'gsm8k'"),
        ({"limit": 0}, "limit is 0"),
        ({"columns": {"reasonning": "cot"}}, "'reasonning'; allowed: .*Did you mean 'reasoning'"),
        ({"columns": {"answer": "a"}, "format": "gsm8k"}, "only for format='columns'"),
        ({"keep_calculator": True, "format": "messages"}, "only for format='gsm8k'"),
    ],
)
def test_option_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_traces(write_lines(tmp_path, FLAT_ROW), **options)


def test_an_unknown_format_lists_keys_and_formats(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"text": "Once upon a time", "id": 4})
    with pytest.raises(DataError, match=r"'text', 'id'\. Known formats: upstream .*columns="):
        list(read_traces(path))


def test_the_format_can_be_said(tmp_path: Path) -> None:
    both = {**FLAT_ROW, **messages_row(("user", "?"), ("assistant", "Hm</think>5"))}
    assert read_one(tmp_path, both).answer == "5"
    assert read_one(tmp_path, both, format="columns").answer == "4"


@pytest.mark.parametrize(("split", "num_rows"), [("train", 7473), ("test", 1319)])
def test_all_of_gsm8k(shared_data: Path, split: str, num_rows: int) -> None:
    traces = list(read_traces(shared_data / "gsm8k" / f"{split}.jsonl", strict=True))
    assert len(traces) == num_rows
    for trace in traces:
        assert "<<" not in trace.reasoning
        assert "####" not in trace.reasoning
        assert trace.answer == f"#### {trace.reference}"
        assert float(str(trace.reference).replace(",", "")) is not None


def test_socratic_gsm8k_math500_and_memento(shared_data: Path) -> None:
    socratic = read_traces(shared_data / "gsm8k" / "test_socratic.jsonl", strict=True)
    assert len(list(socratic)) == 1319
    solved = read_traces(shared_data / "math500" / "test.jsonl", strict=True)
    assert len(list(solved)) == 500
    memento = read_traces(shared_data / "memento" / "example_trace.jsonl")
    assert list(memento) == []
    assert memento.report.drops[DropReason.NO_ANSWER].count == 1
