"""`lightthinker prepare`, `train` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Overrides = Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=False)]


def prepare(
    recipe: Path,
    /,
    *,
    set_: Overrides = (),
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Encode and pack a recipe's traces, and say what was read, dropped and why.

    Args:
        recipe: YAML file; see recipes/.
        set_: Override a setting, e.g. `--set data.row_length=2048`; may be repeated.
        strict: Stop at the first unusable row instead of counting it.
        overwrite: Replace rows that were prepared before.
    """
    from lightthinker.train.prepare import prepare
    from lightthinker.train.recipe import load_recipe

    folder = prepare(load_recipe(recipe, list(set_)), strict=strict, overwrite=overwrite)
    print(f"Prepared data: {folder}")


def train(
    recipe: Path,
    /,
    *,
    set_: Overrides = (),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train the model that a recipe describes.

    Ctrl-C writes a checkpoint first; --resume goes on from it.

    Args:
        recipe: YAML file; see recipes/.
        set_: Override a setting, e.g. `--set trainer.learning_rate=1e-5`; may be repeated.
        resume: Go on from the newest checkpoint of an interrupted run.
        overwrite: Write into an output folder that is not empty.
    """
    from lightthinker.train.recipe import load_recipe
    from lightthinker.train.run import train

    folder = train(load_recipe(recipe, list(set_)), resume=resume, overwrite=overwrite)
    print(f"Checkpoint: {folder}")


def convert(
    source: str,
    output: Path,
    /,
    *,
    method: Literal["thought", "token", "anllm"] = "thought",
    overwrite: bool = False,
) -> None:
    """Turn a LightThinker checkpoint published by its authors into our format.

    Args:
        source: Folder or hub name of the published checkpoint.
        output: Folder to write.
        method: How it was trained: thought (LightThinker), token (its token level) or anllm.
        overwrite: Write into a folder that exists.
    """
    from lightthinker.train.convert import convert

    convert(source, output, method=method, overwrite=overwrite)
    print(f"Checkpoint: {output}")
