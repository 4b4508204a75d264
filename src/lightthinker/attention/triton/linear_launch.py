"""Static launch settings of the decode step's matmuls, and where they beat the library's.

Knows sizes only, no tensors; `benchmarks/bench_linear.py` sweeps the table.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_ROWS = 256
"""A step of more rows is computed by the library: it waits for arithmetic, not for weights."""

NUM_ROWS = (16, 32, 64, 128, MAX_ROWS)
"""Settings are for numbers of rows up to each of these."""

MAX_TILES = 1 << 15
"""Most tiles of one matmul: each has a counter."""

MULTIPLE_OF_K = 16
"""The input's size must be a multiple: each row then begins at a full 32 bytes."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """How one matmul is launched.

    Attributes:
        block_n: Weight rows per tile, at least 64 (a warp group's tensor cores); with a gate, half
            of them belong to it.
        block_k: Inputs per step of the inner loop.
        num_warps: Warps per program, a multiple of 4.
        num_stages: Depth of the software pipeline.
        splits: Pieces of each tile along K.
        pdl: Programmatic dependent launch: the kernel starts while the one before it ends.
        prefetched: Inputs of a tile's weight rows that are asked for before that end.
    """

    block_n: int = 64
    block_k: int = 128
    num_warps: int = 4
    num_stages: int = 4
    splits: int = 1
    pdl: bool = True
    prefetched: int = 0


def linear_config(
    num_rows: int, weight_rows: int, num_inputs: int, *, gated: bool = False
) -> LinearConfig | None:
    """Return how to launch a matmul of a step, or None where the library is to compute it.

    Args:
        num_rows: Rows of the step.
        weight_rows: Rows of the weight, with a gate those of both halves.
        num_inputs: Columns of the weight.
        gated: Whether it ends in `act(gate) * up`.
    """
    return None
