"""What a benchmark module declares, and the tools with which it reads its rows.

A benchmark is data: where its rows come from, which of them are its default subset, how a row
becomes a `Question`. Loading (`load`) and prompting (`prompts`) are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from lightthinker.errors import DataError
from lightthinker.evals.benchmarks.rows import Located
from lightthinker.evals.graders import Grade

Chooser = Callable[[int, int], list[int]]
"""Number of rows and seed -> indices of the rows in the default subset, ascending."""


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Where rows come from on the Hugging Face hub.

    Attributes:
        name: Dataset id.
        config: Configuration; None for a dataset with one per subset, or with one only.
        split: Split, or several as `train+test`.
        revision: Commit; None where we know of none, and the newest is read.
        gated: How to get at a dataset that is not open to everybody.
    """

    name: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    gated: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row, understood.

    Attributes:
        text: The question, options included, as a model reads it.
        reference: The right answer.
        judge: Grades what follows the reasoning.
        form: Form of the answer, a key of `prompts.INSTRUCTIONS`.
        allowed: The words that may answer, with form `words`.
    """

    text: str
    reference: str
    judge: Callable[[str], Grade]
    form: str
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark that exists as data.

    Attributes:
        name: Key for `load_benchmark`, and family of its problems.
        title: For people.
        hub: Where its rows are.
        licence: Of the data, as its source states it.
        read: Makes a `Question` of a row; the integer is the seed.
        version: Version of its prompts.
        subsets: Default subsets; empty if it has none.
        other_subsets: Subsets that can be asked for by name, `bbh/word_sorting`.
        subset_of: Says to which subset a row belongs.
        choose: Subset -> which of its rows are used; all by default.
        check: Called before anything is read; raises if grading cannot work.
    """

    name: str
    title: str
    hub: HubSource
    licence: str
    read: Callable[[Located, int], Question]
    version: int = 1
    subsets: tuple[str, ...] = ()
    other_subsets: tuple[str, ...] = ()
    subset_of: Callable[[Located], str] | None = None
    choose: Mapping[str, Chooser] = field(default_factory=dict)
    check: Callable[[], None] | None = None


def cell(located: Located, names: Sequence[str], what: str) -> object:
    """Return the value of the first of several columns that a row has, whatever its letter case.

    Raises:
        DataError: There is none, or it is empty; the message names file and row.
    """
    columns = {str(name).casefold(): value for name, value in located.row.items()}
    for name in names:
        value = columns.get(name.casefold())
        if value is not None and value != "":
            return value
    raise DataError(
        f"{located.where} has no {what}: none of the columns {', '.join(names)} "
        f"(it has {', '.join(map(str, located.row)) or 'none'})."
    )


def text_cell(located: Located, names: Sequence[str], what: str) -> str:
    """Return a column's text, without outer white space.

    Raises:
        DataError: There is no such column, or it is not text, or blank.
    """
    value = cell(located, names, what)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{located.where}: its {what} is {value!r:.80}, which is not text.")
    return value.strip()


def shuffled(num_items: int, seed: str) -> list[int]:
    """Return the indices in an order that depends on the seed alone, on every Python version.

    Args:
        num_items: How many.
        seed: Any text. `Random.random` is the one method whose values are promised to last.
    """
    rng = Random(seed)
    keys = [rng.random() for _ in range(num_items)]
    return sorted(range(num_items), key=keys.__getitem__)


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question with its options below, lettered from A."""
    lines = [f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options)]
    return "\n".join([question, *lines])
