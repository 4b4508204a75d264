"""`prepare(recipe)`.

Traces -> encoded, packed rows, and a summary of what was read, dropped and made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightthinker.data.packing import pack, pack_row, uses_variants
from lightthinker.data.rows import HubOptions
from lightthinker.data.sources import TraceReader, read_traces
from lightthinker.encode import Encoder, Example
from lightthinker.errors import ConfigError, DataError
from lightthinker.layout import Role
from lightthinker.tokens import resolve_tokens
from lightthinker.train.checkpoint import load_tokenizer
from lightthinker.train.datasets import PackedRows, save_rows
from lightthinker.train.encoding import encode_traces
from lightthinker.train.recipe import Recipe, TraceSource

ROWS_FILE = "rows.safetensors"
SUMMARY_FILE = "summary.json"
ROWS_FORMAT = 3
"""Changes when rows of an older version can no longer be used."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model",
    "vocab.json", "merges.txt",
)  # fmt: skip
NUM_OPEN_ROWS = 256
"""Rows that wait for a fitting example while packing."""


@dataclass
class Summary:
    """What became of the traces; token counts are over kept examples."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    num_examples: int = 0
    num_full_cot: int = 0
    num_rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    too_long: list[str] = field(default_factory=list)
    truncated: int = 0
    thoughts_cut: int = 0
    row_length: int = 0
    thought_lengths: list[int] = field(default_factory=list)
    thoughts_per_trace: list[int] = field(default_factory=list)
    full_peaks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    num_tokens: int = 0
    sample: str = ""
    sample_is_compressed: bool = False

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
            "truncated": self.truncated,
            "thoughts_cut": self.thoughts_cut,
            "row_fill": self.num_tokens / (self.num_rows * self.row_length)
            if self.num_rows
            else None,
            "thought_tokens": _quantiles(lengths),
            "thoughts": len(lengths),
            "thoughts_per_trace": _quantiles(self.thoughts_per_trace),
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
    if not (folder / ROWS_FILE).exists() or read_fingerprint(folder) != fingerprint(recipe):
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
    variants = uses_variants(encoder.config) or data.recover_share > 0
    pad_id = encoder.tokenizer.pad_token_id
    pad_id = encoder.tokenizer.eos_token_id if pad_id is None else pad_id
    num_open = 0 if data.packing == "none" else NUM_OPEN_ROWS
    examples = _examples(recipe, encoder, summary, strict=strict)
    bins = list(pack(examples, data.row_length, num_open=num_open))
    if not bins:
        raise DataError(f"No trace is left to train on. {_what_became(summary)}.")
    rows = [
        pack_row(
            examples,
            data.row_length,
            pad_id=pad_id,
            variants=variants,
            teacher=recipe.loss.distillation > 0,
        )
        for examples in bins
    ]
    summary.num_rows, summary.row_length = len(rows), data.row_length
    folder.mkdir(parents=True, exist_ok=True)
    save_rows(rows, folder / ROWS_FILE)
    content = summary.to_dict() | {"fingerprint": fingerprint(recipe)}
    (folder / SUMMARY_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def fingerprint(recipe: Recipe) -> str:
    """Hash of everything in the recipe that the rows depend on, and of the local files it names."""
    plain = recipe.to_dict()
    data = {key: value for key, value in plain["data"].items() if key != "num_proc"}
    tokenizer = {key: plain["model"][key] for key in ("path", "tokenizer", "chat_template")}
    folder = Path(str(recipe.model.tokenizer or recipe.model.path))
    relevant = {
        "format": ROWS_FORMAT,
        "data": data,
        "compression": plain["compression"],
        "tokenizer": tokenizer | {"seed": recipe.trainer.get("seed", 0)},
        "teacher": recipe.loss.distillation > 0,
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode())
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    files = [Path(source.path) for source in recipe.data.sources]
    if recipe.model.gguf_file is not None and recipe.model.tokenizer is None:
        files.append(folder / recipe.model.gguf_file)
    for file in files:
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
            table.add_row(f"  dropped: {reason}", f"{drops['count']:,} ({_first(drops)})")
    for reason, count in summary.dropped.items():
        table.add_row(f"dropped: {reason}", f"{count:,} (first: {', '.join(summary.too_long[:5])})")
    if summary.truncated:
        table.add_row(
            "cut at a thought boundary",
            f"{summary.truncated:,} traces, {summary.thoughts_cut:,} thoughts lost",
        )
    table.add_row(
        "examples", f"{summary.num_examples:,} ({summary.num_full_cot:,} full chain-of-thought)"
    )
    table.add_row("rows", f"{summary.num_rows:,}, {numbers['row_fill']:.1%} full")
    table.add_row("tokens", f"{summary.num_tokens:,}")
    for label, key in (
        ("thoughts per trace", "thoughts_per_trace"),
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
    if summary.thoughts_per_trace and statistics.median(summary.thoughts_per_trace) < 2:
        console.print(
            "Most traces are one single thought: hardly anything is freed before the answer. Cut "
            "finer with data.segment, for example {by: sentence} or {by: line}.",
            style="yellow",
        )
    kind = "" if summary.sample_is_compressed else " (full chain-of-thought)"
    console.print(f"one example as the model sees it{kind}:", style="bold")
    console.print(summary.sample, markup=False, highlight=False)


def _first(drops: dict[str, Any]) -> str:
    lines = ", ".join(map(str, drops["lines"]))
    return f"first at {lines}: {drops['detail'].rstrip('.')}"


def _what_became(summary: Summary) -> str:
    """Say in one line what each source had and why it was dropped."""
    parts = []
    for source in summary.sources:
        reasons = [
            f"{drops['count']} dropped: {reason} ({_first(drops)})"
            for reason, drops in source["drops"].items()
        ]
        parts.append(
            ", ".join([f"{source['source']}: {source['num_read'] or 'no'} rows", *reasons])
        )
    parts += [f"{count} dropped: {reason}" for reason, count in summary.dropped.items()]
    return "; ".join(parts)


def _examples(
    recipe: Recipe, encoder: Encoder, summary: Summary, *, strict: bool
) -> Iterator[Example]:
    readers = [open_source(source, strict=strict) for source in recipe.data.sources]
    if strict:
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, too_long="error")
        )
    traces = itertools.chain.from_iterable(readers)
    quiet = not Console().is_terminal
    encoded = encode_traces(recipe, encoder, traces)
    for item in track(encoded, description="encoding traces", disable=quiet):
        if item.example is None:
            summary.dropped["longer than data.row_length"] += 1
            summary.too_long.append(item.source)
            continue
        if item.num_cut:
            summary.truncated += 1
            summary.thoughts_cut += item.num_cut
        _count(summary, encoder, item.example, item.variant.compress)
        yield item.example
    summary.sources = [reader.report.to_dict() for reader in readers]


def open_source(source: TraceSource, *, strict: bool = False) -> TraceReader:
    """Open a recipe's source; nothing is read yet.

    Raises:
        DataError: There is no such file, or it is of an unknown kind.
        ConfigError: A setting of the source is not allowed.
    """
    hub = None
    if not Path(source.path).is_file():
        hub = HubOptions(
            subset=source.subset,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
    return read_traces(
        source.path,
        format=cast(Any, source.format),
        columns=source.columns,
        keep_calculator=source.keep_calculator,
        strict=strict,
        limit=source.limit,
        hub=hub,
    )


def _count(summary: Summary, encoder: Encoder, example: Example, compress: bool) -> None:
    layout = example.layout.without_recovery()
    summary.num_examples += 1
    summary.num_full_cot += not compress
    summary.num_tokens += len(example)
    visible = int((~np.isin(layout.role, (Role.GIST, Role.CONTINUE))).sum())
    if compress:
        thoughts = layout.thought[(layout.thought >= 0) & layout.is_output]
        counts: Counter[int] = Counter(thoughts.tolist())
        summary.thought_lengths += counts.values()
        summary.thoughts_per_trace.append(len(counts))
        summary.peaks.append(layout.peak_tokens())
        summary.full_peaks.append(visible)
    if not summary.sample or (compress and not summary.sample_is_compressed):
        summary.sample_is_compressed = compress
        summary.sample = encoder.tokenizer.decode(example.input_ids.tolist())


def _quantiles(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    # Inclusive: estimates for a population would go beyond the largest value that is there.
    cuts = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    return {"p10": cuts[0], "p50": statistics.median(values), "p90": cuts[-1], "max": max(values)}


def read_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the recipe that a folder's rows were prepared for, if any."""
    file = folder / SUMMARY_FILE
    if not file.exists():
        return None
    value: str | None = json.loads(file.read_text(encoding="utf-8")).get("fingerprint")
    return value
