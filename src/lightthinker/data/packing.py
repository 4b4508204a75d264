"""Examples -> rows of fixed length, several documents in a row, and rows -> batches.

Positions restart with each document; lifetimes keep documents apart, because nothing outlives the
document it is in. Padding sees only itself. Row arrays are int32 of shape [row_length]; `counts`
says what is in the row (`ROW_COUNTS`). A row may carry its teacher: the same documents as full
chain-of-thought, and for each label the teacher's query that predicts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightthinker.encode import IGNORE_INDEX, Example
from lightthinker.errors import DataError
from lightthinker.layout import LayoutRules, Role, TokenLayout

Row = dict[str, NDArray[Any]]

VARIANT_VECTORS = ("first", "last", "skip")
TEACHER_VECTORS = (
    "teacher_input_ids",
    "teacher_position_ids",
    "teacher_expires",
    "teacher_query",
)
INSERTED_ROLES = (Role.GIST, Role.CONTINUE, Role.RECOVER)
ROW_COUNTS = ("tokens", "inserted", "thoughts", "documents", "attended")
"""What `counts` of a row counts: tokens without padding; of these gist, continue and recover
tokens; compressed thoughts; documents; pairs of query and visible key."""


def uses_variants(rules: LayoutRules) -> bool:
    """Whether the rules need more than `expires`; reconstruction does."""
    return rules.see_current or rules.bi_directional or rules.diagonal or rules.method == "anllm"


def pack_row(
    examples: Sequence[Example],
    row_length: int,
    *,
    pad_id: int,
    variants: bool,
    teacher: bool = False,
) -> Row:
    """Lay documents one after the other in a row.

    Args:
        examples: The documents.
        row_length: Tokens in a row.
        pad_id: Token id of padding.
        variants: Whether to write `first`, `last` and `skip` too.
        teacher: Whether to write the same documents as full chain-of-thought too.

    Raises:
        DataError: They do not fit.
    """
    total = sum(len(e) for e in examples)
    if total > row_length:
        raise DataError(f"{total} tokens do not fit a row of {row_length}; raise data.row_length.")
    index = np.arange(row_length, dtype=np.int32)
    row: Row = {
        "input_ids": np.full(row_length, pad_id, dtype=np.int32),
        "labels": np.full(row_length, IGNORE_INDEX, dtype=np.int32),
        "position_ids": np.zeros(row_length, dtype=np.int32),
        "expires": index + 1,
    }
    if variants:
        row |= {"first": index.copy(), "last": index.copy(), "skip": index.copy()}
    begin = 0
    for example in examples:
        end = begin + len(example)
        layout = example.layout
        row["input_ids"][begin:end] = example.input_ids
        row["labels"][begin:end] = example.labels
        # The first token of a document is predicted by nothing: its left neighbour belongs to
        # another one.
        row["labels"][begin] = IGNORE_INDEX
        row["position_ids"][begin:end] = layout.position
        row["expires"][begin:end] = np.minimum(layout.expires, len(example)) + begin
        if variants:
            for name in VARIANT_VECTORS:
                row[name][begin:end] = getattr(layout, name) + begin
        begin = end
    row["counts"] = sum((_counts(e.layout) for e in examples), np.zeros(5, dtype=np.int64))
    return row | _teacher(examples, row_length, pad_id) if teacher else row


def _counts(layout: TokenLayout) -> NDArray[np.int64]:
    inserted = np.isin(layout.role, INSERTED_ROLES)
    gists = (layout.role == Role.GIST) & (layout.thought >= 0)
    thoughts = len(np.unique(layout.thought[gists]))
    return np.array(
        [len(layout), inserted.sum(), thoughts, 1, layout.attended_pairs()], dtype=np.int64
    )


def _teacher(examples: Sequence[Example], row_length: int, pad_id: int) -> Row:
    index = np.arange(row_length, dtype=np.int32)
    ids = np.full(row_length, pad_id, dtype=np.int32)
    positions, expires = np.zeros(row_length, dtype=np.int32), index + 1
    query = np.full(row_length, -1, dtype=np.int32)
    begin = teacher_begin = 0
    for example in examples:
        visible = np.flatnonzero(~np.isin(example.layout.role, INSERTED_ROLES))
        teacher_end = teacher_begin + len(visible)
        ids[teacher_begin:teacher_end] = example.input_ids[visible]
        positions[teacher_begin:teacher_end] = np.arange(len(visible))
        expires[teacher_begin:teacher_end] = teacher_end
        query[begin + visible] = np.arange(teacher_begin, teacher_end) - 1
        query[begin] = -1
        begin, teacher_begin = begin + len(example), teacher_end
    return dict(zip(TEACHER_VECTORS, (ids, positions, expires, query), strict=True))


def pack(
    examples: Iterable[Example], row_length: int, *, num_open: int = 64
) -> Iterator[list[Example]]:
    """Group examples into rows, best fit over `num_open` rows kept open.

    Args:
        examples: Each no longer than a row.
        row_length: Tokens in a row.
        num_open: Rows that wait for a fitting example; 0 gives every example a row of its own.

    Yields:
        The examples of one row; every example comes out exactly once.

    Raises:
        DataError: An example is longer than a row.
    """
    bins: list[list[Example]] = []
    room: list[int] = []
    for example in examples:
        if len(example) > row_length:
            raise DataError(
                f"An example has {len(example)} tokens; data.row_length is {row_length}."
            )
        fitting = [i for i, free in enumerate(room) if free >= len(example)]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            bins[best].append(example)
            room[best] -= len(example)
        else:
            bins.append([example])
            room.append(row_length - len(example))
        if len(bins) > num_open:
            fullest = min(range(len(bins)), key=room.__getitem__)
            room.pop(fullest)
            yield bins.pop(fullest)
    yield from bins


def collate(rows: Sequence[Row]) -> dict[str, Any]:
    """Stack rows into the batch that `LightThinkerTrainer` takes.

    Int64 ids, int32 lifetimes, attention mask of ones.
    """
    import torch

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([row[name] for row in rows]))

    batch = {name: stack(name).long() for name in ("input_ids", "labels", "position_ids")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    others = ("expires", *VARIANT_VECTORS, "counts", *TEACHER_VECTORS)
    batch |= {name: stack(name) for name in others if name in rows[0]}
    for name in ("teacher_input_ids", "teacher_position_ids", "teacher_query"):
        if name in batch:
            batch[name] = batch[name].long()
    return batch
