"""Static launch settings of the decode step's matmuls, and where they beat the library's.

A step of few rows waits for weights, so what counts is that every multiprocessor reads its share of
them without a break. The work is cut into equal runs of (tile, step along K), one for each program
(`LinearConfig.programs`), whatever the shape is. Knows sizes only, no tensors;
`benchmarks/bench_linear.py` sweeps the table.
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
        block_n: Outputs per tile, at least 64 (a warp group's tensor cores); with a gate, outputs
            of either half.
        block_k: Inputs per step of the inner loop.
        num_warps: Warps per program, a multiple of 4.
        num_stages: Depth of the software pipeline.
        per_multiprocessor: Programs per multiprocessor that share the work equally, some tiles in
            pieces; None for a program per tile.
        tma: Weights are copied in blocks by the tensor memory accelerator.
        pdl: Programmatic dependent launch: the kernel is started, and prefetches weights, while the
            one before it ends.
    """

    block_n: int = 64
    block_k: int = 128
    num_warps: int = 4
    num_stages: int = 4
    per_multiprocessor: int | None = 2
    tma: bool = False
    pdl: bool = True

    def programs(self, num_outputs: int, num_inputs: int, num_multiprocessors: int) -> int:
        """Return the size of the grid."""
        num_tiles = -(-num_outputs // self.block_n)
        if self.per_multiprocessor is None:
            return num_tiles
        num_steps = -(-num_inputs // self.block_k)
        return min(self.per_multiprocessor * num_multiprocessors, num_tiles * num_steps)


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
