"""Latency, start-up and single kernels as tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tables import NAMES, Results, grid, load, number

PAGE_SIZES = (1, 16, 32)
KERNEL_BATCHES = (1, 32, 128, 256)


def latency_rows(results: Results) -> list[str]:
    return grid(
        [
            "model", "method", "requests/s", "first token ms, median", "99 %",
            "between tokens ms, median", "99 %", "output tokens/s",
        ],
        (
            (
                row["model"],
                NAMES[row["method"]],
                f"{row['requests_per_s']:g}",
                f"{row['p50_ttft_ms']:.0f}",
                f"{row['p99_ttft_ms']:.0f}",
                f"{row['p50_itl_ms']:.1f}",
                f"{row['p99_itl_ms']:.1f}",
                number(row["output_tokens_per_s"]),
            )
            for row in results["rows"]
        ),
    )  # fmt: skip


def start_rows(results: Results) -> list[str]:
    return grid(
        ["model", "start", "compiling and capturing s", "ready after s", "graphs"],
        (
            (
                row["model"],
                row["start"],
                f"{row['compile_s'] + row['graphs_s']:.1f}",
                f"{row['ready_s']:.1f}",
                number(row["num_graphs"]),
            )
            for row in results["rows"]
        ),
    )


ROWS = {"bench_latency": latency_rows, "bench_start": start_rows}
"""How the rows of a benchmark's results are rendered."""


def page_sizes(folder: Path) -> str:
    """Attention of a decode step at 1024 live tokens, by page size."""
    times = {
        (row["model"], row["batch"], row["page_size"]): row["time_us"]
        for row in load(folder, "bench_kernels")["rows"]
        if row["kernel"] == "rows_attention" and row["live"] == 1024
    }
    lines = [
        (model, batch, *(f"{times[model, batch, size]:.1f}" for size in PAGE_SIZES))
        for model, batch in dict.fromkeys((model, batch) for model, batch, _ in times)
    ]
    head = ["model", "batch", *(f"pages of {size}, us" for size in PAGE_SIZES)]
    return "\n".join(grid(head, lines))


def single_kernels(folder: Path) -> str:
    """What else a decode step runs, at the 7B shape."""
    times: dict[str, dict[int, float]] = {}
    for row in load(folder, "bench_kernels")["rows"]:
        if row.get("model", "Qwen2.5-7B") != "Qwen2.5-7B" or row.get("live", 1024) != 1024:
            continue
        if row["kernel"] == "rows_attention" and row["page_size"] == 16:
            name = "attention, 1,024 live tokens"
        elif row["kernel"] == "compact" and row["moves"] == 10:
            name = "compaction, 10 tokens of each sequence, all layers"
        elif row["kernel"] == "sample":
            name = f"sampling, {row['settings']}"
        else:
            continue
        times.setdefault(name, {})[row["batch"]] = row["time_us"]
    head = ["us", *(f"batch {batch}" for batch in KERNEL_BATCHES)]
    lines = [
        (name, *(f"{by_batch[b]:.0f}" if b in by_batch else "" for b in KERNEL_BATCHES))
        for name, by_batch in times.items()
    ]
    return "\n".join(grid(head, lines))


VIEWS: dict[str, Callable[[Path], str]] = {
    "bench_kernels/pages": page_sizes,
    "bench_kernels/single": single_kernels,
}
"""Views of a file, beside its rows."""
