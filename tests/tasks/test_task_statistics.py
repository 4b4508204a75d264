from itertools import islice
from random import Random

import pytest

from lightthinker.tasks import FAMILIES, Problem, count_tokens, solve, stream, tokenize
from lightthinker.tasks.entity_tracking import EntityTrackingSize
from lightthinker.tasks.multiplication import MultiplicationSize
from lightthinker.tasks.programs import ProgramSize
from lightthinker.tasks.register_machine import RegisterMachineSize
from lightthinker.tasks.statistics import TraceStatistics, measure
from lightthinker.tasks.word_problems import WordProblemSize

TRACE_TOKENS = {
    "tiny": (60, 125),
    "demo": (270, 350),
    "standard": (430, 600),
    "long": (1800, 2500),
    "mixed": (250, 500),
}
SIZES_FOR_8K = {
    "programs": ProgramSize(num_steps=(150, 160)),
    "word_problems": WordProblemSize(num_steps=(130, 140)),
    "entity_tracking": EntityTrackingSize(num_moves=(125, 135), num_people=(8, 8)),
    "multiplication": MultiplicationSize(num_rows=(66, 70)),
    "register_machine": RegisterMachineSize(
        num_registers=(5, 5), num_lines=(6, 7), num_steps=(150, 160)
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def statistics_of(family: str, difficulty: str) -> TraceStatistics:
    return measure(list(islice(stream([family], seed=5, difficulty=difficulty), 200)))


def test_tokens_are_words_digits_and_marks() -> None:
    text = "Now Ivy has 4 times Tom.\nx=s*52"
    pieces = "Now| Ivy| has| |4| times| Tom|.|\n|x|=|s|*|5|2"
    assert tokenize(text) == pieces.split("|")
    assert count_tokens(text) == 15


@every_family
@pytest.mark.parametrize("difficulty", TRACE_TOKENS)
def test_traces_have_the_length_their_difficulty_promises(family: str, difficulty: str) -> None:
    low, high = TRACE_TOKENS[difficulty]
    assert low <= statistics_of(family, difficulty).trace <= high


@every_family
def test_compression_pays_on_standard_problems(family: str) -> None:
    stats = statistics_of(family, "standard")
    assert stats.peak_ratio <= 0.36
    assert stats.prompt <= 125
    assert 30 <= stats.tokens_per_thought <= 60


@every_family
@pytest.mark.parametrize("difficulty", ["standard", "mixed"])
def test_problems_fit_in_900_tokens(family: str, difficulty: str) -> None:
    problems = islice(stream([family], seed=6, difficulty=difficulty), 1000)
    assert measure(list(problems)).max_total <= 900


@every_family
def test_mixed_reaches_from_tiny_to_beyond_standard(family: str) -> None:
    def traces(difficulty: str) -> list[int]:
        problems = islice(stream([family], seed=7, difficulty=difficulty), 400)
        return [count_tokens(problem.response) for problem in problems]

    mixed = traces("mixed")
    assert min(mixed) <= max(traces("tiny"))
    assert max(mixed) >= 0.9 * max(traces("standard"))


@every_family
def test_sizes_reach_8k_tokens(family: str) -> None:
    problem = FAMILIES[family].generate_sized(Random(1), SIZES_FOR_8K[family])
    assert problem.difficulty == "custom"
    assert 7000 <= count_tokens(problem.response) <= 9500
    assert solve(problem) == problem.value


def test_measure_counts_a_hand_made_problem() -> None:
    problem = Problem(
        family="programs",
        question="a=1",
        thoughts=("b=2", "c=b+1", "d=b+c+1"),
        answer="The answer is 4.",
        value="4",
        chance=0.5,
        lookups=((1, 0), (2, 0), (2, 1)),
        difficulty="custom",
    )
    stats = measure([problem])
    assert (stats.prompt, stats.trace, stats.num_thoughts) == (3, 3 + 5 + 7 + 3 * 2 + 6, 3)
    assert (stats.longest_thought, stats.tokens_per_thought) == (7, 5)
    assert stats.peak_ratio == (3 + 5 * 3 + 7 + 5) / (3 + 27)
    assert (stats.lookups_per_thought, stats.lookup_distance) == (1, 4 / 3)


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (ProgramSize, {"num_steps": (3, 2)}, "num_steps"),
        (ProgramSize, {"num_steps": (1, 2), "moduli": ()}, "moduli"),
        (WordProblemSize, {"num_steps": (1, 2), "limits": (10,)}, "limits"),
        (EntityTrackingSize, {"num_moves": (1, 2), "num_people": (2, 4)}, "num_people"),
        (MultiplicationSize, {"num_rows": (0, 4)}, "num_rows"),
        (
            RegisterMachineSize,
            {"num_registers": (2, 9), "num_lines": (2, 2), "num_steps": (2, 2)},
            "num_registers",
        ),
    ],
)
def test_impossible_sizes_are_refused(
    size: type, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        size(**arguments)
