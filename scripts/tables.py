"""What the tables of scripts/result_tables.py share: names, grids, numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAMES = {
    "full_cot": "full chain-of-thought",
    "lightthinker": "LightThinker",
    "hf_generate": "transformers' `generate`",
    "lightthinker_token": "LightThinker, token level",
    "anllm": "AnLLM",
    "streaming_llm": "StreamingLLM",
    "sepllm": "SepLLM",
    "h2o": "H2O",
    "r_kv": "R-KV",
    "snapkv": "SnapKV-style",
    "tova": "TOVA",
}

Results = dict[str, Any]


def load(folder: Path, stem: str) -> Results:
    results: Results = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return results


def grid(head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    return [line_of(head), "|---" * len(head) + "|", *(line_of(line) for line in lines)]


def line_of(cells: Sequence[object]) -> str:
    return "|" + "".join(f" {cell} |" if str(cell) else " |" for cell in cells)


def share(values: Results) -> str:
    low, high = values["accuracy_ci95"]
    return f"{values['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def aim_of(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
