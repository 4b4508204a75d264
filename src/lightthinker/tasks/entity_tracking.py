"""People who swap things: who holds what after many swaps?

    Start Ann: tea Ben: salt Dan: milk Eve: silk
    1 Ann swaps with Dan then Ben
    2 ...
    What do Ann, Dan and Eve have?

    a thought: 1 Ann swaps with Dan then Ben. Ann: tea. Dan: milk. Swap Ann: milk Dan: tea.
    Ben: salt. Swap Ann: salt Ben: milk. Now Ann: salt Ben: milk Dan: tea Eve: silk.

Where a thing ends up takes the whole chain: the question's last mention of a name says nothing
about what that person holds. People stand in alphabetical order and every thought ends with the
whole state, so that a look-up reaches back one thought: with many names in any order, a
14M-parameter model never learned to find the latest of several writers.
"""

import re
from dataclasses import dataclass
from random import Random

from lightthinker.tasks.draws import Range, below, between, check_range, sample
from lightthinker.tasks.names import enumerate_people, split_words
from lightthinker.tasks.problem import Draft, TaskFamily

GOODS = split_words("tea milk salt rice gold silk honey corn wine soap sand wood")
TRADERS = split_words("Amy Ben Cat Don Eva Fay Gus Hal")
"""In alphabetical order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntityTrackingSize:
    """How large an entity tracking problem is.

    Attributes:
        num_moves: Moves of two trades each, one thought each.
        num_people: People, each holding one thing: the size of the state.
        num_queried: People whose things are asked for.
    """

    num_moves: Range
    num_people: Range
    num_queried: Range = (3, 3)

    def __post_init__(self) -> None:
        check_range("num_moves", self.num_moves, at_least=1)
        check_range("num_people", self.num_people, at_least=3, at_most=len(TRADERS))
        check_range("num_queried", self.num_queried, at_least=1, at_most=3)


def build(rng: Random, size: EntityTrackingSize) -> Draft:
    """Draw a series of trades and trace it."""
    num_people = between(rng, size.num_people)
    people = sorted(sample(rng, TRADERS, num_people))
    holding = dict(zip(people, sample(rng, GOODS, num_people), strict=True))
    lines = [f"Start {_state(holding)}"]
    thoughts: list[str] = []
    last_traded = dict.fromkeys(people, -1)
    for move in range(between(rng, size.num_moves)):
        actor, first, second = _draw_traders(rng, last_traded)
        own, first_thing, second_thing = holding[actor], holding[first], holding[second]
        line = f"{move + 1} {actor} swaps with {first} then {second}"
        lines.append(line)
        holding |= {actor: second_thing, first: own, second: first_thing}
        thoughts.append(
            f"{line}. {actor}: {own}. {first}: {first_thing}."
            f" Swap {actor}: {first_thing} {first}: {own}. {second}: {second_thing}."
            f" Swap {actor}: {second_thing} {second}: {first_thing}. Now {_state(holding)}."
        )
        last_traded |= dict.fromkeys((actor, first, second), move)

    num_queried = between(rng, size.num_queried)
    queried = sample(rng, [name for name in people if last_traded[name] >= 0], num_queried)
    query = f"What do {enumerate_people(queried)} have?"
    found = {name: holding[name] for name in queried}
    thoughts.append(f"{query} {_state(found)}.")
    return Draft(
        question="\n".join([*lines, query]),
        thoughts=tuple(thoughts),
        value=", ".join(found.values()),
        chance=_chance(num_people, num_queried),
        lookups=tuple((reader, reader - 1) for reader in range(1, len(thoughts))),
    )


def _state(holding: dict[str, str]) -> str:
    return " ".join(f"{name}: {thing}" for name, thing in holding.items())


def _draw_traders(rng: Random, last_traded: dict[str, int]) -> list[str]:
    """Draw three people, preferring those who have not traded for long."""
    rest = list(last_traded)
    traders = []
    for _ in range(3):
        one, other = below(rng, len(rest)), below(rng, len(rest))
        stalest = one if last_traded[rest[one]] <= last_traded[rest[other]] else other
        traders.append(rest.pop(stalest))
    return traders


def _chance(num_people: int, num_queried: int) -> float:
    arrangements = 1
    for taken in range(num_queried):
        arrangements *= num_people - taken
    return 1 / arrangements


def solve(question: str) -> str:
    """Carry out the trades."""
    start, *moves, query = question.split("\n")
    holding = dict(re.findall(r"(\w+): (\w+)", start))
    for move in moves:
        match = re.fullmatch(r"\d+ (\w+) swaps with (\w+) then (\w+)", move)
        assert match, move
        actor, *partners = match.groups()
        for partner in partners:
            holding[actor], holding[partner] = holding[partner], holding[actor]
    asked = query.removeprefix("What do ").removesuffix(" have?")
    return ", ".join(holding[name] for name in re.split(r", | and ", asked))


FAMILY = TaskFamily(
    name="entity_tracking",
    sizes={
        "tiny": EntityTrackingSize(num_moves=(1, 2), num_people=(4, 4), num_queried=(2, 2)),
        "demo": EntityTrackingSize(num_moves=(4, 6), num_people=(5, 6)),
        "standard": EntityTrackingSize(num_moves=(8, 10), num_people=(6, 7)),
        "long": EntityTrackingSize(num_moves=(34, 38), num_people=(7, 8)),
        "mixed": EntityTrackingSize(num_moves=(1, 11), num_people=(4, 7), num_queried=(2, 3)),
        "4k": EntityTrackingSize(num_moves=(64, 70), num_people=(7, 8)),
        "8k": EntityTrackingSize(num_moves=(130, 138), num_people=(7, 8)),
    },
    build=build,
    solve=solve,
)
