"""An obvious float64 reference of paged attention, and random steps to compare kernels on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.kvcache.pool import LayerShape, PagePool

NOTHING_EXCLUDED = (0, 0)


@dataclass(frozen=True)
class AttentionCase:
    """One layer's step over a pool whose unused slots are NaN.

    Attributes:
        pool: Keys, values and token indices, the step's own rows not yet stored.
        batch: The step.
        query: [T, HQ, DK].
        key: [T, HK, DK] of the step's rows.
        value: [T, HK, DV] of the step's rows.
    """

    pool: PagePool
    batch: PagedBatch
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def attention_case(
    lengths_and_rows: list[tuple[int, int]],
    *,
    num_heads: int,
    num_kv_heads: int,
    key_dim: int,
    value_dim: int | None = None,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> AttentionCase:
    """Draw a step.

    Args:
        lengths_and_rows: Per sequence: live tokens once the step is written, and rows in this step.
            A sequence with several short rows gets gist-like ones: the last excludes a range and
            the one before looks ahead. Every second sequence has a lower bound and gaps in its
            token indices.
        num_heads: Query heads.
        num_kv_heads: KV heads.
        key_dim: Size of queries and keys.
        value_dim: Size of values, if another.
        page_size: Tokens per page.
        dtype: Of everything.
        device: Where.
        seed: Of all draws.
    """
    draw = torch.Generator().manual_seed(seed)
    value_dim = value_dim or key_dim
    pages_of = [-(-live // page_size) for live, _ in lengths_and_rows]
    num_pages = sum(pages_of) + 3
    pool = PagePool(
        [LayerShape(num_kv_heads, key_dim, value_dim)],
        num_pages=num_pages,
        page_size=page_size,
        dtype=dtype,
        device=torch.device(device),
        poison=True,
    )

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype).to(device)

    order = torch.randperm(num_pages, generator=draw).tolist()
    sequences: list[SequenceRows] = []
    num_tokens = 0
    for number, ((live, num_rows), count) in enumerate(
        zip(lengths_and_rows, pages_of, strict=True)
    ):
        pages, order = order[:count], order[count:]
        slots = [pages[i // page_size] * page_size + i % page_size for i in range(live)]
        gaps = torch.randint(1, 4 if number % 2 else 2, (live,), generator=draw)
        indices = (gaps.cumsum(0) - 1).tolist()
        old = slots[: live - num_rows]
        pool.keys[0][old] = normal(len(old), num_kv_heads, key_dim)
        pool.values[0][old] = normal(len(old), num_kv_heads, value_dim)
        pool.token_index[slots] = torch.tensor(indices, device=device)
        rows = [
            Row(number % 2 * min(3, p), p + 1, *NOTHING_EXCLUDED)
            for p in range(live - num_rows, live)
        ]
        if 2 <= num_rows < 32:
            rows[-2] = rows[-2]._replace(upper=live)
            rows[-1] = rows[-1]._replace(excl_lo=live // 4, excl_hi=live - 2)
        sequences.append(SequenceRows(rows, indices[live - num_rows :], pages, live))
        num_tokens += num_rows
    batch = PagedBatch(sequences, page_size, torch.device(device))
    return AttentionCase(
        pool,
        batch,
        normal(num_tokens, num_heads, key_dim),
        normal(num_tokens, num_kv_heads, key_dim),
        normal(num_tokens, num_kv_heads, value_dim),
    )


def dense_attention(
    case: AttentionCase,
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Attend row by row in `dtype`; returns [T, HQ, DV]. The step must be stored in the pool."""
    size, pool = case.pool.page_size, case.pool
    group = case.query.shape[1] // case.key.shape[1]
    out = torch.zeros(*case.query.shape[:2], case.value.shape[2], dtype=dtype)
    out = out.to(case.query.device)
    t = 0
    for sequence in case.batch.sequences:
        slots = [sequence.pages[i // size] * size + i % size for i in range(sequence.num_live)]
        for row, index in zip(sequence.rows, sequence.indices, strict=True):
            seen = [
                s
                for i, s in enumerate(slots)
                if row.lower <= i < row.upper and not row.excl_lo <= i < row.excl_hi
            ]
            if window is not None:
                at = pool.token_index[seen].tolist()
                seen = [s for s, i in zip(seen, at, strict=True) if i > index - window]
            if seen:
                keys = pool.keys[0][seen].to(dtype).repeat_interleave(group, 1)
                values = pool.values[0][seen].to(dtype).repeat_interleave(group, 1)
                scores = torch.einsum("hd,nhd->hn", case.query[t].to(dtype), keys) * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[t] = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
            t += 1
    return out


def error_band(case: AttentionCase, exact: torch.Tensor, **settings: float | None) -> float:
    """Return twice what a plain reference in the case's dtype errs, rounding included.

    Source: attention-gym's rule for judging a low-precision kernel against float64.
    """
    dtype = case.query.dtype
    plain = dense_attention(case, dtype=dtype, **settings)  # type: ignore[arg-type]
    rounding = float((exact.to(dtype).double() - exact).abs().max())
    return 2 * (float((plain.double() - exact).abs().max()) + rounding)
