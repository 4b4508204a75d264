"""The kernel that observes single rows adds what PyTorch adds."""

from __future__ import annotations

import pytest
import torch

from lightthinker.attention.batch import ObservedRows, PagedBatch, Row, SequenceRows
from lightthinker.attention.observation import AttentionObserver
from lightthinker.kvcache.pool import LayerShape, PagePool

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
CPU = torch.device("cpu")


class Nothing:
    def prepare(self, batch): ...

    def attend(self, layer, query, key, value, **settings):
        return query


def sums(*, kernels, grouping, heads=(6, 2), dim=24, softcap=None, dtype=torch.float32):
    """Three sequences: two of different lengths in decode, one with two rows; NaN elsewhere."""
    num_heads, num_kv_heads = heads
    pool = PagePool(
        [LayerShape(num_kv_heads, dim, dim)] * 2,
        num_pages=40,
        page_size=8,
        dtype=dtype,
        device=CPU,
        poison=True,
    )
    pool.keep_scores()
    draw = torch.Generator().manual_seed(0)
    pool.scores.copy_(torch.rand(pool.scores.shape, generator=draw))
    pages = [[3, 17, 2, 30, 31, 32, 33, 34, 35], [5], [7, 9, 8]]
    lengths, rows = [70, 5, 20], [[Row(0, 70, 0, 0)], [Row(2, 4, 0, 0)], [Row(0, 19, 0, 0)] * 2]
    sequences = []
    for own, live, seen in zip(pages, lengths, rows, strict=True):
        slots = [own[i // 8] * 8 + i % 8 for i in range(live)]
        for keys in pool.keys:
            keys[slots] = torch.randn((live, num_kv_heads, dim), generator=draw).to(dtype)
        watch = ObservedRows(0, len(seen), grouping, 60)
        sequences.append(SequenceRows(seen, [live + i for i in range(len(seen))], own, live, watch))
    observer = AttentionObserver(pool, kernels=kernels)
    backend = observer.watching(Nothing(), PagedBatch(sequences, 8, CPU))
    for layer in range(2):
        query = torch.randn((4, num_heads, dim), generator=draw).to(dtype)
        backend.attend(layer, query, None, None, scaling=0.3, softcap=softcap, window=None)
    return pool.scores


@pytest.mark.parametrize("grouping", ["sum", "mean", "max_logit"])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (20, 1)], ids=["3", "1", "20"])
def test_it_adds_what_pytorch_adds(grouping, heads):
    expected = sums(kernels=False, grouping=grouping, heads=heads)
    got = sums(kernels=True, grouping=grouping, heads=heads)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert got.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_float32(softcap, dtype):
    expected = sums(kernels=False, grouping="sum", softcap=softcap, dtype=dtype, dim=64)
    got = sums(kernels=True, grouping="sum", softcap=softcap, dtype=dtype, dim=64)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_one_sequence_add_up_to_one():
    for kernels in (False, True):
        plain = sums(kernels=kernels, grouping="mean")
        double = sums(kernels=kernels, grouping="sum")
        # A probability of 1 per head, row and layer; the sum has three query heads' worth of it.
        assert (double - plain).sum() == pytest.approx(2 * 2 * (1 + 1 + 2) * 2, rel=1e-4)
