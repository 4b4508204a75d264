"""Names of variables and people.

A name is always written in one form (people with a space before them, variables without), because
a tokenizer that joins the space to the word would otherwise see two unrelated tokens. The pools are
small, so that a small model meets each name often; problems that need more get two-part names.
"""

import string
from random import Random

from lightthinker.tasks.draws import sample

VARIABLES = string.ascii_letters


def split_words(text: str) -> list[str]:
    """Split a pool of words that is written as one text."""
    return text.split()


PEOPLE = split_words(
    "Ada Amy Ann Ben Bob Cat Dan Dee Don Eli Ela Eva Fay Fred Gus Guy Hal Ian Ida Ivy Jack Jane Jim"
    " Joe Kate Ken Kim Lea Leo Liz Lou Max May Meg Ned Nina Omar Pat Paul Pia Ray Rosa Sam Sue Ted"
    " Tom Una Zoe"
)


def variable_names(rng: Random, count: int) -> list[str]:
    """Draw different variable names: letters, or letter and digit when letters do not suffice."""
    if count <= len(VARIABLES):
        return sample(rng, VARIABLES, count)
    return sample(rng, [letter + digit for digit in string.digits for letter in VARIABLES], count)


def person_names(rng: Random, count: int) -> list[str]:
    """Draw different people: first names, or first name and initial when those do not suffice."""
    if count <= len(PEOPLE):
        return sample(rng, PEOPLE, count)
    initials = string.ascii_uppercase
    return sample(rng, [f"{name} {letter}" for name in PEOPLE for letter in initials], count)


def enumerate_people(names: list[str]) -> str:
    """Join names as English does: `Tom`, `Tom and Zoe`, `Tom, Zoe and Kim`."""
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
