"""Commands in process, on a tiny random checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightthinker.cli.app import main
from lightthinker.testing.models import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def test_generate_pipes_the_text_and_reports_costs_on_stderr(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", checkpoint, "hello", "--max-tokens", "20", "--device", "cpu"]
    main([*arguments, "--max-thought-tokens", "6"])
    compressed = capsys.readouterr()
    main([*arguments, "--max-thought-tokens", "6", "--no-compression"])
    full = capsys.readouterr()

    assert compressed.out.strip()
    assert "20 tokens sampled, 2 thoughts, " in compressed.err
    assert " 0 tokens freed" in full.err
    assert " 0 tokens freed" not in compressed.err
    assert "\x1b" not in compressed.out


def test_generate_raw_passes_the_prompt_as_it_is(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["generate", checkpoint, "hello", "--raw", "--max-tokens", "4", "--device", "cpu"])

    # Five bytes and what was sampled.
    assert "full CoT would have held 9 " in capsys.readouterr().err


def test_generate_is_reproducible_with_a_seed(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        main(
            ["generate", checkpoint, "hello", "--max-tokens", "12", "--device", "cpu",
             "--temperature", "1", "--seed", seed]
        )  # fmt: skip
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1] != texts[2]


def test_eval_prints_and_writes_everything_asked_for(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = tmp_path / "results.json"
    arguments = [
        "eval", checkpoint, "--tasks", "programs,multiplication", "--difficulty", "tiny",
        "--num-problems", "2", "--max-tokens", "8", "--device", "cpu", "--num-kv-tokens", "4096",
        "--output", str(output), "--report",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lightthinker", *arguments])

    main(arguments)

    out = capsys.readouterr().out
    assert "LightThinker" in out
    assert "full CoT" in out
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["num_problems"] == 4
    assert list(results["by_family"]) == ["programs", "multiplication"]
    assert results["command"].startswith("lightthinker eval ")
    assert results["methods"]["full_cot"]["num_truncated"] == 4
    cut_off = "Cut off where tokens ran out (max_tokens): full CoT 4 of 4; LightThinker 4 of 4."
    assert cut_off in " ".join(out.split())
    assert cut_off in (tmp_path / "results.html").read_text(encoding="utf-8")
    assert len((tmp_path / "results.samples.jsonl").read_text().splitlines()) == 8

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "results.json exists" in capsys.readouterr().err
    main([*arguments, "--overwrite"])

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightthinker.evals.evaluate.run_methods", interrupted)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--overwrite"])
    assert ended.value.code == 130
    assert "results.parts: the same command goes on" in capsys.readouterr().err

    main(["report", str(output), "--output", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "results.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-shards", "2", "--shard", "0"], "give --output"),
        (["--num-shards", "2", "--output", "r.json"], "--num-shards and --shard together"),
        (["--devices", "cpu", "--device", "cpu", "--output", "r.json"], "leave --device"),
        (["--methods", "h2o:budgets=9"], "Did you mean 'budget'"),
        (["--methods", "lighthinker"], "Did you mean 'lightthinker'"),
        (["--tasks", "gsm9k"], "Did you mean 'gsm8k'"),
        (["--num-samples", "3"], "--temperature"),
        (["--limit", "2", "--methods", "random:budget=20", "--tasks", "programs"], "the prompt of"),
    ],
)
def test_eval_refuses_what_cannot_be(
    checkpoint: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", checkpoint, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_eval_in_shards_and_a_report_of_several_files(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.json"
    arguments = [
        "eval", checkpoint, "--tasks", "programs", "--difficulty", "tiny", "--num-problems", "3",
        "--max-tokens", "6", "--device", "cpu", "--num-kv-tokens", "4096", "--output", str(output),
        "--samples",
    ]  # fmt: skip
    for shard in ("0", "1"):
        main([*arguments, "--num-shards", "2", "--shard", shard])
        assert f"Shard {shard} of 2 is done" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--seed", "1"])
    assert "seed: 0 -> 1" in capsys.readouterr().err
    main(arguments)
    assert json.loads(output.read_text())["num_problems"] == 3
    assert not (tmp_path / "a.parts").exists()

    other = tmp_path / "b.json"
    main([*arguments[:-3], "--output", str(other), "--samples", "--methods", "h2o:ratio=0.5"])
    main(["report", str(output), str(other), "--output", str(tmp_path / "both.html")])
    assert "H2O, ratio 0.5" in (tmp_path / "both.html").read_text(encoding="utf-8")
    capsys.readouterr()
    output.write_text(output.read_text()[:300])
    with pytest.raises(SystemExit):
        main(["report", str(output), "--overwrite"])
    assert "half-written" in capsys.readouterr().err


def test_training_commands_pass_on_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def load_recipe(path: Path, overrides: list[str]) -> str:
        calls.append((path, overrides))
        return "recipe"

    def record(name: str, result: Path | None) -> object:
        def call(*args: object, **kwargs: object) -> Path | None:
            calls.append((name, args, kwargs))
            return result

        return call

    def install(module: str, **attributes: object) -> None:
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**attributes))  # type: ignore[arg-type]

    install("lightthinker.train.recipe", load_recipe=load_recipe)
    install("lightthinker.train.prepare", prepare=record("prepare", Path("rows")))
    install("lightthinker.train.run", train=record("train", Path("model")))
    install("lightthinker.train.convert", convert=record("convert", None))

    main(["prepare", "r.yaml", "--set", "a.b=1", "--set", "c=d e", "--strict"])
    main(["train", "r.yaml", "--resume"])
    main(["convert", "zjunlp/x", "out", "--method", "token", "--overwrite"])

    assert calls == [
        (Path("r.yaml"), ["a.b=1", "c=d e"]),
        ("prepare", ("recipe",), {"strict": True, "overwrite": False}),
        (Path("r.yaml"), []),
        ("train", ("recipe",), {"resume": True, "overwrite": False}),
        ("convert", ("zjunlp/x", Path("out")), {"method": "token", "overwrite": True}),
    ]
    assert "Checkpoint: model" in capsys.readouterr().out


def test_a_missing_checkpoint_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(tmp_path), "hello"])

    assert ended.value.code == 2
    assert "holds no *.safetensors weights" in capsys.readouterr().err
