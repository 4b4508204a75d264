"""Which 128 x 128 blocks of a mask FlexAttention visits, found without the dense mask.

Where the model's own mask is plainly causal, keys are sorted by when they expire. Gists, which live
long, lie among the thoughts' tokens, which do not: in the order of the text nearly every block of
keys holds a gist or two, and a later query visits it for their sake. Sorted, a thought's tokens are
together, and so is all that outlives them: the longer the row, the fewer blocks are left.
Attention does not mind the order of keys; the mask compares original places.

The blocks are exactly those that torch's `create_block_mask` finds, in the same order, so kernels
add in the same order; but memory grows with (S / 128) squared. Of plain lifetimes they follow from
the sorted expiries; any other mask is looked at in strips of 128 queries. Shape legend: B rows, S
tokens, N blocks in a row. Knows no models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys in a block: FlexAttention's default."""

MaskFunction = Callable[..., Any]


def expiry_order(expires_BS: torch.Tensor) -> torch.Tensor:
    """Return the order in which keys expire, int64 [B, S]; those that expire together keep theirs.

    Padding and documents of one row stay apart: a document's keys expire no later than it ends.
    """
    return torch.argsort(expires_BS, dim=1, stable=True)


def sorted_blocks(
    expires_BS: torch.Tensor, order_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the partial and the full blocks [B, N, N] of `k <= q < expires[k]`, keys sorted.

    Args:
        expires_BS: First query that no longer sees a key; every key sees itself.
        order_BS: `expiry_order`: the key that stands at each place.
    """
    num_rows, length = expires_BS.shape
    num_blocks, never = -(-length // BLOCK), 2**62  # `pad` takes a float; this is one.

    def by_block(values_BS: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(values_BS, (0, num_blocks * BLOCK - length), value=never)
        return padded.view(num_rows, num_blocks, BLOCK)

    key, expires = by_block(order_BS), by_block(expires_BS.long().gather(1, order_BS))
    first = torch.arange(num_blocks, device=expires_BS.device) * BLOCK
    last = first + BLOCK - 1
    # Of a block's keys those that still live at a block of queries are its last ones; the earliest
    # of them decides whether any query sees one.
    earliest = torch.nn.functional.pad(key.flip(-1).cummin(-1).values.flip(-1), (0, 1), value=never)
    dead = torch.searchsorted(
        expires, first.expand(num_rows, num_blocks, -1).contiguous(), right=True
    )
    some = earliest.gather(-1, dead).transpose(1, 2) <= last[:, None]
    full = (
        (key.amax(-1)[:, None, :] <= first[:, None])
        & (expires[:, None, :, 0] > last[:, None])
        & (last < length)[:, None]
    )
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
    dense = blocks.to(torch.int32).contiguous()  # Kernels read the numbers as if they lay so.
    order = torch.argsort(dense, dim=-1, descending=True, stable=True)
    return dense.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
