"""Where numbers come from: versions, device, the model's digest, the commit.

Knows no records and no torch at import.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lightthinker import __version__

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

_MODEL_FILES = ("*.safetensors", "config.json", "tokenizer*", "chat_template*", "special_tokens*")


def package_versions() -> dict[str, str]:
    """Return the versions that decide a result, without importing the packages."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), **versions, "lightthinker": __version__}


def device_name(llm: LLM) -> str:
    """Return where a model runs, in words."""
    if llm.device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(llm.device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def device_unit(llm: LLM) -> str:
    """Return which one of its kind a model's device is, the same for all who share it."""
    if llm.device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_properties(llm.device).uuid)
    return platform.node()


def model_digests(model: str | Path) -> dict[str, str]:
    """Return a local checkpoint's digests; a hub name has none.

    Returns:
        `sha256` over all that decides what it says (safetensors, config, tokenizer, chat template)
        and `weights_sha256` over the safetensors alone; empty for a hub name.
    """
    return {"sha256": model_sha256(model), "weights_sha256": weights_sha256(model)}


def model_sha256(model: str | Path) -> str:
    """Return one digest over safetensors, config, tokenizer and chat template, names included."""
    folder = Path(model)
    files = {file for pattern in _MODEL_FILES for file in folder.glob(pattern)}
    if not folder.is_dir() or not files:
        return ""
    lines = [f"{file.name} {digest}" for file, digest in _digests(sorted(files))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weights_sha256(model: str | Path) -> str:
    """Return one digest over a local checkpoint's safetensors files, in name order.

    For a single file it is the file's own sha256. A hub name gives an empty string.
    """
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    digests = [digest for _, digest in _digests(files)]
    if len(digests) <= 1:
        return "".join(digests)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def git_commit() -> str | None:
    """Return the commit of the source tree that runs, with `+changes` if it has any.

    None if the package was installed from elsewhere or there is no git.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else f"{commit}{'+changes' if changes else ''}"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _digests(files: Iterable[Path]) -> list[tuple[Path, str]]:
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append((file, hashlib.file_digest(stream, "sha256").hexdigest()))
    return digests
