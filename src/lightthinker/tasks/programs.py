"""Straight-line integer programs: each value is written once and read at unpredictable distance.

    Run mod 1000:
    s=24
    v=82
    x=v*5+s          a thought: x=v*5+s;v=82;s=24:82*5=410,410+24=434;x=434
    ...
    print(x+k-s)

A variable uses the one before it, times a digit, and any earlier one; so the last variable depends
on every step, and whatever replaces a thought has to keep its value: a recency window cannot know
which values will be asked for again.
"""

import re
from dataclasses import dataclass
from random import Random

from lightthinker.tasks.draws import (
    Range,
    between,
    check_choices,
    check_range,
    happens,
    pick,
    sample,
)
from lightthinker.tasks.names import variable_names
from lightthinker.tasks.problem import Draft, TaskFamily

NUM_CONSTANTS = 2
FACTORS = (2, 3, 4, 6, 7, 8, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramSize:
    """How large a program is.

    Attributes:
        num_steps: Variables to compute, one thought each.
        num_queried: Variables that the last line combines.
        moduli: Moduli to choose from, equally likely; repeat one to weight it.
    """

    num_steps: Range
    num_queried: Range = (3, 3)
    moduli: tuple[int, ...] = (1000,)

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, at_least=1, at_most=500)
        check_range("num_queried", self.num_queried, at_least=2, at_most=3)
        check_choices("moduli", self.moduli, at_least=10)


def build(rng: Random, size: ProgramSize) -> Draft:
    """Draw a program and trace it."""
    modulus = pick(rng, size.moduli)
    num_steps = between(rng, size.num_steps)
    names = variable_names(rng, NUM_CONSTANTS + num_steps)
    index = {name: position for position, name in enumerate(names)}
    values = {name: between(rng, (2, min(99, modulus - 1))) for name in names[:NUM_CONSTANTS]}
    statements = [f"{name}={value}" for name, value in values.items()]
    thoughts: list[str] = []
    lookups: list[tuple[int, int]] = []

    def look_up(name: str) -> int:
        writer = index[name] - NUM_CONSTANTS
        if writer >= 0:
            lookups.append((len(thoughts), writer))
        return values[name]

    for position in range(NUM_CONSTANTS, len(names)):
        name, previous = names[position], names[position - 1]
        other = pick(rng, names[: position - 1])
        factor = pick(rng, FACTORS)
        left, right = look_up(previous), look_up(other)
        product = left * factor
        sign, result = _combine(rng, product, right)
        values[name] = result % modulus
        statements.append(f"{name}={previous}*{factor}{sign}{other}")
        thoughts.append(
            f"{statements[-1]};{previous}={left};{other}={right}:{left}*{factor}={product},"
            f"{product}{sign}{right}={result};{name}={values[name]}"
        )

    queried = _query(rng, names, between(rng, size.num_queried))
    total = look_up(queried[0])
    expression, known, work = queried[0], [f"{queried[0]}={total}"], []
    for name in queried[1:]:
        value = look_up(name)
        sign, result = _combine(rng, total, value)
        expression += f"{sign}{name}"
        known.append(f"{name}={value}")
        work.append(f"{total}{sign}{value}={result}")
        total = result
    answer = str(total % modulus)
    thoughts.append(f"print({expression});{';'.join(known)}:{','.join(work)};print={answer}")
    return Draft(
        question="\n".join([f"Run mod {modulus}:", *statements, f"print({expression})"]),
        thoughts=tuple(thoughts),
        value=answer,
        chance=2 / modulus,
        lookups=tuple(sorted(set(lookups))),
    )


def _combine(rng: Random, left: int, right: int) -> tuple[str, int]:
    if left >= right and happens(rng, 0.5):
        return "-", left - right
    return "+", left + right


def _query(rng: Random, names: list[str], count: int) -> list[str]:
    computed = names[NUM_CONSTANTS:-1]
    others = computed if len(computed) >= count - 1 else names[:-1]
    return sample(rng, [*sample(rng, others, count - 1), names[-1]], count)


def solve(question: str) -> str:
    """Run the program."""
    header, *statements, query = question.split("\n")
    modulus = int(header.removeprefix("Run mod ").removesuffix(":"))
    environment: dict[str, int] = {}

    def evaluate(expression: str) -> int:
        total = 0
        for sign, term in re.findall(r"([+-]?)([A-Za-z0-9*]+)", expression):
            product = 1
            for factor in term.split("*"):
                product *= int(factor) if factor.isdigit() else environment[factor]
            total += -product if sign == "-" else product
        return total % modulus

    for statement in statements:
        name, expression = statement.split("=")
        environment[name] = evaluate(expression)
    return str(evaluate(query.removeprefix("print(").removesuffix(")")))


FAMILY = TaskFamily(
    name="programs",
    sizes={
        "tiny": ProgramSize(num_steps=(1, 2), num_queried=(2, 2), moduli=(10,)),
        "demo": ProgramSize(num_steps=(4, 6)),
        "standard": ProgramSize(num_steps=(9, 12)),
        "long": ProgramSize(num_steps=(38, 42)),
        "mixed": ProgramSize(
            num_steps=(1, 13), num_queried=(2, 3), moduli=(10, 100, 1000, 1000, 1000, 1000)
        ),
        "4k": ProgramSize(num_steps=(76, 82)),
        "8k": ProgramSize(num_steps=(150, 162)),
    },
    build=build,
    solve=solve,
)
