"""One record per sample of an evaluation, kept as JSON lines.

Everything in a table or report is computed from these records: the verdicts, the costs, and the raw
trace (the role of every token that was written) from which the costs can be counted again
(`lightthinker.testing.recount`). A file is never overwritten unless asked, and is written whole or
not at all. Knows no model and no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lightthinker.engine.outputs import CompressionStats, ThoughtStats
from lightthinker.errors import ConfigError, DataError
from lightthinker.layout import Role

RoleRuns = tuple[tuple[str, int], ...]
"""Roles of consecutive tokens, run-length coded: `(("prompt", 40), ("thought", 12), ...)`."""


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One problem answered once by one method.

    Attributes:
        problem_id: Same for all methods, so that samples pair up.
        family: Task family, or the benchmark's name.
        subset: Subject or task within the benchmark, if it has any.
        prompt: Which prompt and version, e.g. `gsm8k:r1@1`, if it has one.
        method: Method as it was asked for.
        sample: Which of the problem's samples, from 0.
        budget: Tokens that an eviction method may keep; None where nothing is evicted.
        question: The last user message.
        reference: The expected answer.
        answer: What the model wrote after its reasoning.
        text: Everything the model wrote, as a user sees it.
        correct: The benchmark's own verdict; the headline.
        correct_strict: Verdict on an answer that was marked as one, if the grader tells them apart.
        correct_flexible: Verdict on whatever reads most like an answer, likewise.
        extracted_strict: The marked answer as the grader read it, if it found one.
        extracted_flexible: The answer it read most leniently.
        chance: Accuracy of the best constant guess, if known.
        finish_reason: `stop` or `length`.
        thoughts: Finished thoughts in order.
        stats: What the sample cost.
        num_generated_tokens: Tokens written after the prompt, gists and continue tokens included.
        num_visible_tokens: Of these, thought, trigger and answer tokens: those Dep charges for.
        kv_bytes_area: Bytes of live KV cache summed over the visible tokens: byte-steps.
        roles: What every token was for, in the order in which they were written.
        kv_curve: Turning points (sampled tokens, live KV tokens) of the sample's KV cache.
        time_s: Its share of the engine's time: every step is split evenly among the running
            requests.
    """

    problem_id: str
    family: str
    subset: str | None = None
    prompt: str | None = None
    method: str
    sample: int = 0
    budget: int | None = None
    question: str
    reference: str
    answer: str
    text: str
    correct: bool
    correct_strict: bool | None = None
    correct_flexible: bool | None = None
    extracted_strict: str | None = None
    extracted_flexible: str | None = None
    chance: float | None
    finish_reason: str | None
    thoughts: tuple[ThoughtStats, ...]
    stats: CompressionStats
    num_generated_tokens: int
    num_visible_tokens: int
    kv_bytes_area: float
    roles: RoleRuns
    kv_curve: tuple[tuple[int, int], ...]
    time_s: float

    @property
    def key(self) -> tuple[str, str, int]:
        """Method, problem and sample: unique in a run."""
        return self.method, self.problem_id, self.sample

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        # `dataclasses.asdict` would copy the curve, point by point.
        nested = {"thoughts": [vars(t) for t in self.thoughts], "stats": vars(self.stats)}
        return json.dumps({**vars(self), **nested}, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleRecord:
        """Build from parsed JSON."""
        return cls(
            **{
                **values,
                "thoughts": tuple(ThoughtStats(**thought) for thought in values["thoughts"]),
                "stats": CompressionStats(**values["stats"]),
                "roles": tuple((role, count) for role, count in values["roles"]),
                "kv_curve": tuple(map(tuple, values["kv_curve"])),
            }
        )


def samples_path(results: Path) -> Path:
    """Return where the per-sample records of a results file live."""
    return results.with_suffix(".samples.jsonl")


def role_runs(roles: Iterable[int]) -> RoleRuns:
    """Return `Role` values run-length coded, by name."""
    return tuple((Role(role).name.lower(), len(list(run))) for role, run in groupby(roles))


def write_samples(records: Iterable[SampleRecord], path: Path, *, overwrite: bool = False) -> None:
    """Save the records as JSON lines.

    Raises:
        ConfigError: The file exists and `overwrite` is false.
    """
    text = "".join(record.to_json() + "\n" for record in records)
    write_text(path, text, overwrite=overwrite)


def read_samples(path: Path) -> list[SampleRecord]:
    """Read a file of per-sample records.

    Raises:
        DataError: A line is not a record; the message names it, and says if it is half-written.
    """
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                raise DataError(
                    f"{path}, line {number}: the file ends in the middle of a record, so its "
                    "writing was cut off. Run the evaluation again, or delete this line."
                )
            records.append(parse_record(line, f"{path}, line {number}"))
    return records


def parse_record(line: str, where: str) -> SampleRecord:
    """Read one line.

    Args:
        line: JSON.
        where: File and line, for the message.

    Raises:
        DataError: It is not a record.
    """
    try:
        return SampleRecord.from_dict(json.loads(line))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: not a sample record ({error})") from error


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
