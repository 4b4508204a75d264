"""What a run must have in common with the one it goes on from, and ranks with each other.

A checkpoint counts only with its `COMPLETE_FILE`, which is written last: one that a killed run left
half-written is never picked. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lightthinker.data.packing import Row
from lightthinker.errors import ConfigError, DataError
from lightthinker.train.recipe import Recipe, load_recipe
from lightthinker.train.trainer import COMPLETE_FILE

SAMPLED_ROWS = 16
"""Rows whose content enters the data's hash; enough to tell data sets apart, quick on any size."""

FREE_TO_CHANGE = re.compile(
    r"output_dir|data\.num_proc|distributed\..*|evaluate(\..*)?|save\..*|lora\.save_adapter"
    r"|model\.(compile|architecture.*)"
    r"|trainer\.(per_device_train_batch_size|gradient_accumulation_steps|gradient_checkpointing.*"
    r"|save_.*|logging_.*|report_to|disable_tqdm|dataloader_.*|use_cpu|bf16|tf32|run_name)"
)
"""Settings that change speed, memory or what is written, not what is learned. The rows of an
optimizer step are compared as their product."""


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit() and (path / COMPLETE_FILE).is_file()
    ]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def check_resumable(
    checkpoint: Path, before: Path, recipe: Recipe, manifest: Mapping[str, Any]
) -> None:
    """Raise ConfigError, with the difference, unless a run can go on from a checkpoint.

    Args:
        checkpoint: A whole checkpoint.
        before: The recipe file that the interrupted run wrote.
        recipe: The recipe now.
        manifest: What the checkpoint must have in common with the run (see `manifest_of`).
    """
    if before.is_file():
        difference = recipe_difference(load_recipe(before), recipe)
        if difference:
            lines = "\n".join(f"  {line}" for line in difference)
            raise ConfigError(
                f"{checkpoint} was made with another recipe; resuming would not continue it. Put "
                f"these settings back, or start a new run in another output_dir:\n{lines}"
            )
    saved = json.loads((checkpoint / COMPLETE_FILE).read_text(encoding="utf-8"))
    for key, meaning in (
        ("rows_per_step", "rows in an optimizer step; set distributed.global_batch_size"),
        ("data", "hash of the training rows: the data changed since the run began"),
        ("format", "checkpoint format; start with --num-gpus (1 is allowed) for fsdp2, without "
         "for a plain checkpoint"),
        ("ranks", "GPUs that wrote it; DeepSpeed goes on with as many only, fsdp2 with any number"),
    ):  # fmt: skip
        if saved.get(key) != manifest[key]:
            raise ConfigError(
                f"{checkpoint} cannot be resumed: {key} was {saved.get(key)!r} and is "
                f"{manifest[key]!r} ({meaning})."
            )


def recipe_difference(before: Recipe, now: Recipe) -> list[str]:
    """Return the settings that decide what is learned and differ, as `name: before -> now`."""
    old, new = dict(_leaves(before.to_dict())), dict(_leaves(now.to_dict()))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not FREE_TO_CHANGE.fullmatch(name)
    ]


def rows_hash(rows: Any) -> str:
    """Return a hash of a data set's length and of rows spread over it."""
    digest = hashlib.sha256(str(len(rows)).encode())
    step = max(1, len(rows) // SAMPLED_ROWS)
    for index in range(0, len(rows), step)[:SAMPLED_ROWS]:
        row: Row = rows[index]
        for name in sorted(row):
            digest.update(name.encode())
            digest.update(row[name].tobytes())
    return digest.hexdigest()[:16]


def check_ranks_agree(digest: str) -> None:
    """Raise DataError on every rank unless all have the same data; nothing to do for one rank."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    digests: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(digests, digest)
    if len(set(digests)) > 1:
        listed = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(digests))
        raise DataError(
            f"The ranks disagree on the training data ({listed}). Give all hosts the same files, "
            "packages and recipe; put output_dir on a file system that they share."
        )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
