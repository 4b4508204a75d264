"""What to ask: random prompts of given lengths, a file of prompts, or our task families.

A seed gives the same requests everywhere. Nothing here sends anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from lightthinker.errors import ConfigError, DataError, suggestion
from lightthinker.tasks import DIFFICULTIES, FAMILIES
from lightthinker.tasks import stream as stream_problems

DATASETS = ("random", "jsonl", "tasks")
WORDS = (
    "river", "stone", "window", "paper", "garden", "silver", "morning", "bridge", "winter",
    "candle", "forest", "letter", "market", "ocean", "pencil", "rabbit", "shadow", "thunder",
)  # fmt: skip
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """One request to send.

    Attributes:
        messages: The conversation; its last message is the prompt of `/v1/completions`.
        max_tokens: Most tokens to ask for.
        exact: Ask for exactly that many (`ignore_eos`).
    """

    messages: tuple[Message, ...]
    max_tokens: int
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Which requests.

    Attributes:
        dataset: One of `DATASETS`.
        num_prompts: How many requests; a file's prompts repeat when it has fewer.
        seed: Draws prompts and lengths.
        input_len: Random prompts: tokens with a tokenizer, words without.
        output_len: Tokens per answer: exact for random prompts, at most for the others.
        range_ratio: Random lengths are uniform in `len * (1 ± ratio)`.
        path: File for `jsonl`: `prompt` or `messages` per line, `output_len` if it likes.
        family: A task family, or `tasks` for all of them.
        difficulty: Of the task problems.
    """

    dataset: str = "random"
    num_prompts: int = 1000
    seed: int = 0
    input_len: int = 256
    output_len: int = 256
    range_ratio: float = 0.0
    path: Path | None = None
    family: str = "tasks"
    difficulty: str = "standard"

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ConfigError(
                f"Unknown dataset {self.dataset!r}; there are {', '.join(DATASETS)}."
                f"{suggestion(self.dataset, DATASETS)}"
            )
        for name in ("num_prompts", "input_len", "output_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(f"range_ratio is {self.range_ratio}; it must be in [0, 1).")
        if (self.path is not None) != (self.dataset == "jsonl"):
            raise ConfigError("The dataset jsonl, and only it, takes a file of prompts.")
        if self.family not in ("tasks", *FAMILIES):
            raise ConfigError(
                f"Unknown family {self.family!r}; there are tasks, {', '.join(FAMILIES)}."
                f"{suggestion(self.family, FAMILIES)}"
            )
        if self.difficulty not in DIFFICULTIES:
            raise ConfigError(
                f"Unknown difficulty {self.difficulty!r}; there are {', '.join(DIFFICULTIES)}."
            )

    def requests(self, count: Callable[[str], int] | None = None) -> list[BenchRequest]:
        """Return the requests.

        Args:
            count: Counts the tokens of a text; random prompts without it are counted in words.

        Raises:
            DataError: The file cannot be used.
        """
        kinds = {"random": lambda: self._random(count), "jsonl": self._file, "tasks": self._tasks}
        return list(islice(kinds[self.dataset](), self.num_prompts))

    def _random(self, count: Callable[[str], int] | None) -> Iterator[BenchRequest]:
        rng = Random(f"random/{self.seed}")
        while True:
            text = random_text(rng, self._length(rng, self.input_len), count)
            yield BenchRequest(
                messages=_ask(text), max_tokens=self._length(rng, self.output_len), exact=True
            )

    def _length(self, rng: Random, middle: int) -> int:
        spread = round(middle * self.range_ratio)
        return max(1, rng.randint(middle - spread, middle + spread))

    def _file(self) -> Iterator[BenchRequest]:
        assert self.path is not None
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8: {error}") from error
        rows = [self._row(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise DataError(f"{self.path} holds no prompts.")
        return cycle(rows)

    def _row(self, number: int, line: str) -> BenchRequest:
        try:
            row: dict[str, Any] = json.loads(line)
            messages = row.get("messages") or _ask(row["prompt"])
            limit = int(row.get("output_len") or self.output_len)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{self.path}, line {number}: expected an object with `prompt` or `messages`."
            ) from error
        return BenchRequest(messages=tuple(messages), max_tokens=limit)

    def _tasks(self) -> Iterator[BenchRequest]:
        families = None if self.family == "tasks" else [self.family]
        problems = stream_problems(families, seed=self.seed, difficulty=self.difficulty)
        for problem in problems:
            yield BenchRequest(messages=_ask(problem.question), max_tokens=self.output_len)


def _ask(prompt: str) -> tuple[Message, ...]:
    if not isinstance(prompt, str):
        raise TypeError
    return ({"role": "user", "content": prompt},)


def random_text(rng: Random, length: int, count: Callable[[str], int] | None) -> str:
    """Return words worth `length` tokens, or `length` words if nothing counts tokens.

    Tokens are counted whole, so a text may fall short of `length` by less than one word.
    """
    words = [rng.choice(WORDS) for _ in range(length)]
    if count is None:
        return " ".join(words)
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= length:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
