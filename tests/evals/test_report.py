"""The HTML report: right numbers, one offline file, and no markup from a model's words."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.errors import ConfigError, DataError
from lightthinker.evals.charts import accuracy_chart, kv_chart, nice_ticks
from lightthinker.evals.records import SampleRecord, samples_path, write_samples
from lightthinker.evals.report import render_report, write_report
from lightthinker.evals.report_samples import MOST_DISAGREEMENTS, SAMPLES_PER_FAMILY
from lightthinker.evals.results import EvalResults, RunInfo, write_results
from lightthinker.testing.records import simulated_record

FULL, LIGHT = "full_cot", "lightthinker"
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>\" onmouseover=\"x"


def info(model: str = "bundled", command: str = "lightthinker eval bundled") -> RunInfo:
    return RunInfo(
        benchmark={"name": "tasks", "difficulty": "demo"},
        model={"name": model, "sha256": "f" * 64},
        device="cpu",
        seed=0,
        command=command,
    )


def records(num_problems: int = 4, **changes: object) -> list[SampleRecord]:
    return [
        simulated_record(
            f"p{i}",
            method=method,
            family="programs" if i % 2 else "multiplication",
            thoughts=("x=1+2;x=3", "y=x+4;y=7"),
            lengths=(50, 60),
            **changes,  # type: ignore[arg-type]
        )
        for i in range(num_problems)
        for method in (FULL, LIGHT, "gists_blanked")
    ]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def page_of(samples: list[SampleRecord], run: RunInfo | None = None) -> Page:
    return Page(render_report(EvalResults.from_records(samples, run or info()), samples))


def test_hostile_text_stays_text() -> None:
    samples = records(
        question=HOSTILE, reference=HOSTILE, answer=HOSTILE,
    )  # fmt: skip
    samples += [
        simulated_record(HOSTILE, method=method, family=HOSTILE, thoughts=(HOSTILE,), lengths=(9,))
        for method in (FULL, LIGHT, HOSTILE)
    ]
    page = page_of(samples, info(model=HOSTILE, command=HOSTILE))

    assert not {"script", "img", "iframe", "object", "link"} & (set(page.tags) - {"link"})
    assert page.tags.count("link") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("alert(1)") > 20


def test_the_page_needs_nothing_from_outside() -> None:
    page = page_of(records())
    html = render_report(EvalResults.from_records(records(), info()), records())

    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links == ["data:,", "#main"]
    assert not re.search(r"https?:|url\(|@import", html)
    policy = dict(page.attributes)["content"]
    assert "default-src 'none'" in html
    assert policy


def test_the_headline_is_the_reduction_of_the_peak() -> None:
    page = page_of(records())

    # 40 + 50 + 60 + 8 tokens against 40 + 5 + 60 + 5.
    assert "−30 % KV cache at its peak" in page.text
    assert "Accuracy 100.0 % with compression, 100.0 % with full chain-of-thought" in page.text
    assert "110" in page.text
    assert "158" in page.text


def test_costs_that_grew_are_shown_as_they_are() -> None:
    samples = [
        simulated_record("p", method=method, lengths=(2,), thoughts=("x",), num_gists=20)
        for method in (FULL, LIGHT)
    ]

    # 40 + 20 + 1 + 8 tokens against 40 + 2 + 8.
    assert "+38 % KV cache at its peak" in page_of(samples).text


def test_every_method_and_family_has_its_row() -> None:
    page = page_of(records())

    for label in ("full CoT", "LightThinker", "gists blanked", "programs", "multiplication"):
        assert label in page.text


def test_samples_show_thoughts_and_their_fate() -> None:
    page = page_of(records(1))

    assert "x=1+2;x=3" in page.text
    assert "50 tokens → 4 gists · 50 freed" in page.text
    assert "50 tokens kept" in page.text
    assert "Expected answer: 86" in page.text


def test_the_first_samples_and_disagreements_are_kept() -> None:
    agreeing = [
        simulated_record(f"a{i}", method=m)
        for i in range(SAMPLES_PER_FAMILY + 5)
        for m in (FULL, LIGHT)
    ]
    disagreeing = [
        simulated_record(f"d{i}", method=m, correct=m == FULL)
        for i in range(MOST_DISAGREEMENTS + 5)
        for m in (FULL, LIGHT)
    ]  # fmt: skip
    page = page_of(agreeing + disagreeing)

    classes = [value for name, value in page.attributes if name == "class"]
    shown = [c for c in classes if c.split()[:1] == ["sample"]]
    assert len(shown) == SAMPLES_PER_FAMILY + MOST_DISAGREEMENTS
    assert sum("differ" in c for c in shown) == MOST_DISAGREEMENTS
    assert sum("wrong" in c for c in shown) == MOST_DISAGREEMENTS


def test_a_report_without_samples_or_baseline_still_stands() -> None:
    only = [r for r in records() if r.method == LIGHT]

    assert "Methods" in Page(render_report(EvalResults.from_records(records(), info()))).text
    assert "bundled on tasks" in page_of(only).text


def test_endless_output_is_cut() -> None:
    samples = records(1, answer="z" * 100_000)

    html = render_report(EvalResults.from_records(samples, info()), samples)

    assert len(html) < 150_000
    assert "80,000 more" in html


def test_controls_are_reported() -> None:
    control = {
        "num_problems": 40,
        "accuracy": 0.05,
        "accuracy_ci95": [0.01, 0.2],
        "other_answer_rate": 0.1,
    }
    results = EvalResults.from_records(records(), info(), {"gists_swapped": control})

    text = Page(render_report(results)).text
    assert "gists swapped (40 problems): accuracy 5.0 %" in text
    assert "10.0 % of the time" in text


def test_write_report_finds_results_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    write_results(EvalResults.from_records(records(), info()), path)
    write_samples(records(), samples_path(path))

    report = write_report(tmp_path / "run")

    assert report == tmp_path / "run" / "results.html"
    assert "Expected answer" in report.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="exists"):
        write_report(path)
    assert write_report(path, tmp_path / "other.html").is_file()


@pytest.mark.parametrize("keep", [True, False])
def test_files_of_different_problems_are_not_compared(tmp_path: Path, *, keep: bool) -> None:
    paths = [tmp_path / "all.json", tmp_path / "fewer.json", tmp_path / "same.json"]
    few = {record.problem_id for record in records()[:1]}
    for path in paths:
        kept = [r for r in records() if path.stem != "fewer" or r.problem_id in few]
        model = {"name": path.stem}
        run_info = dataclasses.replace(info(), model=model)
        write_results(EvalResults.from_records(kept, run_info), path)
        if keep:
            write_samples(kept, samples_path(path))
    assert write_report([paths[0], paths[2]], tmp_path / "both.html").is_file()
    with pytest.raises(DataError, match=r"fewer\.json \(1 of .*not of the same problems"):
        write_report(paths[:2], tmp_path / "mixed.html")


def test_write_report_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results file or folder"):
        write_report(tmp_path / "none")
    with pytest.raises(DataError, match="it holds none"):
        write_report(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"it holds a\.json, b\.json"):
        write_report(tmp_path)


@given(st.floats(0, 1e9), st.integers(2, 8))
def test_ticks_are_round_and_reach_the_top(highest: float, at_most: int) -> None:
    ticks = nice_ticks(highest, at_most=at_most)

    assert ticks[0] == 0
    assert ticks[-1] >= highest
    assert 2 <= len(ticks) <= at_most + 1
    assert all(tick == int(tick) for tick in ticks)


@given(
    st.lists(st.integers(2, 500), min_size=1, max_size=30),
    st.integers(1, 16),
    st.sampled_from([370, 860]),
)
def test_charts_stay_inside_their_frame(lengths: list[int], num_gists: int, width: int) -> None:
    samples = [
        simulated_record(
            "p", method=m, thoughts=["t"] * len(lengths), lengths=lengths, num_gists=num_gists
        )
        for m in (FULL, LIGHT)
    ]
    overall = EvalResults.from_records(samples, info()).overall
    peaks = {name: s.peak_tokens for name, s in overall.methods.items()}

    chart = kv_chart(samples, peaks, width=width, height=300)
    points = [
        tuple(map(float, pair.split(",")))
        for line in chart.lines
        for pair in line.path[1:].split(" ")
    ]
    assert all(chart.left <= x <= chart.right for x, _ in points)
    assert all(chart.top <= y <= chart.bottom for _, y in points)
    labels = sorted(line.label_y for line in chart.lines)
    assert labels[1] - labels[0] >= 35
    assert labels[1] <= chart.bottom
    assert len(chart.folds) == len(lengths)

    dots = accuracy_chart(overall, {}, width=width, height=300).points
    assert all(0 <= dot.x <= width and 0 <= dot.high <= dot.y <= dot.low <= 300 for dot in dots)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), min_size=2, max_size=4),
    st.sampled_from([370, 860]),
)
def test_labels_of_close_dots_do_not_touch(methods: list[tuple[int, int]], width: int) -> None:
    samples = [
        simulated_record(f"p{i}", method=f"method_{m}", lengths=(length,), correct=i < right)
        for m, (length, right) in enumerate(methods)
        for i in range(4)
    ]
    overall = EvalResults.from_records(samples, info()).overall

    points = accuracy_chart(overall, {}, width=width, height=300).points

    for a in points:
        for b in points:
            apart = abs(a.label_x - b.label_x) >= 60 or abs(a.label_y - b.label_y) >= 15
            assert a is b or apart
