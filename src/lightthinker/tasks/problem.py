"""What a task is: a problem with its exact trace, and the family that generates such problems.

A family draws a `Draft` of a given size; `TaskFamily` names its difficulties and completes the
draft to a `Problem`. Every family ends in the same answer sentence: one verifier serves them all.

Nothing here knows about tokens, gists or models.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

THOUGHT_SEPARATOR = "\n\n"
ANSWER_PREFIX = "The answer is"

SizeT = TypeVar("SizeT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What a family decides about one problem; `TaskFamily` adds the rest."""

    question: str
    thoughts: tuple[str, ...]
    value: str
    chance: float
    lookups: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A reasoning problem with the one trace that solves it.

    Attributes:
        family: Name of the generating family, a key of `FAMILIES`.
        question: The user's message.
        thoughts: The reasoning, step by step; each is one non-empty line without outer white space.
        answer: The final sentence, `The answer is <value>.`
        value: The canonical answer.
        chance: Accuracy of the best constant guess, made without following the problem's steps.
        lookups: Pairs (reader, writer) of thought indices, writer < reader: the reader needs a
            value that the writer wrote. Values that stand in the question are not listed.
        difficulty: Name of the difficulty, or `custom`.
    """

    family: str
    question: str
    thoughts: tuple[str, ...]
    answer: str
    value: str
    chance: float
    lookups: tuple[tuple[int, int], ...]
    difficulty: str

    @property
    def reasoning(self) -> str:
        """The thoughts as one text, with a blank line between them."""
        return THOUGHT_SEPARATOR.join(self.thoughts)

    @property
    def response(self) -> str:
        """The whole expected generation: the reasoning, a blank line, the answer."""
        return f"{self.reasoning}{THOUGHT_SEPARATOR}{self.answer}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFamily(Generic[SizeT]):
    """A generator of problems of one kind, with named difficulties.

    Attributes:
        name: Key of the family in `FAMILIES`.
        sizes: Difficulty name -> size; the size dataclass belongs to the family.
        build: Draws a draft of the given size.
        solve: Answers a question from its text alone, by other means than the trace.
    """

    name: str
    sizes: Mapping[str, SizeT]
    build: Callable[[Random, SizeT], Draft]
    solve: Callable[[str], str]

    @property
    def difficulties(self) -> tuple[str, ...]:
        """The names that `generate` accepts."""
        return tuple(self.sizes)

    def generate(self, rng: Random, difficulty: str) -> Problem:
        """Draw a problem of a named difficulty.

        Args:
            rng: Source of randomness; only `rng.random()` is called.
            difficulty: One of `difficulties`.

        Returns:
            The problem.

        Raises:
            ValueError: If the difficulty is unknown.
        """
        check_known("difficulty", difficulty, self.sizes)
        return self.generate_sized(rng, self.sizes[difficulty], difficulty=difficulty)

    def generate_sized(self, rng: Random, size: SizeT, *, difficulty: str = "custom") -> Problem:
        """Draw a problem of any size, for instance with a trace of 8,000 tokens.

        Args:
            rng: Source of randomness; only `rng.random()` is called.
            size: The family's size dataclass.
            difficulty: The name that the problem will carry.

        Returns:
            The problem.
        """
        draft = self.build(rng, size)
        return Problem(
            family=self.name,
            question=draft.question,
            thoughts=draft.thoughts,
            answer=f"{ANSWER_PREFIX} {draft.value}.",
            value=draft.value,
            chance=draft.chance,
            lookups=draft.lookups,
            difficulty=difficulty,
        )


def check_known(kind: str, name: str, allowed: Iterable[str]) -> None:
    """Refuse an unknown name with a sentence that helps.

    Args:
        kind: What is being named, for the message.
        name: The name given.
        allowed: The names that exist.

    Raises:
        ValueError: If `name` is not allowed; lists what is, and suggests the nearest.
    """
    names = list(allowed)
    if name in names:
        return
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"Unknown {kind} {name!r}; allowed: {', '.join(names)}.{hint}")
