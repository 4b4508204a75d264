"""A model's own answers as training traces: those that were graded right, and nothing else.

    lightthinker eval MODEL --tasks gsm8k:r1=train.jsonl --methods full_cot --num-samples 4 \
        --temperature 0.7 --max-tokens 400 --samples --output runs/own/samples.json
    python scripts/traces_from_samples.py runs/own/samples.samples.jsonl --output own.jsonl

Reads the samples of an evaluation, of any checkpoint on any benchmark, or the journal (`*.parts`)
of one that was cut short, and writes rows of question, reasoning, answer and reference, as
`lightthinker prepare` reads them (format `columns`). Without reasoning tags the answer is the last
piece of the text that holds what the grader read, with all that follows it. The last line printed
is JSON: what was read, kept and dropped, and why. Knows no model.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lightthinker.data.tags import has_reasoning_tags, split_reasoning
from lightthinker.data.trace import Trace, TraceError
from lightthinker.errors import DataError, LightThinkerError
from lightthinker.evals.journal import read_journal
from lightthinker.evals.records import SampleRecord, read_samples, write_text
from lightthinker.segment import SegmentBy, SegmentConfig, segment

WITH_SYSTEM_PROMPT = ":chat@"
MARKS = ("boxed", "####", "answer is", "answer:")
"""What stands before an answer; a piece that has one is preferred to others that hold the same."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What becomes of an evaluation's samples.

    Attributes:
        rows: Traces, in the order of the samples.
        drops: Why a sample is no trace -> how many.
        num_problems: Problems that have a trace.
    """

    rows: list[dict[str, str]]
    drops: Counter[str]
    num_problems: int


def traces(
    records: Iterable[SampleRecord],
    *,
    pieces: SegmentConfig,
    per_problem: int | None = None,
    without: Sequence[str] = (),
) -> Kept:
    r"""Return the samples that can be learned from.

    Args:
        records: Of one evaluation.
        pieces: How the text is cut to find where the answer begins.
        per_problem: Most traces of one problem, the first ones; None: all.
        without: Drop texts that contain one of these.

    Raises:
        DataError: The evaluation used a system prompt, which samples do not hold.
    """
    rows, drops, found = [], Counter[str](), dict[str, set[str]]()
    for record in records:
        if WITH_SYSTEM_PROMPT in (record.prompt or ""):
            raise DataError(
                f"The samples were made with the prompt {record.prompt}, whose system prompt they "
                "do not hold. Sample with the style r1 or plain."
            )
        texts = found.setdefault(record.problem_id, set())
        reason = _why_not(record, texts, per_problem, without)
        try:
            row = None if reason else _row(record, pieces)
        except TraceError as error:
            reason = str(error.reason)
        if reason or row is None:
            drops[reason or "no reasoning before the answer, or no answer found"] += 1
            continue
        texts.add(record.text)
        rows.append(row)
    return Kept(rows=rows, drops=drops, num_problems=sum(bool(texts) for texts in found.values()))


def _why_not(
    record: SampleRecord, texts: set[str], per_problem: int | None, without: Sequence[str]
) -> str | None:
    if record.finish_reason != "stop":
        return "not finished"
    if not record.correct:
        return "wrong"
    if record.correct_strict is False:
        return "right, but not marked as the answer"
    if any(part in record.text for part in without):
        return "contains what was not wanted"
    if record.text in texts:
        return "the same text again"
    return "enough of this problem" if per_problem and len(texts) >= per_problem else None


def _row(record: SampleRecord, config: SegmentConfig) -> dict[str, str] | None:
    if has_reasoning_tags(record.text):
        reasoning, answer = split_reasoning(record.text)
    else:
        pieces = segment(record.text.strip(), config)
        wanted = record.extracted_strict or record.reference
        holding = [i for i, piece in enumerate(pieces) if _holds(piece, wanted)]
        marked = [i for i in holding if any(mark in pieces[i].lower() for mark in MARKS)]
        holding = marked or holding
        if not holding or not holding[-1]:
            return None
        reasoning = "".join(pieces[: holding[-1]]).strip()
        answer = "".join(pieces[holding[-1] :]).strip()
    trace = Trace(
        question=record.question, reasoning=reasoning, answer=answer, reference=record.reference
    )
    return {
        "question": trace.question, "reasoning": trace.reasoning, "response": trace.answer,
        "reference": record.reference,
    }  # fmt: skip


def _holds(piece: str, wanted: str) -> bool:
    """Whether a piece has the answer by itself, not inside another number or word."""
    plain = _plain(piece)
    return re.search(rf"(?<![\w.]){re.escape(_plain(wanted))}(?![\w])(?!\.\d)", plain) is not None


def _plain(text: str) -> str:
    """Numbers as graders read them: no thousands' commas, a plain minus."""
    return re.sub(r"(?<=\d)(\{,\}|,)(?=\d{3})", "", text).replace("−", "-")


def read_records(path: Path) -> list[SampleRecord]:
    """Read a samples file, or the journal of an evaluation that was not finished.

    Raises:
        DataError: It is neither, or holds no samples.
    """
    try:
        records = read_journal(path) if path.is_dir() else read_samples(path)
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}; run the evaluation with --samples.") from error
    if not records:
        raise DataError(f"{path} holds no samples.")
    return sorted(records, key=lambda record: record.sample)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, help="*.samples.jsonl, or a journal, *.parts")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument(
        "--by",
        choices=get_args(SegmentBy)[:3],
        default="paragraph",
        help="pieces among which the answer is looked for; by default paragraphs",
    )
    parser.add_argument("--per-problem", type=int, help="most traces of one problem")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="TEXT",
        help="drop samples that contain this; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    options = parser.parse_args(arguments)
    try:
        records = read_records(options.samples)
        kept = traces(
            records, pieces=SegmentConfig(by=options.by), per_problem=options.per_problem,
            without=options.without,
        )  # fmt: skip
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept.rows)
        write_text(options.output, "".join(lines), overwrite=options.overwrite)
    except (LightThinkerError, OSError) as error:
        sys.exit(f"error: {error}")
    summary: dict[str, Any] = {
        "output": str(options.output),
        "samples": len(records),
        "problems": len({record.problem_id for record in records}),
        "traces": len(kept.rows),
        "problems_with_traces": kept.num_problems,
        "dropped": dict(kept.drops.most_common()),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
