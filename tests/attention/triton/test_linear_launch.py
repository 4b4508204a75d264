"""The table of the decode step's matmuls."""

from __future__ import annotations

import itertools

import pytest

from lightthinker.attention.triton.linear_launch import (
    _TABLE,
    MAX_ROWS,
    MAX_TILES,
    NUM_ROWS,
    linear_config,
)

QWEN_HEAD = (152_064, 3584)


def test_few_rows_of_a_large_weight_are_ours_and_many_are_not():
    assert linear_config(1, *QWEN_HEAD) is not None
    assert linear_config(MAX_ROWS + 1, *QWEN_HEAD) is None
    assert linear_config(1, 64, 64) is None
    assert linear_config(8, 37_888, 3584, gated=True) != linear_config(8, 37_888, 3584)


def test_inputs_that_begin_between_sectors_are_left_to_the_library():
    rows, inputs = QWEN_HEAD
    assert linear_config(1, rows, inputs + 16) is not None
    assert linear_config(1, rows, inputs + 8) is None


@pytest.mark.parametrize("entry", _TABLE, ids=str)
def test_an_entry_fits_the_device(entry):
    """Shared memory of a multiprocessor, tiles with a counter each, tensor cores' 64 rows."""
    config = entry.config
    block_t = max(16, 1 << (entry.rows[-1] - 1).bit_length())
    stage = 2 * (config.block_n + block_t) * config.block_k
    assert config.num_stages * stage <= 227 * 1024
    assert entry.weight_rows[-1] // config.block_n < MAX_TILES
    assert config.block_n % 64 == 0
    assert config.num_warps % 4 == 0
    assert entry.rows[-1] in NUM_ROWS


def test_no_entry_is_hidden_by_another():
    """Each decides for some sizes, or it is dead."""
    for entry in _TABLE:
        sizes = itertools.product(
            (entry.rows[0], entry.rows[-1]),
            (entry.weight_rows[0], entry.weight_rows[-1]),
            (-(-entry.inputs[0] // 16) * 16, entry.inputs[-1] // 16 * 16),
        )
        assert any(linear_config(*size, gated=entry.gated) is entry.config for size in sizes), entry
