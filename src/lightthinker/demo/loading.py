"""Loading a checkpoint for a command: the terminal stays clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM


def open_llm(model: str | Path, **options: Any) -> LLM:
    """Load a checkpoint without transformers' progress bars.

    Args:
        model: Folder, hub name, or `demo`.
        options: Keyword arguments of `LLM`.
    """
    from transformers.utils import logging

    from lightthinker.engine.llm import LLM

    logging.disable_progress_bar()
    return LLM(model, **options)
