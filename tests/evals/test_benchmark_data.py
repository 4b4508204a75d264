"""Benchmarks that exist as data: every format, the paper's sizes, and what bad data says."""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightthinker.errors import ConfigError, DataError
from lightthinker.evals.benchmarks import BENCHMARKS, EvalProblem, benchmark_names, load_benchmark
from lightthinker.evals.benchmarks import rows as benchmark_rows
from lightthinker.evals.benchmarks.bbh import OTHER_TASKS, PAPER_TASKS
from lightthinker.evals.benchmarks.multiple_choice import OTHER_SUBJECTS, PAPER_SUBJECTS
from lightthinker.evals.benchmarks.prompts import STYLES

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = "UPDATE_SNAPSHOTS"

GSM8K: list[Any] = [
    {"question": "How many?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"},
    {"question": "How much?", "answer": "A thousand.\n#### 1,000"},
]
GPQA_ROW = {
    "Question": "Which particle carries the colour force?",
    "Correct Answer": "Gluon",
    "Incorrect Answer 1": "Photon",
    "Incorrect Answer 2": "W boson",
    "Incorrect Answer 3": "Graviton",
    "Record ID": "rec1",
}
MMLU_ROW = {
    "question": "What is the order of the cyclic group Z_6?",
    "subject": "abstract_algebra",
    "choices": ["2", "3", "6", "12"],
    "answer": 2,
}
HUB_ROWS: dict[str, list[Any]] = {
    "gsm8k": GSM8K,
    "mmlu/abstract_algebra": [MMLU_ROW | {"question": "left out"}, MMLU_ROW],
    "gpqa": [GPQA_ROW],
    "bbh/navigate": [{"input": "Do you return?\nOptions:\n- Yes\n- No", "target": "No"}],
    "bbh/word_sorting": [{"input": "Sort the words: List: pear fig", "target": "fig pear"}],
    "bbh/dyck_languages": [{"input": "Complete: [ (", "target": ") ]"}],
    "bbh/multistep_arithmetic_two": [{"input": "((2 - 9)) =", "target": "-7"}],
    "bbh/snarks": [{"input": "Which?\nOptions:\n(A) this\n(B) that", "target": "(B)"}],
    "math500": [
        {"problem": "Halve $1$.", "solution": "Easy.", "answer": "\\frac{1}{2}", "level": 1,
         "subject": "Algebra", "unique_id": "test/algebra/1.json"},
    ],
    "aime24": [
        {"id": 60, "problem": "Find $n$.", "solution": "s", "answer": "025", "url": "u", "year": 1},
    ],
    "aime25": [{"problem": "Find $m$.", "answer": "70", "id": "0"}],
    "svamp": [
        {"ID": "chal-1", "Body": "There are 8 pears", "Question": "How many pears?",
         "Equation": "( 8.0 )", "Answer": "8.0", "Type": "Subtraction",
         "question_concat": "There are 8 pears. How many pears?"},
    ],
    "multiarith": [{"question": "How many figs?", "final_ans": "9"}],
}  # fmt: skip
"""Rows with the columns of the hub datasets, by the name that loads them."""

REFERENCES = {
    "gsm8k": "13", "mmlu/abstract_algebra": "C", "gpqa": None, "bbh/navigate": "No",
    "bbh/word_sorting": "fig pear", "bbh/dyck_languages": ") ]", "bbh/snarks": "B",
    "bbh/multistep_arithmetic_two": "-7", "math500": "\\frac{1}{2}", "aime24": "25",
    "aime25": "70", "svamp": "8.0", "multiarith": "9",
}  # fmt: skip


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def hub_file(folder: Path, name: str) -> Path:
    stem = name.partition("/")[2] or name
    return write_jsonl(folder / f"{stem}.jsonl", HUB_ROWS[name])


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_as_the_hub_has_them(tmp_path: Path, name: str) -> None:
    problem = load_benchmark(f"{name}={hub_file(tmp_path, name)}")[0]

    expected = REFERENCES[name]
    assert expected is None or problem.reference == expected
    assert problem.judge is not None
    right = problem.judge(f"So it is clear.\n</think>\n\\boxed{{{problem.reference}}}")
    assert right.strict
    assert right.flexible
    assert problem.grade(f"The answer is {problem.reference}.")
    assert not problem.grade("\\boxed{Z} 12345")
    assert not problem.grade(f"\\boxed{{{problem.reference}}}\n</think>\nI do not know.")
    assert not problem.grade("")
    assert problem.family == name.partition("/")[0]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", HUB_ROWS)
