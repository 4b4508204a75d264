"""The journal of a running evaluation: nothing finished is lost, nothing runs twice.

A folder beside the results holds `run.json`, the settings, and one append-only file of records per
shard. A record is one line, written by one call and synced before the next sample is taken, so a
killed process leaves at most one half-written line at the end; it is cut off and its sample runs
again. A run is resumed under the same settings or not at all. Each file is locked while a process
writes it (`flock`, which the kernel releases when the process dies). Knows no model.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lightthinker.errors import ConfigError, DataError
from lightthinker.evals.records import SampleRecord, parse_record, write_text

SETTINGS_FILE = "run.json"


def journal_path(results: Path) -> Path:
    """Return the folder that a results file's journal lives in until the results are written."""
    return results.with_suffix(".parts")


def open_journal(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Begin a run in a folder, or make sure that the run begun there is this one.

    Args:
        folder: The journal; made if it is not there.
        settings: Everything that decides the records, as JSON values.
        overwrite: Throw away a run with other settings.

    Raises:
        ConfigError: The folder holds a run with other settings; the message shows the difference.
    """
    path = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    if path.is_file():
        differences = settings_difference(_read_settings(path), wanted)
        if not differences:
            return
        if not overwrite:
            raise ConfigError(
                f"{folder} holds an unfinished run with other settings: {'; '.join(differences)}. "
                "Ask for the same settings to resume it, choose another --output, or pass "
                "--overwrite to start again."
            )
        check_idle(folder)
        shutil.rmtree(folder)
    write_text(path, json.dumps(wanted, indent=2) + "\n", overwrite=True)


def settings_difference(begun: Any, wanted: Any, name: str = "") -> list[str]:
    """Return what differs between two sets of settings, as `name: before -> after`."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys((*begun, *wanted))
        return [
            line
            for key in keys
            for line in settings_difference(
                begun.get(key), wanted.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    if begun == wanted:
        return []
    return [f"{name}: {json.dumps(begun)} -> {json.dumps(wanted)}"]


def read_journal(folder: Path) -> list[SampleRecord]:
    """Return all finished records of a journal, half-written last lines left out.

    Raises:
        DataError: A line in the middle is damaged, or a sample is there twice.
    """
    records: dict[tuple[str, str, int], SampleRecord] = {}
    for path in _parts(folder):
        for number, line in enumerate(_whole_lines(path), start=1):
            record = parse_record(line, f"{path}, line {number}")
            if record.key in records:
                raise DataError(
                    f"{path}, line {number}: sample {record.key} is in this run twice; two "
                    "processes have written it. Delete the folder and run again."
                )
            records[record.key] = record
    return list(records.values())


def check_idle(folder: Path, *, num_shards: int = 1) -> None:
    """Refuse to go on while another process still writes the journal.

    Args:
        folder: The journal.
        num_shards: How this process divides the work; other shards of the same division may be at
            work, they have samples of their own.

    Raises:
        ConfigError: A part is locked.
    """
    for path in _parts(folder):
        if num_shards > 1 and path.stem.endswith(f"-of-{num_shards}"):
            continue
        with path.open("rb") as stream:
            if not _lock(stream.fileno()):
                raise ConfigError(f"{path} is being written by another process; wait for it.")


class JournalWriter:
    """Appends records to one shard's file.

    Args:
        folder: The journal.
        shard: Which shard, from 0.
        num_shards: Of how many.

    Raises:
        ConfigError: Another process writes this file.
    """

    def __init__(self, folder: Path, *, shard: int = 0, num_shards: int = 1):
        self.path = part_path(folder, shard=shard, num_shards=num_shards)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if not _lock(self._file):
            os.close(self._file)
            raise ConfigError(f"{self.path} is being written by another process; wait for it.")
        whole = sum(len(line.encode()) for line in _whole_lines(self.path))
        if whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)
            os.fsync(self._file)

    def write(self, record: SampleRecord) -> None:
        """Append a record; it is on disk when this returns."""
        line = (record.to_json() + "\n").encode("utf-8", errors="backslashreplace")
        written = os.write(self._file, line)
        while written < len(line):
            written += os.write(self._file, line[written:])
        os.fsync(self._file)

    def note_device(self, name: str, unit: str) -> None:
        """Remember where this shard runs: the kind of device, and which one of its kind."""
        self.path.with_suffix(".device").write_text(f"{name}\n{unit}", encoding="utf-8")

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)


class JournalFollower:
    """Reads what other processes append to a journal, each record once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[Path, int] = {}

    def new_records(self) -> list[SampleRecord]:
        """Return the records finished since the last call."""
        records = []
        for path in _parts(self.folder):
            begin = self._read.get(path, 0)
            with path.open("rb") as stream:
                stream.seek(begin)
                whole, newline, _ = stream.read().rpartition(b"\n")
            self._read[path] = begin + len(whole) + len(newline)
            lines = whole.decode("utf-8").split("\n") if whole else []
            records += [parse_record(line, str(path)) for line in lines]
        return records


def device_names(folder: Path) -> list[str]:
    """Return the devices that the records of a journal come from, as `2 x NVIDIA H100`."""
    units: dict[str, set[str]] = {}
    for file in sorted(folder.glob("*.device")):
        name, _, unit = file.read_text("utf-8").partition("\n")
        units.setdefault(name, set()).add(unit)
    counts = {name: len(each) for name, each in units.items()}
    return [f"{count} x {name}" if count > 1 else name for name, count in counts.items()]


def part_path(folder: Path, *, shard: int, num_shards: int) -> Path:
    """Return a shard's file."""
    return folder / f"shard-{shard}-of-{num_shards}.jsonl"


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.jsonl"))


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that end in a newline; what a killed process left behind them is not one."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [line + "\n" for line in whole.decode("utf-8").split("\n")] if whole else []


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not the settings of a run ({error}).") from error
