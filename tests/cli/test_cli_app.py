"""The command line: instant help, clear endings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightthinker import __version__
from lightthinker.cli import app as cli
from lightthinker.errors import ConfigError

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "jinja2")
PROBE = (
    "import sys\n"
    "from lightthinker.cli.app import main\n"
    "try:\n"
    "    main(sys.argv[1:])\n"
    "finally:\n"
    f"    print('HEAVY', [name for name in {HEAVY} if name in sys.modules])\n"
)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([command, "--help"] for command in cli.COMMANDS)]
)
def test_help_is_instant_and_imports_nothing_heavy(arguments: list[str]) -> None:
    least = float("inf")
    for _ in range(5):
        before = os.times()
        done = run(*arguments)
        after = os.times()
        # Processor time: the wall clock measures whatever else the machine is doing.
        used = after.children_user + after.children_system
        least = min(least, used - before.children_user - before.children_system)
        if least < 0.5:
            break

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")
    assert least < 0.5


def test_help_lists_every_command() -> None:
    text = run("--help").stdout

    for command in (
        "demo",
        "prepare",
        "train",
        "generate",
        "eval",
        "mask",
        "convert",
        "report",
        "serve",
    ):
        assert f" {command} " in text


def test_version() -> None:
    assert run("--version").stdout.startswith(f"lightthinker {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "error: There is no results file or folder nowhere."),
        (["eval", "m", "--tasks", "program"], "Did you mean 'programs'?"),
        (["eval", "m", "--methods", "full_cott"], "Did you mean 'full_cot'?"),
        (["eval", "m", "--report"], "give --output"),
        (["eval", "m", "--data", "x.jsonl"], "data is a file for gsm8k"),
        (["mask", "--thoughts", "five"], "--thoughts is 'five'"),
        (["mask", "--num-gists", "0"], "compression.num_gists is 0"),
        (["mask", "--prompt", "0"], "--prompt must be at least 1"),
        (["mask", "--prompt", "5000"], "at most 400 are drawn"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["nonsense"], ["mask", "--method", "thougt"], ["report"]])
def test_wrong_usage_ends_in_code_2(arguments: list[str]) -> None:
    done = run(*arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("report", "nowhere", "--debug", cwd=tmp_path)

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "DataError" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ConfigError("two\nlines"), 2, "error: two lines\n"),
        (OSError(28, "No space left on device", "a.json"), 2, "No space left on device: 'a.json'"),
    ],
)
def test_how_a_command_may_end(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("lightthinker.evals.report.write_report", failing)
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "x"])

    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lightthinker.evals.report.write_report", failing)
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", "x"])


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from lightthinker.cli.app import main; main(['mask', '--prompt', '120'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()

    assert b"Traceback" not in errors
