"""Benchmarks: named sets of problems, each with its own prompts and grader.

`load_benchmark` returns them as `EvalProblem`s. Adding one: declare a `Benchmark` in a module here
(where its rows are, how a row becomes a `Question`), list it in `load.BENCHMARKS`, run the snapshot
test once with `UPDATE_SNAPSHOTS=1`, and add it to docs/benchmarks.md. Knows no model.
"""

from lightthinker.evals.benchmarks.families import HELD_OUT_SEEDS, SEED_STRIDE
from lightthinker.evals.benchmarks.load import (
    ALL_FAMILIES,
    BENCHMARKS,
    GSM8K,
    benchmark_names,
    load_benchmark,
)
from lightthinker.evals.benchmarks.problem import EvalProblem, Message

__all__ = [
    "ALL_FAMILIES",
    "BENCHMARKS",
    "GSM8K",
    "HELD_OUT_SEEDS",
    "SEED_STRIDE",
    "EvalProblem",
    "Message",
    "benchmark_names",
    "load_benchmark",
]
