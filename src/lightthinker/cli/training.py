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
    num_gpus: int | None = None,
    smoke: bool = False,
    plan: bool = False,
) -> None:
    """Train the model that a recipe describes.

    Ctrl-C writes a checkpoint first; --resume goes on from it. On a cluster start `torchrun ... -m
    lightthinker.train RECIPE` instead.

    Args:
        recipe: YAML file; see recipes/.
        set_: Override a setting, e.g. `--set trainer.learning_rate=1e-5` or `--set
            data.sources.0.path=traces.jsonl`; may be repeated.
        resume: Go on from the newest checkpoint of an interrupted run.
        overwrite: Write into an output folder that is not empty.
        num_gpus: Use so many GPUs of this host, in one process each.
        smoke: Three steps of the recipe at its smallest, on the CPU, into OUTPUT_DIR_smoke.
        plan: Only print what would be trained, and estimates of memory and time.
    """
    from lightthinker.train.recipe import load_recipe

    loaded = load_recipe(recipe, list(set_))
    if plan:
        from lightthinker.train.plan import make_plan, print_plan

        print_plan(loaded, make_plan(loaded, num_gpus=num_gpus or 1))
        return
    if num_gpus is not None:
        from lightthinker.train.distributed import launch

        flags = {"--resume": resume, "--overwrite": overwrite, "--smoke": smoke}
        chosen = [flag for flag, is_on in flags.items() if is_on]
        on_cpu = smoke or bool(loaded.trainer.get("use_cpu"))
        launch(num_gpus, [str(recipe), *set_, *chosen], on_cpu=on_cpu)
        return
    from lightthinker.train.run import train

    if smoke:
        from lightthinker.train.smoke import smoke_recipe

        loaded = smoke_recipe(loaded)
    folder = train(loaded, resume=resume, overwrite=overwrite or smoke)
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
