"""Loading a checkpoint for a command: `demo` names the bundled model; the terminal stays clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightthinker.demo import bundled_model_path

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

BUNDLED = "demo"


def model_path(model: str | Path) -> str:
    """Return the folder of the bundled model for `demo`, and anything else as it is."""
    return str(bundled_model_path()) if str(model) == BUNDLED else str(model)


def open_llm(model: str | Path, **options: Any) -> LLM:
    """Load a checkpoint without transformers' progress bars.

    Args:
        model: Folder, hub name, or `demo`.
        options: Keyword arguments of `LLM`.
    """
    path = model_path(model)
    from transformers.utils import logging

    from lightthinker.engine.llm import LLM

    logging.disable_progress_bar()
    return LLM(path, **options)
