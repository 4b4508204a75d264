"""Results -> numbers, with the field names of vLLM's serving benchmark; times in milliseconds.

ttft: time to the first token. tpot: time per output token after the first. itl: gap between
tokens as they arrive. e2el: end-to-end latency. Throughputs are over the whole duration; goodput
counts only requests that meet every given objective.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from lightthinker.bench.load import Load, Measured
from lightthinker.bench.send import RequestResult
from lightthinker.errors import ConfigError

OBJECTIVES = ("ttft", "tpot", "e2el")
TITLES = {
    "ttft": "Time to first token", "tpot": "Time per output token", "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}  # fmt: skip
MAX_ERRORS = 5


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """Return objectives from `name:milliseconds` pairs.

    Raises:
        ConfigError: Not such a pair.
    """
    found = {}
    for pair in pairs:
        name, _, limit = pair.partition(":")
        try:
            found[name] = float(limit)
        except ValueError:
            found[name] = -1.0
        if name not in OBJECTIVES or not found[name] > 0:
            raise ConfigError(
                f"goodput is {pair!r}; expected NAME:MILLISECONDS with {', '.join(OBJECTIVES)}."
            )
    return found


def summarize(measured: Measured, load: Load, goodput: Mapping[str, float]) -> dict[str, Any]:
    """Return vLLM's fields for a run.

    Args:
        measured: What happened.
        load: What was asked for.
        goodput: Objective -> milliseconds; empty measures none.
    """
    good = [r for r in measured.results if r.success]
    seconds = measured.duration
    inputs, outputs = sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good)
    summary: dict[str, Any] = {
        "backend": load.backend,
        "model_id": measured.model,
        "num_prompts": len(measured.results),
        "request_rate": load.request_rate if np.isfinite(load.request_rate) else "inf",
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
        "duration": seconds,
        "completed": len(good),
        "failed": len(measured.results) - len(good),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / seconds,
        "request_goodput": _goodput(good, goodput) / seconds if goodput else None,
        "output_throughput": outputs / seconds,
        "total_token_throughput": (inputs + outputs) / seconds,
        "max_concurrent_requests": _most_at_once(good),
    }
    series = {
        "ttft": [r.ttft for r in good],
        "tpot": [r.tpot for r in good if r.tpot is not None],
        "itl": [gap for r in good for gap in r.itl],
        "e2el": [r.latency for r in good],
    }
    for name, values in series.items():
        summary |= _statistics(name, values)
    summary["errors"] = dict(
        Counter(r.error for r in measured.results if not r.success).most_common(MAX_ERRORS)
    )
    if costs := [r.costs for r in good if r.costs]:
        summary["lightthinker"] = {
            f"mean_{name}": float(np.mean([cost.get(name) or 0 for cost in costs]))
            for name in ("peak_tokens", "full_cot_peak_tokens", "thoughts", "kv_tokens_freed")
        }
    return summary


def _statistics(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    ms = 1000 * np.asarray(seconds, dtype=np.float64)
    if not len(ms):
        return {f"{kind}_{name}_ms": None for kind in ("mean", "median", "std", "p99")}
    return {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(ms.std()),
        f"p99_{name}_ms": float(np.percentile(ms, 99)),
    }


def _goodput(results: Sequence[RequestResult], limits: Mapping[str, float]) -> int:
    def meets(result: RequestResult) -> bool:
        took = {"ttft": result.ttft, "tpot": result.tpot or 0.0, "e2el": result.latency}
        return all(1000 * took[name] <= limit for name, limit in limits.items())

    return sum(meets(result) for result in results)


def _most_at_once(results: Sequence[RequestResult]) -> int:
    begins = [(r.started, 1) for r in results]
    ends = [(r.started + r.latency, -1) for r in results]
    most = now = 0
    for _, change in sorted(begins + ends):
        now += change
        most = max(most, now)
    return most


def table(summary: Mapping[str, Any]) -> Table:
    """Return the numbers for people."""
    shown = Table(title=f"{summary['model_id']}: {summary['num_prompts']} requests", box=None)
    for column in ("", "mean", "median", "p99"):
        shown.add_column(column, justify="right" if column else "left")
    for name, title in TITLES.items():
        cells = [summary[f"{kind}_{name}_ms"] for kind in ("mean", "median", "p99")]
        shown.add_row(f"{title} (ms)", *("-" if c is None else f"{c:,.2f}" for c in cells))
    shown.add_section()
    rows = [
        ("Completed, failed", f"{summary['completed']}, {summary['failed']}"),
        ("Duration (s)", f"{summary['duration']:,.2f}"),
        ("Requests per second", f"{summary['request_throughput']:,.2f}"),
        ("Output tokens per second", f"{summary['output_throughput']:,.2f}"),
        ("Total tokens per second", f"{summary['total_token_throughput']:,.2f}"),
        ("Most requests at once", f"{summary['max_concurrent_requests']}"),
    ]
    if summary["request_goodput"] is not None:
        rows.append(("Goodput, requests per second", f"{summary['request_goodput']:,.2f}"))
    for name, value in summary.get("lightthinker", {}).items():
        rows.append((name.replace("_", " "), f"{value:,.1f}"))
    for name, value in rows:
        shown.add_row(name, value)
    return shown
