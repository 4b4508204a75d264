"""The model that comes with the package; `demo` is its name wherever a checkpoint is asked for."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lightthinker.errors import CheckpointError

BUNDLED = "demo"


def bundled_model_path() -> Path:
    """Return the folder of the model that comes with the package.

    Raises:
        CheckpointError: This installation has none.
    """
    folder = Path(str(files("lightthinker") / "assets" / "bundled_model"))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"This installation has no bundled model ({folder} holds no config.json). Name a "
            "checkpoint with --model, or train one with `lightthinker train`."
        )
    return folder


def model_path(model: str | Path) -> str:
    """Return the folder of the bundled model for `demo`, and anything else as it is."""
    return str(bundled_model_path()) if str(model) == BUNDLED else str(model)
