"""The output of a batch: every row exactly once, whatever is killed when.

Results are appended to a journal, a line each, and forced to disk; one process holds its lock. On
the next start a line that was cut off is removed and rows already there are not asked again. Only
when all rows are there does the output file appear, by an atomic rename and in the input's order.
A run with other settings or input than the journal's is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lightthinker.errors import ConfigError, DataError

Result = Mapping[str, Any]


class Journal:
    """The results so far, as a context manager.

    Args:
        output: Where the finished output goes: `.jsonl` or `.parquet`.
        settings: What produced the results; must be the same when a run is resumed.

    Attributes:
        done: Ids of the rows that are on disk.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]):
        if output.suffix not in (".jsonl", ".parquet"):
            raise DataError(f"{output}: the output is a .jsonl or .parquet file.")
        self.output = output
        self.path = output.with_name(f"{output.name}.journal")
        self.settings = json.loads(json.dumps(settings))
        self.done: set[str] = set()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        if self.output.exists():
            raise ConfigError(f"{self.output} exists already; remove it or name another output.")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover(self._file)
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise ConfigError(f"{self.path} is in use by another batch.") from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._file is not None
        self._file.close()

    def _recover(self, file: IO[bytes]) -> None:
        file.seek(0)
        end = 0
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            content = json.loads(line)
            if number == 0:
                self._check(content)
            else:
                self.done.add(content["id"])
            end += len(line)
        file.truncate(end)
        if end == 0:
            self._append([{"settings": self.settings}])

    def _check(self, header: Mapping[str, Any]) -> None:
        saved = header.get("settings", {})
        different = [
            key for key in {*saved, *self.settings} if saved.get(key) != self.settings.get(key)
        ]
        if different:
            key = sorted(different)[0]
            raise ConfigError(
                f"{self.path} was begun with {key} = {saved.get(key)!r}, now it is "
                f"{self.settings.get(key)!r}. Use the same, or remove the journal to start over."
            )

    def write(self, results: Sequence[Result]) -> None:
        """Append results and force them to disk; a row that is there already is left out."""
        new = [r for r in {r["id"]: r for r in results}.values() if r["id"] not in self.done]
        self._append(new)
        self.done.update(r["id"] for r in new)

    def _append(self, rows: Iterable[Result]) -> None:
        assert self._file is not None
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        self._file.write(text.encode("utf-8", errors="replace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, order: Sequence[str]) -> int:
        """Write the output in this order of ids, put it in place, and remove the journal.

        Returns:
            How many rows hold an error in place of an answer.
        """
        assert self._file is not None
        assert self.done == set(order), "an output is written when every row is there"
        self._file.seek(0)
        lines = self._file.read().decode("utf-8").split("\n")[1:-1]
        by_id = {row["id"]: row for row in map(json.loads, lines)}
        rows = [by_id[name] for name in order]
        temporary = self.output.with_name(f"{self.output.name}.tmp")
        if self.output.suffix == ".parquet":
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(rows), temporary)
        else:
            text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            temporary.write_text(text, encoding="utf-8")
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(self.output)
        self.path.unlink()
        return sum(row.get("finish_reason") == "error" for row in rows)
