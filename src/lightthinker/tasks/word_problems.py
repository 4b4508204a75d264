"""Word problems over a dependency graph of people who own things.

    Some friends collect pens. Tom has 12. Zoe has 7. Ivy has 4 times Tom, plus Zoe. ...
    How many pens do Ivy, Kim and Zoe have together?

    a thought: Now Ivy has 4 times Tom, plus Zoe. Tom has 12. Zoe has 7. So 4*12=48,48+7=55.
    Ivy has 55.

Both people that a sentence refers to are drawn from all earlier ones, with a preference for those
that nobody has used yet, so that the answer depends on everybody. Sentences are chosen such that
counts stay positive and below a limit without any modulus.
"""

import re
from dataclasses import dataclass
from random import Random

from lightthinker.tasks.draws import (
    Range,
    below,
    between,
    check_choices,
    check_range,
    happens,
    pick,
    sample,
)
from lightthinker.tasks.names import enumerate_people, person_names, split_words
from lightthinker.tasks.problem import Draft, TaskFamily
from lightthinker.tasks.scratch import add_up

NUM_GIVEN = 2
THINGS = split_words(
    "pens cups hats maps keys nuts eggs figs pins beads books boxes cards coins dolls drums flags"
    " gems kites lamps rings shells stamps toys"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WordProblemSize:
    """How large a word problem is.

    Attributes:
        num_steps: People whose count must be computed, one thought each.
        num_queried: People whose counts the last thought adds.
        limits: Bounds for every count to choose from, equally likely; repeat one to weight it.
    """

    num_steps: Range
    num_queried: Range = (3, 3)
    limits: tuple[int, ...] = (1000,)

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, at_least=1, at_most=1000)
        check_range("num_queried", self.num_queried, at_least=2, at_most=3)
        check_choices("limits", self.limits, at_least=30)


_Count = tuple[str, int]
"""A person and how many things that person has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Relation:
    """What a sentence says about two people's counts, and how its value is worked out."""

    sources: tuple[str, str]
    phrase: str
    work: str
    middle: int
    result: int

    def is_natural(self, limit: int) -> bool:
        return self.middle >= 0 and 1 <= self.result < limit


