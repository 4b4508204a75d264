"""Examples -> rows of fixed length, several documents in a row, and rows -> batches.

Positions restart with each document; lifetimes keep documents apart, because nothing outlives the
document it is in. Padding sees only itself. Row arrays are int32 of shape [row_length].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightthinker.encode import IGNORE_INDEX, Example
from lightthinker.errors import DataError
from lightthinker.layout import LayoutRules

Row = dict[str, NDArray[np.int32]]

VARIANT_VECTORS = ("first", "last", "skip")


def uses_variants(rules: LayoutRules) -> bool:
    """Whether the rules need more than `expires`."""
    return rules.see_current or rules.bi_directional or rules.diagonal or rules.method == "anllm"


def pack_row(examples: Sequence[Example], row_length: int, *, pad_id: int, variants: bool) -> Row:
    """Lay documents one after the other in a row.

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
    return row


def pack(
    examples: Iterable[Example], row_length: int, *, num_open: int = 64
) -> Iterator[list[Example]]:
    """Group examples into rows, best fit over `num_open` rows kept open.

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
    batch |= {name: stack(name) for name in ("expires", *VARIANT_VECTORS) if name in rows[0]}
    return batch
