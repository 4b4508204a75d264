"""People who trade things: who holds what after many trades?

    Start Tom: tea Zoe: salt Kim: milk Ann: silk
    1 Tom trades with Zoe then for milk
    2 ...
    What do Tom, Ann and Kim have?

    a thought: 1 Tom trades with Zoe then for milk. Tom: tea. Zoe: salt. Swap Tom: salt Zoe: tea.
    Kim: milk. Swap Tom: milk Kim: salt. Now Tom: milk Zoe: tea Kim: salt Ann: silk.

The partner of a trade `for` a thing is whoever holds it by then, so the question's last mention of
a name says nothing about what that person ends up with. Every thought ends by restating who holds
what, so a reader needs the thought before: without that, a 14M-parameter model never learned to
find the latest of many writers (0 of 50 problems after 500M tokens).
"""

import re
from dataclasses import dataclass
from random import Random

from lightthinker.tasks.draws import Range, below, between, check_range, happens, sample
from lightthinker.tasks.names import PEOPLE, enumerate_people, person_names, split_words
from lightthinker.tasks.problem import Draft, TaskFamily

GOODS = split_words(
    "tea milk salt rice gold silk honey corn wine soap sand wood coal jam flour sugar cheese bread"
    " wool iron paper glass oil wax"
)


SHARE_FOR_THING = 0.3
"""Share of trades that name the thing wanted, not the partner."""


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
        check_range("num_people", self.num_people, at_least=3, at_most=min(len(PEOPLE), len(GOODS)))
        check_range("num_queried", self.num_queried, at_least=1, at_most=3)


def build(rng: Random, size: EntityTrackingSize) -> Draft:
    """Draw a series of trades and trace it."""
    num_people = between(rng, size.num_people)
    people = person_names(rng, num_people)
    holding = dict(zip(people, sample(rng, GOODS, num_people), strict=True))
    lines = [f"Start {_state(holding)}"]
    thoughts: list[str] = []
    last_traded = dict.fromkeys(people, -1)
    for move in range(between(rng, size.num_moves)):
        actor, first, second = _draw_traders(rng, last_traded)
        own, first_thing, second_thing = holding[actor], holding[first], holding[second]
        partners = _describe(rng, (first, first_thing), (second, second_thing))
        line = f"{move + 1} {actor} trades {partners}"
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


def _describe(rng: Random, first: tuple[str, str], second: tuple[str, str]) -> str:
    first_by_thing, second_by_thing = happens(rng, SHARE_FOR_THING), happens(rng, SHARE_FOR_THING)
    start = f"for {first[1]} then" if first_by_thing else f"with {first[0]} then"
    if first_by_thing == second_by_thing:
        return f"{start} {second[1] if second_by_thing else second[0]}"
    return f"{start} {f'for {second[1]}' if second_by_thing else f'with {second[0]}'}"


def _chance(num_people: int, num_queried: int) -> float:
    arrangements = 1
    for taken in range(num_queried):
        arrangements *= num_people - taken
    return 1 / arrangements


def solve(question: str) -> str:
    """Carry out the trades."""
    start, *moves, query = question.split("\n")
    holding = dict(re.findall(r" (\w+): (\w+)", start))
    for move in moves:
        match = re.fullmatch(r"\d+ (\w+) trades (with|for) (\w+) then(?: (with|for))? (\w+)", move)
        assert match, move
        actor, first_kind, first, second_kind, second = match.groups()
        for kind, target in (first_kind, first), (second_kind or first_kind, second):
            holder_of = {thing: name for name, thing in holding.items()}
            partner = target if kind == "with" else holder_of[target]
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
    },
    build=build,
    solve=solve,
)
