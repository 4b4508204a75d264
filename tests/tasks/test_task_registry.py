import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from lightthinker.tasks import DIFFICULTIES, FAMILIES, generate, solve, stream, verify
from lightthinker.tasks.__main__ import main
from lightthinker.tasks.tokenization import count_tokens


@pytest.mark.parametrize(("difficulty", "length"), [("4k", 4000), ("8k", 8000)])
def test_long_traces_have_the_length_they_are_named_after(difficulty: str, length: int) -> None:
    names = [name for name, family in FAMILIES.items() if difficulty in family.difficulties]
    assert names == ["programs", "entity_tracking", "multiplication", "register_machine"]
    for name in names:
        problems = [generate(name, seed=seed, difficulty=difficulty) for seed in range(5)]
        traces = [count_tokens(problem.response) for problem in problems]
        assert 0.95 * length < sum(traces) / len(traces) < 1.2 * length
        assert all(verify(problem, problem.response).correct for problem in problems)
        assert [solve(problem) for problem in problems] == [p.value for p in problems]


def test_all_families_share_the_difficulties() -> None:
    assert DIFFICULTIES == ("tiny", "demo", "standard", "long", "mixed")
    assert all(f.difficulties[: len(DIFFICULTIES)] == DIFFICULTIES for f in FAMILIES.values())
    assert all(name == family.name for name, family in FAMILIES.items())


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"allowed: programs, .*Did you mean 'programs'"):
        generate("program", seed=0)
    with pytest.raises(ValueError, match=r"allowed: tiny, .*Did you mean 'standard'"):
        generate("programs", seed=0, difficulty="standart")
    with pytest.raises(ValueError, match=r"Unknown family 'zzz'; allowed: [a-z_, ]+.$"):
        stream(["zzz"], seed=0)
    with pytest.raises(ValueError, match="Unknown difficulty"):
        stream(seed=0, difficulty="hard")


@pytest.mark.parametrize(
    "families", [[], {}, {"programs": 0.0}, {"programs": -1, "multiplication": 2}]
)
def test_impossible_mixtures_are_refused(families: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        stream(families, seed=0)


def test_a_stream_repeats_by_seed() -> None:
    first, again, other = (list(islice(stream(seed=seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert not {problem.question for problem in first} & {problem.question for problem in other}


def test_a_stream_weights_its_families() -> None:
    def shares(families: dict[str, float] | None) -> Counter[str]:
        problems = islice(stream(families, seed=3, difficulty="tiny"), 4000)
        return Counter(problem.family for problem in problems)

    assert all(abs(count - 800) < 120 for count in shares(None).values())
    weighted = shares({"programs": 3, "multiplication": 1, "word_problems": 0})
    assert set(weighted) == {"programs", "multiplication"}
    assert abs(weighted["programs"] - 3000) < 150


def test_the_command_prints_a_problem_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["--family", "multiplication", "--difficulty", "tiny", "--seed", "4", "--num-problems", "5"]
    )
    output = capsys.readouterr().out
    problem = generate("multiplication", seed=4, difficulty="tiny")
    assert problem.question in output
    assert all(thought in output for thought in (*problem.thoughts, problem.answer))
    assert [line.split()[0] for line in output.splitlines()[-5:]] == list(FAMILIES)


def test_the_command_explains_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--family", "register_machin"])
    assert "Did you mean 'register_machine'" in capsys.readouterr().err


def test_importing_needs_only_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import lightthinker.tasks;"
        "names = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(names - sys.stdlib_module_names - {'lightthinker'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
