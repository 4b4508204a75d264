"""Raw rows of a data file or hub dataset, one at a time, numbered from 1.

A row that cannot be read comes as the `TraceError` that says why, so that one bad line costs one
line. Knows nothing of what rows mean. `pyarrow` and `datasets` are imported only where needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightthinker.data.trace import DropReason, TraceError
from lightthinker.errors import DataError

Row = Mapping[str, Any]
NumberedRows = Iterator[tuple[int, Row | TraceError]]

_HUB_NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Which part of a hub dataset to read, as `datasets.load_dataset` takes it.

    Attributes:
        subset: Configuration name, e.g. `main` of `openai/gsm8k`.
        split: Split name or slice, e.g. `train[:1000]`.
        revision: Branch, tag or commit.
        streaming: Read over the network row by row instead of downloading first.
    """

    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False


def open_rows(source: str | Path, hub: HubOptions | None) -> tuple[str, Callable[[], NumberedRows]]:
    """Find the reader for a file, a folder of a hub dataset, or a hub name.

    Args:
        source: Path to a .jsonl, .json or .parquet file, a local dataset folder, or a hub name.
        hub: Options for a folder or hub name; None means the defaults. An error with a file.

    Returns:
        The name under which rows are reported, and a function that starts reading.

    Raises:
        DataError: No such file, an unknown kind of file, or hub options for a file.
    """
    path = Path(source)
    if path.is_file():
        reader = _FILE_READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path} is not a file kind we read; allowed: {', '.join(_FILE_READERS)}."
            )
        if hub is not None:
            raise DataError(
                f"{path} is a file; subset, split, revision, streaming are for the hub."
            )
        return path.name, partial(reader, path)
    name = str(source)
    is_hub_name = isinstance(source, str) and _HUB_NAME.fullmatch(name)
    if path.suffix.lower() in _FILE_READERS or not (path.is_dir() or is_hub_name):
        raise DataError(f"There is no file {name}, and it is not the name of a hub dataset.")
    options = hub or HubOptions()
    return f"{name}[{options.split}]", partial(_hub_rows, name, options)


def _jsonl_rows(path: Path) -> NumberedRows:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield number, _parse_line(line)


def _parse_line(line: bytes) -> Row | TraceError:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        hint = " Save the file as UTF-8." if line.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        return TraceError(DropReason.INVALID_UTF8, f"byte {error.start} of the line.{hint}")
    if not text:
        return TraceError(DropReason.EMPTY_LINE, "there is nothing on this line.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return TraceError(DropReason.MALFORMED_JSON, f"{error}.")
    return _checked(value)


def _checked(value: object) -> Row | TraceError:
    if isinstance(value, dict):
        return value
    return TraceError(DropReason.NOT_AN_OBJECT, f"the row is a {type(value).__name__}.")


def _json_rows(path: Path) -> NumberedRows:
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _jsonl_rows(path)
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON array in UTF-8: {error}.") from error
    for number, value in enumerate(values, start=1):
        yield number, _checked(value)


def _parquet_rows(path: Path) -> NumberedRows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _needs_extra("Reading Parquet", "pyarrow") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}.") from error


def _hub_rows(name: str, options: HubOptions) -> NumberedRows:
    try:
        import datasets
    except ImportError as error:
        raise _needs_extra("Reading a hub dataset", "datasets") from error
    try:
        rows = datasets.load_dataset(
            name,
            options.subset,
            split=options.split,
            revision=options.revision,
            streaming=options.streaming,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"Cannot load dataset {name} with {options}: {error}") from error
    yield from enumerate(rows, start=1)


def _needs_extra(what: str, library: str) -> DataError:
    return DataError(f"{what} needs {library}: pip install 'lightthinker[train]'.")


_FILE_READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}