def build(rng: Random, size: WordProblemSize) -> Draft:
    """Draw a word problem and trace it."""
    limit = pick(rng, size.limits)
    num_steps = between(rng, size.num_steps)
    num_queried = between(rng, size.num_queried)
    people = person_names(rng, NUM_GIVEN + num_steps)
    given = people[:NUM_GIVEN]
    counts = {name: between(rng, (2, min(99, limit // 3))) for name in given}
    writer: dict[str, int] = {}
    unused = list(given)
    sentences = [f"{name} has {count}." for name, count in counts.items()]
    thoughts: list[str] = []
    lookups: list[tuple[int, int]] = []

    def look_up(name: str) -> str:
        if name in writer:
            lookups.append((len(thoughts), writer[name]))
        return f"{name} has {counts[name]}."

    for step, name in enumerate(people[NUM_GIVEN:]):
        steps_after = num_steps - step - 1
        sources = _draw_sources(rng, list(counts), unused, max_unused=num_queried - 1 + steps_after)
        relation = _draw_relation(rng, [(source, counts[source]) for source in sources], limit)
        known = " ".join(look_up(source) for source in relation.sources)
        sentences.append(f"{name} has {relation.phrase}.")
        thoughts.append(
            f"Now {sentences[-1]} {known} So {relation.work}. {name} has {relation.result}."
        )
        counts[name], writer[name] = relation.result, step
        unused.append(name)

    rest = [name for name in people if name not in unused]
    queried = sample(rng, [*unused, *sample(rng, rest, num_queried - len(unused))], num_queried)
    thing = pick(rng, THINGS)
    query = f"How many {thing} do {enumerate_people(queried)} have together?"
    known = " ".join(look_up(name) for name in queried)
    work, total = add_up([counts[name] for name in queried])
    thoughts.append(f"{query} {known} So {work}. Together they have {total}.")
    return Draft(
        question=" ".join([f"Some friends collect {thing}.", *sentences]) + f"\n{query}",
        thoughts=tuple(thoughts),
        value=str(total),
        chance=1.6 / limit,
        lookups=tuple(sorted(set(lookups))),
    )


def _draw_sources(
    rng: Random, people: list[str], unused: list[str], *, max_unused: int
) -> list[str]:
    """Draw two people, and strike them from `unused`, which may keep at most `max_unused`."""
    sources: list[str] = []
    while len(sources) < 2:
        if unused and (len(unused) > max_unused or happens(rng, 0.5)):
            sources.append(unused.pop(below(rng, len(unused))))
        else:
            name = pick(rng, [other for other in people if other not in sources])
            sources.append(name)
            if name in unused:
                unused.remove(name)
    return sources


def _draw_relation(rng: Random, sources: list[_Count], limit: int) -> _Relation:
    while True:
        source, other = sample(rng, sources, 2)
        relation = pick(rng, _FORMS)(rng, source, other, limit)
        if relation and relation.is_natural(limit):
            return relation


def _half(rng: Random, source: _Count, other: _Count, limit: int) -> _Relation | None:
    name, count = source
    if count % 2:
        return None
    return _change(rng, source, other, f"half of {name},", f"{count}/2", count // 2)


def _times(rng: Random, source: _Count, other: _Count, limit: int) -> _Relation | None:
    name, count = source
    most = min(9, (limit + other[1]) // count)
    if most < 2:
        return None
    factor = between(rng, (2, most))
    phrase, work = f"{factor} times {name},", f"{factor}*{count}"
    return _change(rng, source, other, phrase, work, factor * count)


def _more_or_fewer(rng: Random, source: _Count, other: _Count, limit: int) -> _Relation | None:
    extra = between(rng, (2, min(99, limit // 3)))
    word, sign = pick(rng, (("more", "+"), ("fewer", "-")))
    name, count = source
    inner = _change(rng, source, other, name, str(count), count)
    result = inner.result + extra if sign == "+" else inner.result - extra
    return _Relation(
        sources=inner.sources,
        phrase=f"{extra} {word} than {inner.phrase}",
        work=f"{inner.work},{inner.result}{sign}{extra}={result}",
        middle=inner.result,
        result=result,
    )


_FORMS = (_half, _times, _times, _more_or_fewer)


def _change(
    rng: Random, source: _Count, other: _Count, phrase: str, work: str, middle: int
) -> _Relation:
    """Add or subtract the other's count, after `work` has reached `middle`."""
    name, count = other
    word, sign = pick(rng, (("plus", "+"), ("minus", "-")))
    result = middle + count if sign == "+" else middle - count
    reached = "" if work == str(middle) else f"={middle},{middle}"
    return _Relation(
        sources=(source[0], name),
        phrase=f"{phrase} {word} {name}",
        work=f"{work}{reached}{sign}{count}={result}",
        middle=middle,
        result=result,
    )


def solve(question: str) -> str:
    """Read the sentences and count."""
    counts: dict[str, int] = {}
    story, query = question.split("\n")
    for sentence in story.removesuffix(".").split(". ")[1:]:
        name, _, phrase = sentence.partition(" has ")
        counts[name] = _evaluate_phrase(phrase, counts)
    _, _, asked = query.partition(" do ")
    names = re.split(r", | and ", asked.removesuffix(" have together?"))
    return str(sum(counts[name] for name in names))


def _evaluate_phrase(phrase: str, counts: dict[str, int]) -> int:
    if phrase.isdigit():
        return int(phrase)
    match = re.fullmatch(r"(.+?),? (plus|minus) (.+)", phrase)
    assert match, phrase
    left, word, other = match.groups()
    change = counts[other] if word == "plus" else -counts[other]
    if left.startswith("half of "):
        half, odd = divmod(counts[left.removeprefix("half of ")], 2)
        assert not odd
        return half + change
    number, _, rest = left.partition(" ")
    if rest.startswith("times "):
        return int(number) * counts[rest.removeprefix("times ")] + change
    extra = int(number) if rest.startswith("more") else -int(number)
    return counts[rest.split(" than ")[1]] + change + extra


FAMILY = TaskFamily(
    name="word_problems",
    sizes={
        "tiny": WordProblemSize(num_steps=(1, 2), num_queried=(2, 2), limits=(30,)),
        "demo": WordProblemSize(num_steps=(4, 5)),
        "standard": WordProblemSize(num_steps=(8, 10)),
        "long": WordProblemSize(num_steps=(34, 38)),
        "mixed": WordProblemSize(
            num_steps=(1, 11), num_queried=(2, 3), limits=(30, 100, 1000, 1000, 1000, 1000)
        ),
    },
    build=build,
    solve=solve,
)