def test_prompts_are_those_of_the_snapshots(tmp_path: Path, name: str, style: str) -> None:
    problem = load_benchmark(f"{name}:{style}={hub_file(tmp_path, name)}")[0]
    shown = "".join(f"[{m['role']}]\n{m['content']}\n" for m in problem.messages)
    text = f"{problem.prompt}\n{shown}"
    path = SNAPSHOTS / f"{name.replace('/', '.')}.{style}.txt"

    if os.environ.get(UPDATE):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), (
        f"The prompt {problem.prompt} changed. Raise the benchmark's version, then run this test "
        f"with {UPDATE}=1."
    )


def test_every_benchmark_and_style_has_a_snapshot() -> None:
    covered = {name.partition("/")[0] for name in HUB_ROWS}
    assert covered == set(BENCHMARKS)
    files = {path.name for path in SNAPSHOTS.glob("*.txt")}
    assert files == {f"{n.replace('/', '.')}.{style}.txt" for n in HUB_ROWS for style in STYLES}
    assert set(BENCHMARKS) < set(benchmark_names())


def test_the_documented_table_is_what_the_code_has() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if "|" in line}
    for benchmark in BENCHMARKS.values():
        row, hub = rows[benchmark.name], benchmark.hub
        assert f"`{hub.name}`" in row
        assert (hub.revision[:12] if hub.revision else "not pinned") in row
        assert f"`{benchmark.name}@{benchmark.version}`" in row
        assert benchmark.licence.partition(" (MAA")[0] in row


def test_a_prompt_version_can_be_asked_for(tmp_path: Path) -> None:
    path = hub_file(tmp_path, "gsm8k")

    assert load_benchmark(f"gsm8k:chat@1={path}")[0].prompt == "gsm8k:chat@1"
    with pytest.raises(ConfigError, match="gsm8k has no prompt version 2"):
        load_benchmark(f"gsm8k@2={path}")


def test_styles_do_not_share_ids(tmp_path: Path) -> None:
    path = hub_file(tmp_path, "gsm8k")
    ids = [p.id for style in STYLES for p in load_benchmark(f"gsm8k:{style}={path}")]
    assert len(set(ids)) == len(ids)
    assert load_benchmark("gsm8k", path=path)[1].id == "gsm8k/1"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gsm8k=gsm8k/test.jsonl", {None: 1319}),
        ("gsm8k=gsm8k/test_socratic.jsonl", {None: 1319}),
        ("gsm8k=gsm8k_aug_eq/test.txt", {None: 1319}),
        (
            "mmlu=mmlu/mmlu.zip",
            dict(zip(PAPER_SUBJECTS, (99, 99, 99, 172, 125, 271, 162), strict=True)),
        ),
        ("mmlu/anatomy=mmlu/mmlu.zip", {"anatomy": 135}),
        ("bbh=bbh", dict.fromkeys(PAPER_TASKS, 55)),
        ("bbh/word_sorting=bbh/word_sorting.json", {"word_sorting": 250}),
        ("math500=math500/test.jsonl", {None: 500}),
        ("aime24=aime24/test.jsonl", {None: 30}),
        ("svamp=svamp/test.jsonl", {None: 1000}),
        ("multiarith=mawps/multiarith.jsonl", {None: 600}),
    ],
)
def test_real_data_has_the_papers_sizes(
    shared_data: Path, name: str, sizes: dict[str, int]
) -> None:
    head, _, file = name.partition("=")
    problems = load_benchmark(f"{head}={shared_data / file}")

    assert Counter(problem.subset for problem in problems) == sizes
    assert len({problem.id for problem in problems}) == len(problems)
    if head != "math500":
        wrong = [p.id for p in problems if not p.judge(f"\\boxed{{{p.reference}}}").strict]
        assert wrong == []


def test_all_of_bbh_and_mmlu_can_be_asked_for(shared_data: Path) -> None:
    for task in OTHER_TASKS:
        problems = load_benchmark(f"bbh/{task}={shared_data / 'bbh'}")
        assert all(p.judge(f"\\boxed{{{p.reference}}}").strict for p in problems), task
    with zipfile.ZipFile(shared_data / "mmlu" / "mmlu.zip") as archive:
        found = re.findall(r"data/test/(\w+)_test.csv", "\n".join(archive.namelist()))
    assert sorted(found) == sorted((*PAPER_SUBJECTS, *OTHER_SUBJECTS))


