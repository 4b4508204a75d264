"""Rows of a batch: read from JSONL or Parquet, each with an id that names it for good.

An id is the row's own `id`, or its number. Nothing here knows models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightthinker.errors import DataError

TEXT_COLUMNS = ("prompt", "question", "problem")


@dataclass(frozen=True)
class BatchRow:
    """One conversation to answer.

    Attributes:
        id: Names the row in input and output.
        messages: The conversation.
    """

    id: str
    messages: tuple[dict[str, str], ...]


def read_rows(path: Path) -> list[BatchRow]:
    """Return the rows of a `.jsonl` or `.parquet` file.

    Raises:
        DataError: The file is of no known kind, a row has no text, or two rows share an id.
    """
    if path.suffix == ".parquet":
        raw = _parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        raw = _jsonl(path)
    else:
        raise DataError(f"{path}: a batch is a .jsonl or .parquet file.")
    rows = [_row(path, number, fields) for number, fields in raw]
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"{path}: two rows have the id {row.id!r}; ids must be unique.")
        seen.add(row.id)
    return rows


def _jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number + 1}: no JSON ({error}).") from error
            if not isinstance(fields, dict):
                raise DataError(f"{path}, line {number + 1}: expected an object.")
            yield number, fields


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; install it with `pip install pyarrow`."
        ) from error
    yield from enumerate(parquet.read_table(path).to_pylist())


def _row(path: Path, number: int, fields: Mapping[str, Any]) -> BatchRow:
    name = str(fields["id"]) if fields.get("id") is not None else str(number)
    if isinstance(messages := fields.get("messages"), list) and messages:
        if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
            raise DataError(f"{path}, row {name}: each message needs `role` and text `content`.")
        return BatchRow(name, tuple({k: str(m[k]) for k in ("role", "content")} for m in messages))
    for column in TEXT_COLUMNS:
        if isinstance(text := fields.get(column), str) and text:
            return BatchRow(name, ({"role": "user", "content": text},))
    raise DataError(f"{path}, row {name}: expected `messages` or {', '.join(TEXT_COLUMNS)}.")
