"""Generated benchmarks: which problems, from which seeds, and whether their graders judge."""

from __future__ import annotations

from collections import Counter

import pytest

from lightthinker.compression import CompressionConfig
from lightthinker.encode import Encoder
from lightthinker.errors import ConfigError
from lightthinker.evals.benchmarks import HELD_OUT_SEEDS, SEED_STRIDE, families, load_benchmark
from lightthinker.tasks import FAMILIES, generate
from lightthinker.tokens import resolve_tokens
from lightthinker.train.datasets import TaskRows
from lightthinker.train.recipe import DataConfig, TaskSource
from lightthinker.train.task_tokenizer import build_task_tokenizer


def test_tasks_takes_all_families_evenly() -> None:
    problems = load_benchmark("tasks", num_problems=2 * len(FAMILIES) + 1, difficulty="tiny")

    counts = Counter(problem.family for problem in problems)

    assert list(counts) == list(FAMILIES)
    assert sorted(counts.values()) == [2] * (len(FAMILIES) - 1) + [3]
    assert len({problem.id for problem in problems}) == len(problems)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_grader_wants_the_right_answer(family: str) -> None:
    problem = load_benchmark(family, num_problems=1, difficulty="tiny")[0]
    source = generate(family, seed=HELD_OUT_SEEDS, difficulty="tiny")

    assert problem.question == source.question
    assert problem.grade(source.response)
    assert not problem.grade(source.reasoning)
    assert not problem.grade(f"{source.reasoning}\n\nThe answer is not {source.value}.")
    assert (problem.reference, problem.num_thoughts) == (source.value, len(source.thoughts))
    assert problem.chance == source.chance


def test_seeds_are_held_out_and_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[int, set[int]] = {}
    for seed in (0, 1, SEED_STRIDE - 1):
        drawn: set[int] = set()

        def recording(family: str, *, seed: int, difficulty: str, drawn: set[int] = drawn):  # type: ignore[no-untyped-def]
            drawn.add(seed)
            return generate(family, seed=seed, difficulty=difficulty)

        monkeypatch.setattr(families, "generate", recording)
        load_benchmark("programs", num_problems=20, seed=seed, difficulty="tiny")
        used[seed] = drawn

    assert all(len(seeds) == 20 and min(seeds) >= HELD_OUT_SEEDS for seeds in used.values())
    assert len(set.union(*used.values())) == 60


def test_no_held_out_problem_is_trained_on() -> None:
    config = CompressionConfig(num_gists=2)
    tokenizer = build_task_tokenizer()
    tokenizer.add_tokens(list(config.special_tokens), special_tokens=True)
    encoder = Encoder(tokenizer, resolve_tokens(tokenizer, config))
    source = TaskSource(difficulty="standard")
    data = DataConfig(row_length=2048, full_cot_share=1.0, tasks=source)
    rows = TaskRows(encoder, source, data=data, num_rows=60)
    trained = "".join(tokenizer.decode(row["input_ids"].tolist()) for row in rows)

    problems = load_benchmark("tasks", num_problems=50)
    questions = [problem.messages[-1]["content"] for problem in problems]
    assert trained.count("<|user|>") > 100
    assert not [question for question in questions if question in trained]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "program"}, "Did you mean 'programs'"),
        ({"name": "programs", "difficulty": "standart"}, "Did you mean 'standard'"),
        ({"name": "programs", "num_problems": 0}, "at least 1"),
        ({"name": "programs", "seed": -1}, "seed is -1"),
        ({"name": "programs", "path": "x.jsonl"}, "path, subset, style and version are for gsm8k"),
        ({"name": "tasks:chat"}, "generated"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_benchmark(**arguments)  # type: ignore[arg-type]
