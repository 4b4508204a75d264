"""Rows of a benchmark, from the hub or from a local file, folder or zip archive.

Formats: JSON lines, JSON arrays, Parquet, CSV with or without a header, BIG-Bench-Hard's
`{"examples": [...]}`, and `question||solution` lines. A row that cannot be read is an error that
names file and row: a benchmark with holes is another benchmark. Knows nothing of what rows mean.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightthinker.data.rows import HubOptions, open_rows
from lightthinker.data.trace import DropReason, TraceError
from lightthinker.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Located:
    """A row and where it stands.

    Attributes:
        row: Column -> value; the columns of a CSV without header are named `0`, `1`, ...
        where: File or dataset, and row number counted from 1, for messages.
        group: Name of the file it stands in, without its ending; the subset's name on the hub.
    """

    row: Row
    where: str
    group: str


def read_hub(name: str, *, subset: str | None, split: str, revision: str | None) -> list[Located]:
    """Read a hub dataset.

    Raises:
        DataError: It cannot be loaded.
    """
    options = HubOptions(subset=subset, split=split, revision=revision)
    return list(_rows(name, options, group=subset or ""))


def read_local(path: Path) -> list[Located]:
    """Read a file, or the data files of a folder or zip archive.

    Of a folder, the files directly in it; if there are none (or in an archive), those of its parts
    named `test`: MMLU comes as dev, val and test.

    Raises:
        DataError: It does not exist, is of an unknown kind, or cannot be read.
    """
    if path.is_dir():
        files = _data_files(path.iterdir()) or _data_files(path.rglob("test/*"))
        if not files:
            raise DataError(f"{path} holds no file of a kind we read: {', '.join(_TABLES)}.")
        return [located for file in files for located in read_local(file)]
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    if path.suffix.lower() == ".zip":
        return _zip_rows(path)
    if path.suffix.lower() in (".jsonl", ".ndjson", ".parquet"):
        return list(_rows(path, None, group=path.stem))
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(f"{path} is not a file kind we read: {', '.join((*_ENDINGS, '.zip'))}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}.") from error
    return _text_rows(text, path.name)


_TABLES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet")
_ENDINGS = (*_TABLES, ".txt")


def _data_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in _TABLES)


def _rows(source: str | Path, hub: HubOptions | None, *, group: str) -> Iterator[Located]:
    name, read = open_rows(source, hub)
    for number, row in read():
        where = f"{name}, row {number}"
        if isinstance(row, TraceError):
            if row.reason is DropReason.EMPTY_LINE:
                continue
            raise DataError(f"{where}: {row}") from row
        yield Located(row=row, where=where, group=group)


def _zip_rows(path: Path) -> list[Located]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [Path(name) for name in sorted(archive.namelist())]
            readable = [p for p in members if p.suffix.lower() in (".csv", ".json")]
            files = [p for p in readable if p.parent.name == "test"] or readable
            return [
                located
                for file in files
                for located in _text_rows(archive.read(str(file)).decode("utf-8-sig"), file.name)
            ]
    except (zipfile.BadZipFile, RuntimeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _text_rows(text: str, name: str) -> list[Located]:
    suffix = Path(name).suffix.lower()
    read = {".csv": _csv_rows, ".json": _json_rows, ".txt": _bar_rows}[suffix]
    group = Path(name).stem
    return [
        Located(row=row, where=f"{name}, row {number}", group=group)
        for number, row in read(text, name)
    ]


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**24)
    lines = [cells for cells in csv.reader(io.StringIO(text)) if cells]
    # MMLU's files have no header: their last column is a letter from the first row on.
    has_header = bool(lines) and lines[0][-1].strip() not in set("ABCD")
    names = lines[0] if has_header else [str(i) for i in range(len(lines[0]) if lines else 0)]
    for number, cells in enumerate(lines[1:] if has_header else lines, start=1):
        if len(cells) != len(names):
            raise DataError(
                f"{name}, row {number}: {len(cells)} columns where there should be {len(names)}."
            )
        yield number, dict(zip(names, cells, strict=True))


def _json_rows(text: str, name: str) -> Iterator[tuple[int, Row]]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}.") from error
    rows = parsed.get("examples") if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list):
        raise DataError(f"{name} holds neither an array of rows nor one under 'examples'.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{name}, row {number}: a {type(row).__name__}, not an object.")
        yield number, row


def _bar_rows(text: str, name: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.splitlines(), start=1):
        question, mark, answer = line.partition("||")
        if line.strip():
            if not mark:
                raise DataError(f"{name}, row {number}: no '||' between question and answer.")
            yield number, {"question": question, "answer": answer}
