"""Launches the attention of single rows (`rows_kernel`): sizes, strides, settings.

Shapes: T rows, N slots, HQ query heads, HK KV heads, DK key size, DV value size.
"""

from __future__ import annotations

import torch

from lightthinker.attention.rows_metadata import RowsMetadata
from lightthinker.attention.triton.launch import (
    RowsConfig,
    next_power_of_two,
    num_multiprocessors,
    num_splits,
    pdl_options,
    pdl_supported,
    rows_config,
)
from lightthinker.attention.triton.rows_kernel import rows_kernel


def rows_attention(
    query_THD: torch.Tensor,
    key_pool_NHD: torch.Tensor,
    value_pool_NHD: torch.Tensor,
    token_index_N: torch.Tensor,
    metadata: RowsMetadata,
    out_THD: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None,
    window: int | None,
    store: tuple[torch.Tensor, torch.Tensor] | None = None,
    splits: int | None = None,
    config: RowsConfig | None = None,
    pdl: bool | None = None,
) -> None:
    """Attend the step's launched rows; other lines of `out_THD` stay as they are.

    Args:
        query_THD: Queries [T, HQ, DK], any strides.
        key_pool_NHD: The layer's key slots [N, HK, DK]; head elements are adjacent.
        value_pool_NHD: The layer's value slots [N, HK, DV]; likewise.
        token_index_N: int64, the original token index of what each slot holds.
        metadata: The step.
        out_THD: Written: [T, HQ, DV], head elements adjacent.
        scaling: Factor of q.k.
        softcap: Scores become `softcap * tanh(score / softcap)`.
        window: Only tokens less than `window` original indices back are seen.
        store: Keys [T, HK, DK] and values [T, HK, DV] of the step's rows, any strides, to be stored
            too, if all T rows are launched; otherwise they have been (`store_kv`).
        splits: Most pieces of each row's keys; by default from the launch size.
        config: Launch settings; by default from the table.
        pdl: Programmatic dependent launch; by default where the device can.
    """
    num_entries = metadata.num_launch_rows
    if not num_entries:
        return
    num_heads, key_dim = query_THD.shape[1:]
    num_kv_heads, value_dim = value_pool_NHD.shape[1:]
    device, page_size = query_THD.device, metadata.page_size
    num_programs = num_entries * num_kv_heads
    multiprocessors = num_multiprocessors(device)
    if config is None:
        head_dim, itemsize = max(key_dim, value_dim), key_pool_NHD.element_size()
        config = rows_config(head_dim, itemsize, num_programs, multiprocessors)
    if splits is None:
        splits = num_splits(config, num_programs, multiprocessors)
    if pdl is None:
        pdl = pdl_supported(device)
    if store is not None:
        assert metadata.num_launch_rows == len(query_THD) == len(store[0]) == len(store[1])
        assert metadata.num_tiles == 0
    key_THD, value_THD = store or (query_THD, query_THD)
    assert num_programs <= len(metadata.arrivals), (num_programs, metadata.arrivals.shape)
    num_lines = num_entries * num_heads * splits if splits > 1 else 0
    partial_out = torch.empty(num_lines * value_dim, dtype=torch.float32, device=device)
    partial_log2_sum = torch.empty(num_lines, dtype=torch.float32, device=device)
    group = num_heads // num_kv_heads
    by_page = config.looks_up_pages(page_size)
    rows_kernel[(num_programs, splits)](
        query_THD,
        key_THD,
        value_THD,
        key_pool_NHD,
        value_pool_NHD,
        token_index_N,
        metadata.rows,
        metadata.page_table,
        metadata.arrivals,
        out_THD,
        partial_out,
        partial_log2_sum,
        scaling,
        softcap or 0.0,
        splits,
        metadata.rows.stride(0),
        metadata.page_table.stride(0),
        *query_THD.stride(),
        *key_THD.stride(),
        *value_THD.stride(),
        *key_pool_NHD.stride()[:2],
        *value_pool_NHD.stride()[:2],
        *out_THD.stride()[:2],
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_G=max(16, next_power_of_two(group)),
        KEY_DIM=key_dim,
        BLOCK_DK=max(16, next_power_of_two(key_dim)),
        VALUE_DIM=value_dim,
        BLOCK_DV=max(16, next_power_of_two(value_dim)),
        PAGE_SIZE=page_size,
        BLOCK_N=config.block_n,
        BY_PAGE=by_page,
        AHEAD=config.looks_ahead,
        ALIGNMENT=min(page_size, config.block_n) if by_page else 1,
        WINDOW=window or 0,
        HAS_SOFTCAP=bool(softcap),
        STORE=store is not None,
        # The longest rows first, if some must wait for others; else a look-up less counts for more.
        ORDERED=store is None or num_programs > config.num_programs * multiprocessors,
        COMBINE_G=next_power_of_two(group),
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **pdl_options(pdl),
        **({"maxnreg": config.max_registers} if config.max_registers else {}),
    )
