"""Static launch settings of the decode step's matmuls, and where they beat the library's.

Knows sizes only, no tensors; `benchmarks/bench_linear.py` sweeps the table.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_ROWS = 128
"""A step of more rows is computed by the library, which was faster at all sizes measured."""

NUM_ROWS = (16, 32, 64, MAX_ROWS)
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
        pdl: Programmatic dependent launch: the kernel starts while the one before it ends. Layers
            in a chain took less time without it.
        prefetched: Inputs of a tile's weight rows that are asked for before that end.
    """

    block_n: int = 64
    block_k: int = 128
    num_warps: int = 4
    num_stages: int = 4
    splits: int = 1
    pdl: bool = False
    prefetched: int = 0


@dataclass(frozen=True)
class _Entry:
    """Settings for the sizes that they were measured at, and those nearest to them.

    Attributes:
        rows: Of a step.
        weight_rows: With a gate those of both halves.
        inputs: Columns of the weight.
        gated: Whether the matmul ends in `act(gate) * up`.
        config: The settings.
    """

    rows: range
    weight_rows: range
    inputs: range
    gated: bool
    config: LinearConfig


def _entry(
    rows: tuple[int, int],
    weight_rows: range,
    inputs: range,
    settings: tuple[int, int, int, int, int],
    *,
    gated: bool = False,
) -> _Entry:
    block_n, block_k, num_warps, num_stages, splits = settings
    config = LinearConfig(
        block_n=block_n,
        block_k=block_k,
        num_warps=num_warps,
        num_stages=num_stages,
        splits=splits,
    )
    return _Entry(range(rows[0], rows[1] + 1), weight_rows, inputs, gated, config)


_ANY = range(1024, 1 << 20)
_HEADS = range(1 << 16, 1 << 20)
_TABLE = (
    _entry((1, 16), _HEADS, _ANY, (64, 128, 4, 6, 1)),
    _entry((17, 32), _HEADS, _ANY, (128, 128, 8, 5, 1)),
    _entry((33, 64), _HEADS, _ANY, (128, 128, 8, 4, 1)),
    _entry((1, 16), range(3072, 6144), range(12_288, 32_768), (64, 128, 4, 4, 7)),
    _entry((1, 64), range(28_672, 1 << 16), _ANY, (64, 128, 4, 3, 1), gated=True),
    _entry((1, 16), range(12_288, 28_672), _ANY, (128, 128, 4, 3, 1), gated=True),
    _entry((17, 32), range(12_288, 28_672), range(1024, 2560), (128, 64, 4, 5, 1), gated=True),
    _entry((17, 32), range(12_288, 28_672), _ANY, (128, 128, 4, 3, 1), gated=True),
    _entry((33, 64), range(12_288, 28_672), range(1024, 2560), (128, 64, 4, 4, 1), gated=True),
    _entry((65, 128), range(12_288, 28_672), range(1024, 2560), (256, 64, 8, 4, 1), gated=True),
)


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
    if num_inputs % MULTIPLE_OF_K:
        return None
    for entry in _TABLE:
        if (
            entry.gated == gated
            and num_rows in entry.rows
            and weight_rows in entry.weight_rows
            and num_inputs in entry.inputs
        ):
            return entry.config
    return None
