import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from functools import cache
from itertools import islice

import pytest

from lightthinker.tasks import DIFFICULTIES, FAMILIES, Problem, generate, solve, stream, tokenize
from lightthinker.tasks.entity_tracking import GOODS
from lightthinker.tasks.names import PEOPLE
from lightthinker.tasks.word_problems import THINGS

MAX_VOCABULARY = 550
GOLDEN = {
    "programs": "ce5b25225da79f5e",
    "word_problems": "d15cf8ec77bdfb7f",
    "entity_tracking": "c8e275bb042033fd",
    "multiplication": "5cc7ee7b51c09908",
    "register_machine": "508ed17e6614ff33",
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_difficulty = pytest.mark.parametrize("difficulty", DIFFICULTIES)


@cache
def draw_many(family: str, difficulty: str) -> list[Problem]:
    return list(islice(stream([family], seed=0, difficulty=difficulty), 400))


def draw(family: str, difficulty: str, count: int) -> list[Problem]:
    return draw_many(family, difficulty)[:count]


@every_family
def test_seeds_give_the_same_problems_everywhere(family: str) -> None:
    problems = [
        generate(family, seed=seed, difficulty=difficulty)
        for difficulty in DIFFICULTIES
        for seed in range(3)
    ]
    text = json.dumps([asdict(problem) for problem in problems])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN[family]


@every_family
def test_different_seeds_give_different_problems(family: str) -> None:
    questions = {generate(family, seed=seed).question for seed in range(50)}
    assert len(questions) == 50


@every_family
@every_difficulty
def test_the_question_alone_gives_the_value(family: str, difficulty: str) -> None:
    for problem in draw(family, difficulty, 300):
        assert solve(problem) == problem.value


@every_family
@every_difficulty
def test_thoughts_are_single_stripped_lines(family: str, difficulty: str) -> None:
    for problem in draw(family, difficulty, 50):
        assert len(problem.thoughts) >= 2
        assert all(thought and thought == thought.strip() for thought in problem.thoughts)
        assert not any("\n" in thought for thought in problem.thoughts)
        assert problem.answer == f"The answer is {problem.value}."
        assert problem.response.split("\n\n") == [*problem.thoughts, problem.answer]


@pytest.mark.parametrize("family", ["programs", "word_problems", "entity_tracking"])
@every_difficulty
def test_thoughts_restate_the_statements_of_the_question_in_order(
    family: str, difficulty: str
) -> None:
    for problem in draw(family, difficulty, 30):
        position = 0
        for thought in problem.thoughts:
            statement = re.split(r"[;.?]", thought.removeprefix("Now "))[0]
            position = problem.question.find(statement, position)
            assert position >= 0, statement
        assert problem.question.rstrip("?").endswith(statement)


@every_family
@every_difficulty
def test_each_lookup_restates_what_its_writer_wrote_last(family: str, difficulty: str) -> None:
    for problem in draw(family, difficulty, 50):
        if family in ("register_machine", "entity_tracking"):
            assert problem.lookups == tuple((i, i - 1) for i in range(1, len(problem.thoughts)))
        else:
            assert set(problem.lookups) == find_lookups(problem)
        assert list(problem.lookups) == sorted(set(problem.lookups))


@pytest.mark.parametrize("family", ["programs", "word_problems", "multiplication"])
@every_difficulty
def test_the_answer_depends_on_every_thought(family: str, difficulty: str) -> None:
    for problem in draw(family, difficulty, 50):
        needed = {len(problem.thoughts) - 1}
        for reader, writer in sorted(problem.lookups, reverse=True):
            if reader in needed:
                needed.add(writer)
        assert len(needed) == len(problem.thoughts)


def find_lookups(problem: Problem) -> set[tuple[int, int]]:
    """Match every restated `name value` pair with the thought that last changed that name."""
    latest = {name: (value, -1) for name, value in find_pairs(problem.question)}
    lookups = set()
    for reader, thought in enumerate(problem.thoughts):
        pairs = find_pairs(thought)
        for name, value in pairs:
            known, writer = latest.get(name, ("", -1))
            if value == known and writer >= 0:
                lookups.add((reader, writer))
        for name, value in pairs:
            if name not in latest or latest[name][0] != value:
                latest[name] = (value, reader)
    return lookups


def find_pairs(text: str) -> list[tuple[str, str]]:
    symbolic = re.findall(r"\b([A-Za-z]\d?)=(\d+)(?![\d*])", text)
    return symbolic + re.findall(r" (\w+) ha[sd] (\d+|[a-z]+)(?=[.,\n])", text)


@every_family
@every_difficulty
def test_written_arithmetic_is_right(family: str, difficulty: str) -> None:
    for problem in draw(family, difficulty, 50):
        equations = re.findall(r"(?<!\w)(\d+(?:[-+*/]\d+)+)=(\d+)", problem.reasoning)
        assert equations or family == "entity_tracking"
        for expression, result in equations:
            assert eval(expression) == int(result), expression


def test_values_stay_small() -> None:
    bounds = {"programs": 1000, "word_problems": 1000, "register_machine": 100}
    for family, bound in bounds.items():
        for problem in draw(family, "long", 50):
            written = [
                int(value)
                for thought in problem.thoughts[:-1]
                for _, value in find_pairs(thought)
                if value.isdigit()
            ]
            assert 0 <= min(written) <= max(written) < bound


def test_machine_thoughts_restate_a_line_and_write_the_whole_state() -> None:
    for problem in draw("register_machine", "standard", 50):
        _, start, *program = problem.question.split("\n")
        names = re.findall(r"[A-Z]=", start)
        next_line = "1"
        for thought in problem.thoughts[:-1]:
            *work, state, goto = thought.split(";")
            assert any(";".join(work).startswith(line) for line in program)
            assert work[0].startswith(f"{next_line}:")
            assert re.findall(r"[A-Z]=", state) == names
            next_line = goto.removeprefix("goto ")
        assert problem.thoughts[-1].startswith(program[-1])


def test_vocabulary_is_small_and_each_word_has_one_form() -> None:
    tokens: set[str] = set()
    for difficulty in DIFFICULTIES:
        for family in FAMILIES:
            for problem in draw(family, difficulty, 150):
                text = f"{problem.question}\n{problem.response}"
                pieces = tokenize(text)
                assert "".join(pieces) == text
                tokens.update(pieces)
    assert len(tokens) < MAX_VOCABULARY
    words = Counter(token.strip() for token in tokens if token.strip().isalpha())
    # "Now" opens a sentence in two families, once at the start of a thought and once inside it.
    assert [word for word, forms in words.items() if forms > 1] == ["Now"]
    assert {f" {word}" for word in (*PEOPLE, *THINGS, *GOODS)} <= tokens


@every_family
@pytest.mark.parametrize("difficulty", ["demo", "standard", "long"])
def test_the_question_does_not_tell_the_answer(family: str, difficulty: str) -> None:
    problems = draw(family, difficulty, 300)
    told = sum(
        re.search(rf"(?<!\w){problem.value}(?!\w)", problem.question) is not None
        for problem in problems
    )
    assert told / len(problems) < 0.05


@every_family
@every_difficulty
def test_answers_are_spread_as_chance_says(family: str, difficulty: str) -> None:
    problems = draw(family, difficulty, 400)
    chance = sum(problem.chance for problem in problems) / len(problems)
    _, most_common = Counter(problem.value for problem in problems).most_common(1)[0]
    assert most_common / len(problems) <= 1.3 * chance + 0.01
    if difficulty != "tiny":
        assert most_common / len(problems) < 0.05
