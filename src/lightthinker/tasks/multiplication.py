"""Long multiplication: a row per digit of the multiplier, then a growing total, digit by digit.

    What is 483*27+915*64?

    rows:   a=483*20:3*2=6,8*2=16,4*2+1=9;a=9660
    totals: B=a+b;a=9660;b=3381:0+1=1,6+8=14,6+3+1=10,9+3+1=13;B=13041
            C=B+c;...

Columns go from the lowest digit up, each with the carry of the one before, so that every character
follows from a few restated ones. Total `C` adds row `c`. The total is the value that grows: what it
takes to carry it from thought to thought measures what a number of gists can hold.
"""

import re
import string
from dataclasses import dataclass
from itertools import zip_longest
from random import Random

from lightthinker.tasks.draws import Range, between, check_range
from lightthinker.tasks.problem import Draft, TaskFamily


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiplicationSize:
    """How large a sum of products is.

    Attributes:
        num_rows: Digits of all multipliers together; each makes a row, each row but one a total.
        multiplicand_digits: Digits of each left factor.
        multiplier_digits: Digits of each right factor; the last one takes what rows are left.
    """

    num_rows: Range
    multiplicand_digits: Range = (3, 3)
    multiplier_digits: Range = (2, 3)

    def __post_init__(self) -> None:
        check_range("num_rows", self.num_rows, at_least=1, at_most=260)
        check_range("multiplicand_digits", self.multiplicand_digits, at_least=1)
        check_range("multiplier_digits", self.multiplier_digits, at_least=1)


def build(rng: Random, size: MultiplicationSize) -> Draft:
    """Draw a sum of products and trace it."""
    rows_left = between(rng, size.num_rows)
    products: list[str] = []
    thoughts: list[str] = []
    rows: list[int] = []
    while rows_left:
        num_digits = min(rows_left, between(rng, size.multiplier_digits))
        rows_left -= num_digits
        multiplicand = _draw_number(rng, between(rng, size.multiplicand_digits), lowest_digit=0)
        multiplier = _draw_number(rng, num_digits, lowest_digit=2)
        products.append(f"{multiplicand}*{multiplier}")
        for place, digit in enumerate(multiplier):
            zeros = "0" * (num_digits - 1 - place)
            name = _label(len(rows), string.ascii_lowercase)
            row = int(multiplicand) * int(digit + zeros)
            work = ",".join(_multiply_columns(multiplicand, int(digit)))
            thoughts.append(f"{name}={multiplicand}*{digit}{zeros}:{work};{name}={row}")
            rows.append(row)

    lookups: list[tuple[int, int]] = []
    total, total_name = rows[0], _label(0, string.ascii_lowercase)
    for index, row in enumerate(rows[1:], start=1):
        name = _label(index, string.ascii_uppercase)
        row_name = _label(index, string.ascii_lowercase)
        last_total = len(thoughts) - 1 if index > 1 else 0
        lookups += [(len(thoughts), index), (len(thoughts), last_total)]
        work = ",".join(_add_columns(total, row))
        thoughts.append(
            f"{name}={total_name}+{row_name};{total_name}={total};{row_name}={row}:{work}"
            f";{name}={total + row}"
        )
        total, total_name = total + row, name
    return Draft(
        question=f"What is {'+'.join(products)}?",
        thoughts=tuple(thoughts),
        value=str(total),
        chance=10.0 ** (1 - len(str(total))),
        lookups=tuple(sorted(lookups)),
    )


def _draw_number(rng: Random, num_digits: int, *, lowest_digit: int) -> str:
    first = between(rng, (max(2, lowest_digit), 9))
    return str(first) + "".join(str(between(rng, (lowest_digit, 9))) for _ in range(num_digits - 1))


def _label(index: int, letters: str) -> str:
    lap, letter = divmod(index, len(letters))
    return letters[letter] + (str(lap) if lap else "")


def _multiply_columns(multiplicand: str, digit: int) -> list[str]:
    columns, carry = [], 0
    for upper in reversed(multiplicand):
        result = int(upper) * digit + carry
        columns.append(f"{upper}*{digit}{f'+{carry}' if carry else ''}={result}")
        carry = result // 10
    return columns


def _add_columns(left: int, right: int) -> list[str]:
    columns, carry = [], 0
    for upper, lower in zip_longest(reversed(str(left)), reversed(str(right))):
        digits = [digit for digit in (upper, lower) if digit]
        result = sum(map(int, digits)) + carry
        columns.append(f"{'+'.join(digits)}{f'+{carry}' if carry else ''}={result}")
        carry = result // 10
    return columns


def solve(question: str) -> str:
    """Multiply and add with Python's integers."""
    pairs = re.findall(r"(\d+)\*(\d+)", question)
    return str(sum(int(multiplicand) * int(multiplier) for multiplicand, multiplier in pairs))


FAMILY = TaskFamily(
    name="multiplication",
    sizes={
        "tiny": MultiplicationSize(
            num_rows=(2, 2), multiplicand_digits=(2, 2), multiplier_digits=(1, 2)
        ),
        "demo": MultiplicationSize(num_rows=(3, 4)),
        "standard": MultiplicationSize(num_rows=(5, 6)),
        "long": MultiplicationSize(num_rows=(17, 19)),
        "mixed": MultiplicationSize(
            num_rows=(2, 7), multiplicand_digits=(2, 3), multiplier_digits=(1, 3)
        ),
        "4k": MultiplicationSize(num_rows=(35, 38)),
        "8k": MultiplicationSize(num_rows=(71, 76)),
    },
    build=build,
    solve=solve,
)
