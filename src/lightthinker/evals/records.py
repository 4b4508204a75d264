"""One record per sample of an evaluation, kept as JSON lines.

Everything in a table or report is computed from these records. A file is never overwritten
unless asked, and is written whole or not at all. Knows no model and no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightthinker.engine.outputs import CompressionStats, ThoughtStats
from lightthinker.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One problem answered by one method.

    Attributes:
        problem_id: Same for all methods, so that samples pair up.
        family: Task family, or the benchmark's name.
        method: Method name.
        question: The last user message.
        reference: The expected answer.
        answer: What the model wrote after its reasoning.
        text: Everything the model wrote, as a user sees it.
        correct: The grader's verdict.
        chance: Accuracy of the best constant guess, if known.
        finish_reason: `stop` or `length`.
        thoughts: Finished thoughts in order.
        stats: What the sample cost.
        kv_curve: Turning points (sampled tokens, live KV tokens) of the sample's KV cache.
        time_s: Its share of the engine's time: every step is split evenly among the running
            requests.
    """

    problem_id: str
    family: str
    method: str
    question: str
    reference: str
    answer: str
    text: str
    correct: bool
    chance: float | None
    finish_reason: str | None
    thoughts: tuple[ThoughtStats, ...]
    stats: CompressionStats
    kv_curve: tuple[tuple[int, int], ...]
    time_s: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleRecord:
        """Build from parsed JSON."""
        return cls(
            **{
                **values,
                "thoughts": tuple(ThoughtStats(**thought) for thought in values["thoughts"]),
                "stats": CompressionStats(**values["stats"]),
                "kv_curve": tuple((x, y) for x, y in values["kv_curve"]),
            }
        )


def samples_path(results: Path) -> Path:
    """Return where the per-sample records of a results file live."""
    return results.with_suffix(".samples.jsonl")


def write_samples(records: Iterable[SampleRecord], path: Path, *, overwrite: bool = False) -> None:
    """Save the records as JSON lines.

    Raises:
        ConfigError: The file exists and `overwrite` is false.
    """
    lines = (json.dumps(dataclasses.asdict(record), ensure_ascii=False) for record in records)
    write_text(path, "".join(line + "\n" for line in lines), overwrite=overwrite)


def read_samples(path: Path) -> list[SampleRecord]:
    """Read a file of per-sample records.

    Raises:
        DataError: A line is not a record; the message names it.
    """
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records.append(SampleRecord.from_dict(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}, line {number}: not a sample record ({error})") from error
    return records


def check_absent(*paths: Path, overwrite: bool = False) -> None:
    """Refuse paths that exist, before hours of work.

    Raises:
        ConfigError: One exists and `overwrite` is false.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists. Choose another --output, or pass --overwrite.")


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a file whole or not at all, and never over an existing one unless asked."""
    check_absent(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def group_by(records: Iterable[SampleRecord], key: str) -> dict[str, list[SampleRecord]]:
    """Return the records by the value of an attribute, in order of first appearance."""
    groups: dict[str, list[SampleRecord]] = {}
    for record in records:
        groups.setdefault(getattr(record, key), []).append(record)
    return groups
