"""`python -m lightthinker.train RECIPE [a.b=c ...]`: training without a command line."""

from __future__ import annotations

import sys

from lightthinker.train.recipe import load_recipe
from lightthinker.train.run import train

if __name__ == "__main__":
    train(load_recipe(sys.argv[1], sys.argv[2:]))
