"""Rows to train on: packed once from traces, or generated on the fly from the task families.

Both are map-style: row `i` is a function of the recipe and `i` alone, so that a resumed run sees
exactly what an uninterrupted one would, with any number of loading workers.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset

from lightthinker.data.packing import Row, pack_row, uses_variants
from lightthinker.encode import Encoder, Example
from lightthinker.errors import DataError
from lightthinker.tasks import FAMILIES, Problem
from lightthinker.train.encoding import Variant, draw_variant
from lightthinker.train.recipe import DataConfig, TaskSource

ROW_PATIENCE = 3
"""Problems that may fail to fit before a row is closed."""


class TaskRows(Dataset[Row]):
    """Rows of freshly generated problems.

    Args:
        encoder: Tokenizer and compression settings.
        source: Families and difficulty.
        num_rows: Length of the dataset; rows are distinct problems throughout.
        data: What chance decides for each example: full chain-of-thought, retention, recovery.
        teacher: Whether rows carry their full chain-of-thought teacher.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: TaskSource,
        *,
        data: DataConfig,
        num_rows: int,
        teacher: bool = False,
    ):
        self.encoder = encoder
        self.source = source
        self.data = data
        self.row_length = data.row_length
        self.num_rows = num_rows
        self.teacher = teacher
        families = source.families or dict.fromkeys(FAMILIES, 1.0)
        self._names, self._weights = list(families), list(families.values())
        self._variants = uses_variants(encoder.config) or data.recover_share > 0

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        rng = Random(f"train/{self.source.seed}/{index}")
        examples: list[Example] = []
        room, misses = self.row_length, 0
        while misses < ROW_PATIENCE:
            family = rng.choices(self._names, self._weights)[0]
            problem = FAMILIES[family].generate(rng, self._difficulty(rng, family))
            example = encode_problem(self.encoder, problem, draw_variant(rng, self.data))
            if len(example) <= room:
                examples.append(example)
                room -= len(example)
            else:
                misses += 1
        if not examples:
            raise DataError(
                f"No problem of difficulty {self.source.difficulty!r} fits a row of "
                f"{self.row_length} tokens; raise data.row_length."
            )
        return pack_row(
            examples,
            self.row_length,
            pad_id=self.encoder.tokenizer.pad_token_id or 0,
            variants=self._variants,
            teacher=self.teacher,
        )

    def _difficulty(self, rng: Random, family: str) -> str:
        given = self.source.difficulty
        if isinstance(given, str):
            return given
        known = {name: given[name] for name in FAMILIES[family].difficulties if name in given}
        return rng.choices(list(known), list(known.values()))[0]


def encode_problem(encoder: Encoder, problem: Problem, variant: Variant) -> Example:
    """Encode a task problem as one turn of chat."""
    messages = [{"role": "user", "content": problem.question}]
    thoughts = [t + encoder.config.separator for t in problem.thoughts]
    return encoder.encode(
        messages,
        thoughts,
        problem.answer,
        compress=variant.compress,
        retain_thoughts=variant.retain_thoughts,
        recover=variant.recover,
    )


class PackedRows(Dataset[Row]):
    """Rows prepared earlier: a safetensors file of arrays [num_rows, row_length]."""

    def __init__(self, file: Path):
        self._arrays = load_file(file)

    def __len__(self) -> int:
        return len(self._arrays["input_ids"])

    @property
    def num_positions(self) -> int:
        """Positions that the longest document takes up."""
        return int(self._arrays["position_ids"].max()) + 1

    def __getitem__(self, index: int) -> Row:
        return {name: array[index] for name, array in self._arrays.items()}


def save_rows(rows: list[Row], file: Path) -> None:
    """Write rows so that a crash leaves either the whole file or none."""
    partial = file.with_suffix(".partial")
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    save_file(arrays, partial)
    os.replace(partial, file)
