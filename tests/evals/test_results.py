"""Aggregates and files: numbers by hand, JSON that reads back, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lightthinker.errors import ConfigError, DataError
from lightthinker.evals import tables
from lightthinker.evals.provenance import weights_sha256
from lightthinker.evals.records import (
    SampleRecord,
    read_samples,
    samples_path,
    write_samples,
    write_text,
)
from lightthinker.evals.results import (
    EvalResults,
    RunInfo,
    read_results,
    write_results,
)
from lightthinker.testing.records import simulated_record

FULL, LIGHT = "full_cot", "lightthinker"


def info() -> RunInfo:
    return RunInfo(
        benchmark={"name": "tasks", "difficulty": "demo"},
        model={"name": "m", "sha256": "0" * 64},
        device="cpu",
        seed=3,
        command="lightthinker eval m",
    )


def records() -> list[SampleRecord]:
    """Four problems; full CoT misses one, LightThinker misses another two."""
    right = {FULL: [True, True, True, False], LIGHT: [True, False, False, True]}
    return [
        simulated_record(
            f"p{i}",
            method=method,
            family="programs" if i < 2 else "multiplication",
            lengths=[10 + i, 20],
            thoughts=("a", "b"),
            correct=correct,
            chance=0.1 * i,
            time_s=0.5,
        )
        for method, verdicts in right.items()
        for i, correct in enumerate(verdicts)
    ]


def results() -> EvalResults:
    return EvalResults.from_records(records(), info())


def test_the_numbers_are_means_and_time_is_a_sum() -> None:
    full = results().overall.methods[FULL]

    prompt, answer = 40, 8
    peaks = [prompt + 10 + i + 20 + answer for i in range(4)]
    assert full.num_problems == 4
    assert full.accuracy == 0.75
    assert full.accuracy_ci95[0] < 0.75 < full.accuracy_ci95[1]
    assert full.peak_tokens == sum(peaks) / 4
    assert full.kv_bytes_peak == 1024 * full.peak_tokens
    assert full.wall_time_s == 2.0
    assert full.num_sampled_tokens == full.peak_tokens - prompt
    # Each output token sees the prompt, everything before it and itself.
    dep = [sum(range(prompt + 1, peak + 1)) for peak in peaks]
    assert full.dep_paper == full.dep_full == sum(dep) / 4


def test_compression_costs_what_the_layout_says() -> None:
    light = results().overall.methods[LIGHT]

    # The second thought's end: prompt, gists and continue of the first, thought, gists, continue.
    assert light.peak_tokens == 40 + 5 + 20 + 5
    assert light.dep_full > light.dep_paper


def test_pairs_are_compared_problem_by_problem() -> None:
    paired = results().overall.paired

    assert paired is not None
    assert paired.accuracy_difference == -0.25
    assert (paired.num_only_method, paired.num_only_full_cot) == (1, 2)
    assert paired.accuracy_difference_ci95[0] < -0.25 < paired.accuracy_difference_ci95[1]
    assert paired.mcnemar_p == 1.0


def test_pairing_follows_ids_and_not_order() -> None:
    first, *rest = records()[:4]
    shuffled = [*rest, first, *records()[4:]]

    assert EvalResults.from_records(shuffled, info()).overall.paired == results().overall.paired


def test_families_hold_the_same_numbers_for_their_own_problems() -> None:
    families = results().by_family

    assert list(families) == ["programs", "multiplication"]
    assert families["programs"].num_problems == 2
    assert families["programs"].methods[LIGHT].accuracy == 0.5
    assert families["multiplication"].chance == pytest.approx(0.25)
    assert families["programs"].methods[FULL].wall_time_s == 1.0


def test_the_json_has_what_readers_rely_on() -> None:
    values = json.loads(json.dumps(results().to_dict()))

    top = {"num_problems", "device", "versions", "command", "seed", "model", "benchmark"}
    assert top | {"methods", "by_family", "paired"} <= set(values)
    wanted = {"accuracy", "accuracy_ci95", "peak_tokens", "mean_live_tokens", "dep_paper"}
    wanted |= {"dep_full", "kv_bytes_peak", "wall_time_s", "num_sampled_tokens"}
    for part in (values, *values["by_family"].values()):
        assert set(part["methods"]) == {FULL, LIGHT}
        assert wanted <= set(part["methods"][LIGHT])
        assert part["paired"]["accuracy_difference_ci95"][0] <= 0
    assert set(values["versions"]) == {"python", "torch", "transformers", "lightthinker"}


def test_one_method_alone_has_no_pair() -> None:
    values = EvalResults.from_records(records()[:4], info()).to_dict()

    assert "paired" not in values


def test_results_and_samples_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results(results(), path)
    write_samples(records(), samples_path(path))

    assert read_results(path) == results()
    assert read_samples(samples_path(path)) == records()
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "results.json",
        "results.samples.jsonl",
    ]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("precious")

    with pytest.raises(ConfigError, match="--overwrite"):
        write_results(results(), path)
    assert path.read_text() == "precious"
    write_results(results(), path, overwrite=True)
    assert read_results(path) == results()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full_disk(self: Path, *args: object, **kwargs: object) -> None:
        with self.open("w") as stream:
            stream.write("hal")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new", overwrite=True)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_pair_survives_a_file(tmp_path: Path) -> None:
    record = simulated_record("p", method=FULL, answer="\ud83d")
    write_samples([record], tmp_path / "s.jsonl")

    assert read_samples(tmp_path / "s.jsonl") == [record]


def test_bad_files_are_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_samples(records()[:1], path)
    with path.open("a") as lines:
        lines.write('{"problem_id": "p"}\n')

    with pytest.raises(DataError, match="line 2"):
        read_samples(path)
    (tmp_path / "r.json").write_text('{"device": "cpu"}')
    with pytest.raises(DataError, match=r"r\.json: not a results file"):
        read_results(tmp_path / "r.json")
    with pytest.raises(DataError, match="No such file"):
        read_results(tmp_path / "none.json")


def test_no_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        EvalResults.from_records([], info())


def test_the_digest_of_one_file_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    alone = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"more")

    assert alone == hashlib.sha256(b"weights").hexdigest()
    assert len(weights_sha256(tmp_path)) == 64
    assert weights_sha256(tmp_path) != alone
    assert weights_sha256("some/hub-name") == ""


def test_the_table_puts_full_cot_first_and_changes_beside_costs() -> None:
    rows = tables.headline_rows(EvalResults.from_records(records()[::-1], info()).overall)

    assert [row.label for row in rows] == ["full CoT", "LightThinker"]
    accuracy, peak, *_ = rows[1].cells
    assert accuracy.text == "50.0 %"
    assert " to " in accuracy.detail
    assert (peak.text, peak.detail) == ("70", "−12 %")
    assert [cell.detail for cell in rows[0].cells[1:]] == [""] * 4


def test_the_verdict_names_the_interval_or_says_that_none_differ() -> None:
    assert "−25.0 points" in tables.verdict(results().overall)

    same = [
        simulated_record(f"p{i}", method=method) for method in (FULL, LIGHT) for i in range(100)
    ]
    verdict = tables.verdict(EvalResults.from_records(same, info()).overall)
    assert "all 100 of them" in verdict
    assert "3.0 %" in verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tables.count(167), "167"),
        (tables.count(12345), "12,345"),
        (tables.count(156_321), "156k"),
        (tables.count(1_560_000), "1.56M"),
        (tables.count(999_499), "999k"),
        (tables.count(999_999), "1.00M"),
        (tables.data_size(900), "900 B"),
        (tables.data_size(1536), "1.5 KiB"),
        (tables.data_size(3 * 1024**3), "3.0 GiB"),
        (tables.duration(59.94), "59.9 s"),
        (tables.duration(125), "2 min 5 s"),
        (tables.duration(3725), "1 h 2 min"),
        (tables.change(0.333), "−67 %"),
        (tables.change(1.4), "+40 %"),
        (tables.change(1.001), "±0 %"),
        (tables.points(-0.0123), "−1.2"),
        (tables.points(0.0004), "0.0"),
        (tables.percent(0.979), "97.9 %"),
    ],
)
def test_numbers_as_people_write_them(text: str, expected: str) -> None:
    assert text == expected
