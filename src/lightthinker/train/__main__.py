"""`python -m lightthinker.train RECIPE [a.b=c ...]`: training without a command line.

What torchrun and accelerate start, and what `lightthinker train --num-gpus` starts for each GPU.
"""

from __future__ import annotations

import argparse
import os
import sys

from lightthinker.errors import LightThinkerError
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
    options = parser.parse_args()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        recipe = load_recipe(options.recipe, options.settings)
        if options.smoke:
            recipe = smoke_recipe(recipe)
        train(recipe, resume=options.resume, overwrite=options.overwrite or options.smoke)
    except LightThinkerError as error:
        if is_first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if is_first:
            print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
