"""`prepare(recipe)`.

Traces -> encoded, packed rows, and a summary of what was read, dropped and made.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightthinker.data.packing import pack, pack_row, uses_variants
from lightthinker.data.rows import HubOptions
from lightthinker.data.sources import read_traces
from lightthinker.data.trace import Trace
from lightthinker.encode import Encoder, Example
from lightthinker.errors import ConfigError, DataError
from lightthinker.layout import Role
from lightthinker.segment import segment
from lightthinker.tokens import resolve_tokens
from lightthinker.train.checkpoint import load_tokenizer
from lightthinker.train.datasets import PackedRows, save_rows
from lightthinker.train.recipe import Recipe

ROWS_FILE = "rows.safetensors"
SUMMARY_FILE = "summary.json"


@dataclass
class Summary:
    """What became of the traces; token counts are over kept examples."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    num_examples: int = 0
    num_full_cot: int = 0
    num_rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    too_long: list[str] = field(default_factory=list)
    thought_lengths: list[int] = field(default_factory=list)
    full_peaks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    num_tokens: int = 0
    sample: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for summary.json."""
        lengths = self.thought_lengths
        return {
            "sources": self.sources,
            "num_examples": self.num_examples,
            "num_full_cot": self.num_full_cot,
            "num_rows": self.num_rows,
            "num_tokens": self.num_tokens,
            "dropped": dict(self.dropped),
            "thought_tokens": _quantiles(lengths),
            "thoughts": len(lengths),
            "peak_tokens": _quantiles(self.peaks),
            "full_cot_tokens": _quantiles(self.full_peaks),
            "peak_ratio": sum(self.peaks) / sum(self.full_peaks) if self.peaks else None,
        }


def prepare(recipe: Recipe, *, strict: bool = False, overwrite: bool = False) -> Path:
    """Encode and pack the recipe's traces, print a summary, and save rows for `train`.

    Args:
        recipe: A recipe with `data.sources`.
        strict: Stop at the first unusable row instead of counting it.
        overwrite: Replace rows that were prepared before.

    Returns:
        The folder with the rows.

    Raises:
        ConfigError: The recipe generates its data, or rows are there already.
        DataError: No trace is left, or `strict` and one is unusable.
    """
    if not recipe.data.sources:
        raise ConfigError("data.tasks are generated while training; there is nothing to prepare.")
    folder = Path(recipe.output_dir) / "prepared"
    if (folder / ROWS_FILE).exists() and not overwrite:
        raise ConfigError(f"{folder / ROWS_FILE} exists; prepare with --overwrite to replace it.")
    tokenizer = load_tokenizer(recipe.model)
    tokenizer.add_tokens(
        [t for t in recipe.compression.special_tokens if t not in tokenizer.get_vocab()], True
    )
    encoder = Encoder(tokenizer, resolve_tokens(tokenizer, recipe.compression))
    summary = Summary()
    write_rows(recipe, encoder, folder, summary, strict=strict)
    print_summary(summary, Console())
    return folder


def prepared_rows(recipe: Recipe, encoder: Encoder, *, resume: bool = False) -> PackedRows:
    """Return the rows that `prepare` made for exactly this recipe, making them now if need be.

    Raises:
        ConfigError: A run is resumed, and data or settings have changed since it began.
    """
    folder = Path(recipe.output_dir) / "prepared"
    if not (folder / ROWS_FILE).exists() or _read_fingerprint(folder) != fingerprint(recipe):
        if resume:
            raise ConfigError(
                f"The data of {folder} or the settings it was prepared with have changed since "
                "this run began; resuming would not continue it. Start a new run."
            )
        summary = Summary()
        write_rows(recipe, encoder, folder, summary, strict=False)
        print_summary(summary, Console())
    return PackedRows(folder / ROWS_FILE)


def write_rows(
    recipe: Recipe, encoder: Encoder, folder: Path, summary: Summary, *, strict: bool
) -> None:
    """Encode, pack and save; fills `summary`."""
    data = recipe.data
    variants = uses_variants(encoder.config)
    pad_id = encoder.tokenizer.pad_token_id
    pad_id = encoder.tokenizer.eos_token_id if pad_id is None else pad_id
    bins = list(pack(_examples(recipe, encoder, summary, strict=strict), data.row_length))
    if not bins:
        raise DataError(
            f"No trace is left to train on; dropped: {dict(summary.dropped)}; read: "
            f"{summary.sources}."
        )
    rows = [
        pack_row(examples, data.row_length, pad_id=pad_id, variants=variants) for examples in bins
    ]
    summary.num_rows = len(rows)
    folder.mkdir(parents=True, exist_ok=True)
    save_rows(rows, folder / ROWS_FILE)
    content = summary.to_dict() | {"fingerprint": fingerprint(recipe)}
    (folder / SUMMARY_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def encode_trace(encoder: Encoder, recipe: Recipe, trace: Trace, *, compress: bool) -> Example:
    """Segment and encode one trace."""
    tokenizer = encoder.tokenizer
    thoughts = trace.thoughts or segment(
        trace.reasoning,
        recipe.data.segment,
        count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        offsets=lambda text: tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ],
    )
    return encoder.encode(trace.messages, thoughts, trace.answer, compress=compress)


def fingerprint(recipe: Recipe) -> str:
    """Hash of everything in the recipe that the rows depend on, and of the local files it names."""
    plain = recipe.to_dict()
    relevant = {"data": plain["data"], "compression": plain["compression"], "model": plain["model"]}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode())
    for source in recipe.data.sources:
        file = Path(source.path)
        if file.is_file():
            digest.update(f"{file.stat().st_size}/{file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def print_summary(summary: Summary, console: Console) -> None:
    """Print what was read, dropped and made, and one example as the model sees it."""
    numbers = summary.to_dict()
    table = Table(title="prepared data", show_header=False)
    for source in summary.sources:
        kept = f"{source['num_kept']:,} of {source['num_read']:,} rows kept ({source['format']})"
        table.add_row(f"read from {source['source']}", kept)
        for reason, drops in source["drops"].items():
            lines = ", ".join(map(str, drops["lines"]))
            table.add_row(f"  dropped: {reason}", f"{drops['count']:,} (first lines: {lines})")
    for reason, count in summary.dropped.items():
        table.add_row(f"dropped: {reason}", f"{count:,} (first: {', '.join(summary.too_long[:5])})")
    table.add_row(
        "examples", f"{summary.num_examples:,} ({summary.num_full_cot:,} full chain-of-thought)"
    )
    table.add_row("rows", f"{summary.num_rows:,}")
    table.add_row("tokens", f"{summary.num_tokens:,}")
    for label, key in (
        ("tokens per thought", "thought_tokens"),
        ("full chain-of-thought tokens", "full_cot_tokens"),
        ("peak tokens with compression", "peak_tokens"),
    ):
        if numbers[key]:
            q = numbers[key]
            table.add_row(
                label,
                f"median {q['p50']:,.0f}, 10-90 %: {q['p10']:,.0f}-{q['p90']:,.0f}, "
                f"max {q['max']:,}",
            )
    if numbers["peak_ratio"]:
        table.add_row("peak, share of full chain-of-thought", f"{numbers['peak_ratio']:.0%}")
    console.print(table)
    console.print("one example as the model sees it:", style="bold")
    console.print(summary.sample, markup=False, highlight=False)


def _examples(
    recipe: Recipe, encoder: Encoder, summary: Summary, *, strict: bool
) -> Iterator[Example]:
    rng = Random(f"full-cot/{recipe.trainer.get('seed', 0)}")
    quiet = not Console().is_terminal
    for source in recipe.data.sources:
        hub = None
        if not Path(source.path).is_file():
            hub = HubOptions(
                subset=source.subset,
                split=source.split,
                revision=source.revision,
                streaming=source.streaming,
            )
        reader = read_traces(
            source.path,
            format=cast(Any, source.format),
            columns=source.columns,
            keep_calculator=source.keep_calculator,
            strict=strict,
            limit=source.limit,
            hub=hub,
        )
        for trace in track(reader, description=f"encoding {source.path}", disable=quiet):
            compress = (
                rng.random() >= recipe.data.full_cot_share and recipe.compression.method != "full"
            )
            example = encode_trace(encoder, recipe, trace, compress=compress)
            if len(example) > recipe.data.row_length:
                if strict:
                    raise DataError(
                        f"{trace.source}: {len(example)} tokens do not fit data.row_length = "
                        f"{recipe.data.row_length}."
                    )
                summary.dropped["longer than data.row_length"] += 1
                summary.too_long.append(trace.source)
                continue
            _count(summary, encoder, example, compress)
            yield example
        report = reader.report.to_dict()
        summary.sources.append(report)


def _count(summary: Summary, encoder: Encoder, example: Example, compress: bool) -> None:
    layout = example.layout
    summary.num_examples += 1
    summary.num_full_cot += not compress
    summary.num_tokens += len(example)
    visible = int((layout.role != Role.GIST).sum() - (layout.role == Role.CONTINUE).sum())
    if compress:
        thoughts = layout.thought[(layout.thought >= 0) & layout.is_output]
        counts: Counter[int] = Counter(thoughts.tolist())
        summary.thought_lengths += counts.values()
        summary.peaks.append(layout.peak_tokens())
        summary.full_peaks.append(visible)
    if not summary.sample:
        summary.sample = encoder.tokenizer.decode(example.input_ids.tolist())


def _quantiles(values: list[int]) -> dict[str, float] | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=10)
    return {"p10": cuts[0], "p50": statistics.median(values), "p90": cuts[-1], "max": max(values)}


def _read_fingerprint(folder: Path) -> str | None:
    file = folder / SUMMARY_FILE
    if not file.exists():
        return None
    value: str | None = json.loads(file.read_text(encoding="utf-8")).get("fingerprint")
    return value
