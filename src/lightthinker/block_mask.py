"""Which 128 x 128 blocks of a mask FlexAttention visits, found without the dense mask.

Exactly the blocks that torch's `create_block_mask` finds, in the same order, so kernels add in the
same order; but memory grows with S, not with S * S. Under plain lifetimes and a plain causal model
mask the earliest and latest expiry of each block of keys decide. Any other mask is looked at in
strips of 128 queries. Shape legend: B rows, S tokens, N blocks in a row. Knows no models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys in a block: FlexAttention's default."""

MaskFunction = Callable[..., Any]


def causal_blocks(expires_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the partial and the full blocks [B, N, N] of `k <= q < expires[k]`.

    Args:
        expires_BS: First query that no longer sees a key; every key sees itself.
    """
    num_rows, length = expires_BS.shape
    num_blocks = -(-length // BLOCK)
    padded = torch.nn.functional.pad(expires_BS, (0, num_blocks * BLOCK - length))
    by_block = padded.view(num_rows, num_blocks, BLOCK)
    start = torch.arange(num_blocks, device=expires_BS.device) * BLOCK
    query, key = start[:, None], start[None, :]
    earlier = key < query
    some = (earlier & (by_block.amax(-1)[:, None, :] > query)) | (key == query)
    last_query = query + BLOCK - 1
    full = earlier & (by_block.amin(-1)[:, None, :] > last_query) & (last_query < length)
    return some & ~full, full


def strip_blocks(
    mask_function: MaskFunction, num_rows: int, num_queries: int, num_keys: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the partial and the full blocks of any mask, one strip of queries at a time."""
    key_blocks = -(-num_keys // BLOCK)
    row = torch.arange(num_rows, device=device)[:, None, None, None]
    head = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=device)
    key = torch.arange(num_keys, device=device)[None, None, None, :]
    counts = []
    for begin in range(0, num_queries, BLOCK):
        query = torch.arange(begin, min(begin + BLOCK, num_queries), device=device)
        strip = mask_function(row, head, query[None, None, :, None], key)
        strip = strip.expand(num_rows, 1, len(query), num_keys).sum(dim=(1, 2), dtype=torch.int32)
        strip = torch.nn.functional.pad(strip, (0, key_blocks * BLOCK - num_keys))
        counts.append(strip.view(num_rows, key_blocks, BLOCK).sum(dim=-1))
    count = torch.stack(counts, dim=1)
    full = count == BLOCK * BLOCK
    return (count > 0) & ~full, full


def as_block_mask(
    partial: torch.Tensor,
    full: torch.Tensor,
    mask_function: MaskFunction,
    lengths: tuple[int, int],
) -> BlockMask:
    """Return the BlockMask of these blocks [B, N, N]; all heads share it."""
    return BlockMask.from_kv_blocks(
        *_ordered(partial[:, None]),
        *_ordered(full[:, None]),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_function,
        seq_lengths=lengths,
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dense = blocks.to(torch.int32)
    order = torch.argsort(dense, dim=-1, descending=True, stable=True)
    return dense.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