def bbh_folder(folder: Path, num_rows: int) -> Path:
    for task in PAPER_TASKS:
        examples = [{"input": f"{task} {i}", "target": "Yes"} for i in range(num_rows)]
        content = {"canary": "c", "examples": examples}
        (folder / f"{task}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_bbh_draws_55_of_each_task_by_seed(tmp_path: Path) -> None:
    folder = bbh_folder(tmp_path, 250)
    (folder / "cot-prompts").mkdir()
    (folder / "cot-prompts" / "navigate.txt").write_text("not data")
    zero, again, one = (load_benchmark(f"bbh={folder}", seed=seed) for seed in (0, 0, 1))

    assert Counter(p.subset for p in zero) == dict.fromkeys(PAPER_TASKS, 55)
    assert len(zero) == 495
    assert [p.id for p in zero] == [p.id for p in again]
    shared = {p.id for p in zero} & {p.id for p in one}
    assert 0 < len(shared) < 495 / 2
    # Pinned: the draw must not change with a Python version or a rewrite.
    assert [p.id for p in zero[:3]] == [
        "bbh/boolean_expressions/2",
        "bbh/boolean_expressions/5",
        "bbh/boolean_expressions/6",
    ]


def test_a_limit_takes_evenly_from_the_subsets(tmp_path: Path) -> None:
    folder = bbh_folder(tmp_path, 250)
    all_of_them = load_benchmark(f"bbh={folder}")
    some = load_benchmark(f"bbh={folder}", num_problems=20)

    counts = Counter(p.subset for p in some)
    assert (len(some), min(counts.values()), max(counts.values())) == (20, 2, 3)
    assert {p.id for p in some} <= {p.id for p in all_of_them}
    assert len(load_benchmark(f"bbh={folder}", num_problems=10_000)) == 495


def mmlu_csv(num_rows: int) -> list[list[str]]:
    return [
        [f"Question {i}, with a comma?", "1", "2", "3", "4", "ABCD"[i % 4]] for i in range(num_rows)
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_mmlu_from_its_authors_files(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "data"
    for part, num_rows in (("dev", 5), ("test", 8)):
        (folder / part).mkdir(parents=True)
        for subject in PAPER_SUBJECTS:
            write_csv(folder / part / f"{subject}_{part}.csv", mmlu_csv(num_rows))
    path = folder
    if packed:
        path = tmp_path / "mmlu.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.csv"):
                archive.write(file, Path("data") / file.relative_to(folder))
    problems = load_benchmark(f"mmlu={path}")

    assert Counter(p.subset for p in problems) == dict.fromkeys(PAPER_SUBJECTS, 7)
    first = problems[0]
    assert (first.id, first.reference) == ("mmlu/abstract_algebra/1", "B")
    assert first.question.startswith("Question 1, with a comma?\n(A) 1\n(B) 2\n(C) 3\n(D) 4")
    assert first.chance == pytest.approx(2 / 7)


def test_gpqa_options_are_shuffled_by_seed(tmp_path: Path) -> None:
    rows = [GPQA_ROW | {"Question": f"{GPQA_ROW['Question']} ({i})"} for i in range(40)]
    header = list(rows[0])
    path = write_csv(
        tmp_path / "gpqa_diamond.csv", [header, *([r[h] for h in header] for r in rows)]
    )
    zero, one = (load_benchmark(f"gpqa={path}", seed=seed) for seed in (0, 1))

    for problems in (zero, one):
        assert set(Counter(p.reference for p in problems)) == set("ABCD")
        assert all(f"({p.reference}) Gluon" in p.question for p in problems)
    assert [p.reference for p in zero] != [p.reference for p in one]
    backwards = write_csv(
        tmp_path / "r.csv", [header, *([r[h] for h in header] for r in rows[::-1])]
    )
    reverse = load_benchmark(f"gpqa={backwards}", seed=0)
    assert [p.reference for p in reverse[::-1]] == [p.reference for p in zero]


def test_gpqa_says_how_to_get_it(tmp_path: Path) -> None:
    for name in ("gpqa", f"gpqa={tmp_path / 'missing.csv'}"):
        with pytest.raises(DataError, match=r"Accept its terms at https.*hf auth login.*gpqa=path"):
            load_benchmark(name)


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"gpqa"}))
def test_without_the_hub_the_error_names_the_way_out(name: str) -> None:
    with pytest.raises(DataError, match=rf"{BENCHMARKS[name].hub.name}.*{name}=PATH"):
        load_benchmark(name)


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def open_rows(source: str, hub: Any) -> Any:
        asked.append((source, hub.subset, hub.split, hub.revision))
        row = {**MMLU_ROW, "subject": hub.subset}
        return source, lambda: iter([(1, row), (2, row)])

    monkeypatch.setattr(benchmark_rows, "open_rows", open_rows)
    problems = load_benchmark("mmlu")

    revision = "c30699e8356da336a370243923dbaf21066bb9fe"
    assert asked == [("cais/mmlu", subject, "test", revision) for subject in PAPER_SUBJECTS]
    assert [p.id for p in problems] == [f"mmlu/{subject}/1" for subject in PAPER_SUBJECTS]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("gsm8k", [GSM8K[0], {"question": "x"}], "test.jsonl, row 2 has no answer"),
        ("gsm8k", [{"question": "x", "answer": "no mark"}], "test.jsonl, row 1 has no answer"),
        ("gsm8k", [{"question": "x", "answer": "so\n#### "}], "row 1 has no answer"),
        ("gsm8k", [{"answer": "#### 3"}], "row 1 has no question"),
        ("gsm8k", [["a", "list"]], "row 1"),
        ("gsm8k", [], "no problems"),
        ("svamp", [{"Body": "b", "Question": "q", "Answer": None}], "row 1 has no answer"),
        ("multiarith", [{"input": "q", "target": ""}], "row 1 has no answer"),
        ("math500", [{"problem": "p", "answer": ""}], "row 1 has no answer"),
        ("aime24", [{"problem": "p", "answer": "1000"}], "not from 0 to 999"),
        ("aime25", [{"problem": "p", "answer": "²"}], "not from 0 to 999"),
        ("mmlu/anatomy", [MMLU_ROW | {"subject": "anatomy", "answer": 4}], "row 1 is not an MMLU"),
        ("mmlu/anatomy", [MMLU_ROW | {"subject": "anatomy", "choices": ["1"]}], "four choices"),
        ("mmlu/anatomy", [MMLU_ROW], "no rows of anatomy; the data has abstract_algebra"),
        ("gpqa", [{**GPQA_ROW, "Correct Answer": ""}], "row 1 has no answer"),
        ("bbh/test", [], "bbh has no subset 'test'"),
        ("bbh/navigat", [], "Did you mean 'navigate'"),
        ("gsm8k/main", [], "gsm8k has no subset 'main'"),
        ("gsm8k:r2", [], "Unknown prompt style 'r2'; there are r1, chat, plain"),
        ("gsm8k:plane", [], "Did you mean 'plain'"),
        ("gsm8k@one", [], "not a whole number"),
        ("gsm8k/", [], "does not name a benchmark"),
        ("gsm9k", [], "Did you mean 'gsm8k'"),
    ],
)
def test_bad_rows_and_names(tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    with pytest.raises((DataError, ConfigError), match=message):
        load_benchmark(f"{name}={path}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.csv", b"Question,Correct Answer\na,b,c\n", "x.csv, row 1: 3 columns"),
        ("x.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("x.json", b"{", "not JSON"),
        ("x.json", b'{"rows": []}', "neither an array"),
        ("x.json", b"[1]", "row 1: a int"),
        ("x.txt", b"question without answer", "row 1: no '||'"),
        ("x.zip", b"PK no", "cannot be read"),
        ("x.parquet", b"PAR", "cannot be read"),
        ("x.xlsx", b"", "not a file kind we read"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_benchmark(f"gsm8k={tmp_path / file}")


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_benchmark("gsm8k", path=tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="holds no file"):
        load_benchmark(f"bbh={tmp_path}")
    with pytest.raises(ConfigError, match="names a file already"):
        load_benchmark("gsm8k=a.jsonl", path="b.jsonl")


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = hub_file(tmp_path, "gsm8k")
    path.write_text("\n" + path.read_text() + "\n")
    problems: list[EvalProblem] = load_benchmark(f"gsm8k={path}")
    assert [p.reference for p in problems] == ["13", "1,000"]


def test_svamp_from_its_authors_columns(tmp_path: Path) -> None:
    row = {"Answer": 145.0, "Question": "How big?", "Body": "There are 290 bananas in 2 groups"}
    problem = load_benchmark(f"svamp:plain={write_jsonl(tmp_path / 's.jsonl', [row])}")[0]
    assert (problem.reference, problem.question) == (
        "145", "There are 290 bananas in 2 groups. How big?",
    )  # fmt: skip
