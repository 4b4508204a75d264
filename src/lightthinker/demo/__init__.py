"""The bundled model, and the demonstration that runs it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lightthinker.errors import CheckpointError


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
