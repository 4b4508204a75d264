"""`python -m lightthinker.train RECIPE [a.b=c ...]`: `lightthinker train` without its dependencies.

What torchrun and accelerate start, and what `lightthinker train --num-gpus` starts for each GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from lightthinker.errors import LightThinkerError
from lightthinker.train.distributed import launch
from lightthinker.train.recipe import load_recipe
from lightthinker.train.run import train
from lightthinker.train.smoke import smoke_recipe


def main() -> int:
    """Train, and return the exit code: 0, 2 for an error a user can fix, 130 after a signal."""
    parser = argparse.ArgumentParser(prog="python -m lightthinker.train")
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", metavar="a.b=c")
    for flag in ("--resume", "--overwrite", "--smoke"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--num-gpus", type=int)
    options = parser.parse_args()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        recipe = load_recipe(options.recipe, options.settings)
        if options.num_gpus is not None:
            flags = [f"--{f}" for f in ("resume", "overwrite", "smoke") if getattr(options, f)]
            on_cpu = options.smoke or bool(recipe.trainer.get("use_cpu"))
            launch(options.num_gpus, [options.recipe, *options.settings, *flags], on_cpu=on_cpu)
            return 0
        if options.smoke:
            recipe = smoke_recipe(recipe)
        train(recipe, resume=options.resume, overwrite=options.overwrite or options.smoke)
    except LightThinkerError as error:
        if not is_first:
            wait_for_the_first()
        rank = "" if is_first else f" (rank {os.environ['RANK']})"
        print(f"error{rank}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as interrupt:
        if is_first:
            print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    return 0


def wait_for_the_first() -> None:
    """Let the first rank speak for all of them: once it has failed, the launcher ends the others.

    An error that only this rank has met, such as its GPU running out of memory, is said after that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3.0)


if __name__ == "__main__":
    sys.exit(main())
