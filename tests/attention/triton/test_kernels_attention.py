"""The attention kernels in Triton's interpreter against a dense float64 reference.

Every slot that no sequence owns is NaN. bf16 `tl.dot` is wrong in the interpreter; the GPU tests
cover it.
"""

from __future__ import annotations

import pytest
import torch

from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.attention.rows_metadata import RowField, RowsCapacity
from lightthinker.attention.triton.launch import (
    MAX_SPLITS,
    RowsConfig,
    num_splits,
    pdl_options,
    pdl_supported,
    rows_config,
)
from lightthinker.attention.triton.rows_attention import rows_attention
from lightthinker.attention.triton.store_kv import store_kv
from lightthinker.attention.triton_backend import TritonBackend
from lightthinker.testing.attention import (
    attention_case,
    dense_attention,
    error_band,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")

MIXED = [(37, 1), (70, 5), (3, 3), (45, 34)]
"""Decode, gist-like, short prompt, and a chunk long enough for the tiled kernel."""


def run(case, *, scaling, softcap=None, window=None):
    backend = TritonBackend(case.pool)
    backend.prepare(case.batch)
    out = backend.attend(
        0, case.query, case.key, case.value, scaling=scaling, softcap=softcap, window=window
    )
    exact = dense_attention(case, scaling=scaling, softcap=softcap, window=window)
    assert not out.isnan().any(), "an unused slot was read"
    return out, exact


def relative_error(out, exact):
    return float((out.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("group", [1, 2, 6, 7, 8, 16])
def test_any_number_of_query_heads_per_kv_head(group):
    case = attention_case(MIXED, num_heads=group, num_kv_heads=1, key_dim=16)
    assert relative_error(*run(case, scaling=0.25)) < 1e-5


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (96, 64)])
def test_head_sizes(dims):
    key_dim, value_dim = dims
    case = attention_case(
        [(40, 1), (35, 33), (6, 3)],
        num_heads=3,
        num_kv_heads=1,
        key_dim=key_dim,
        value_dim=value_dim,
    )
    assert relative_error(*run(case, scaling=key_dim**-0.5)) < 1e-5


@pytest.mark.parametrize("page_size", [1, 5, 16, 32])
@pytest.mark.parametrize("settings", [{}, {"window": 11}])
def test_pages_and_windows(page_size, settings):
    case = attention_case(
        MIXED, num_heads=2, num_kv_heads=2, key_dim=16, page_size=page_size, seed=page_size
    )
    assert relative_error(*run(case, scaling=0.25, **settings)) < 1e-5


def attend_rows(case, *, launches=1, window=None, stores=True, **options):
    """Store and attend by rows alone; also returns the counters of arrivals."""
    metadata = TritonBackend(case.pool, RowsCapacity.of(case.batch)).metadata
    metadata.fill(case.batch, use_tiles=False)
    keys, values, index = case.pool.keys[0], case.pool.values[0], case.pool.token_index
    new = (case.key, case.value)
    if not stores:
        store_kv(*new, keys, values, index, metadata)
    settings = {"scaling": 0.25, "softcap": None, "window": window, **options}
    settings["store"] = new if stores else None
    outs = []
    for _ in range(launches):
        outs.append(torch.full(case.query.shape, float("nan")))
        rows_attention(case.query, keys, values, index, metadata, outs[-1], **settings)
    assert all(torch.equal(out, outs[0]) for out in outs)
    return outs[0], metadata.arrivals


@pytest.mark.parametrize("window", [None, 4])
def test_attending_stores_what_storing_stores(window):
    """Several rows of a sequence see each other, ahead too; one is new alone in its window."""
    stored, outs = [], []
    for stores in (False, True):
        case = attention_case([(40, 7), (9, 9), (33, 1)], num_heads=2, num_kv_heads=2, key_dim=16)
        expected_index = case.pool.token_index.clone()
        slots = case.batch.slots
        case.pool.token_index[slots] = -1
        config = RowsConfig(block_n=16, num_warps=1, num_stages=1, num_programs=1)
        out, _ = attend_rows(case, splits=2, config=config, window=window, stores=stores)
        assert relative_error(out, dense_attention(case, scaling=0.25, window=window)) < 1e-5
        assert torch.equal(case.pool.token_index, expected_index)
        stored.append((case.pool.keys[0], case.pool.values[0]))
        outs.append(out)
    for apart, inside in zip(*stored, strict=True):
        assert torch.equal(apart.nan_to_num(99.0), inside.nan_to_num(99.0))
    assert relative_error(*outs) < 1e-6


def test_rows_that_see_most_are_launched_first():
    case = attention_case([(9, 1), (40, 2), (33, 1)], num_heads=1, num_kv_heads=1, key_dim=16)
    metadata = TritonBackend(case.pool, RowsCapacity.of(case.batch)).metadata
    metadata.fill(case.batch, num_rows=4, use_tiles=False)
    rows = metadata.rows
    seen = rows[RowField.UPPER] - rows[RowField.LOWER]
    launched = rows[RowField.LAUNCH, :4].long()
    assert seen[launched].tolist() == sorted(seen[:4].tolist(), reverse=True)
    assert sorted(launched.tolist()) == [0, 1, 2, 3]
    assert launched.tolist() != [0, 1, 2, 3]


@pytest.mark.parametrize("splits", [1, 3, 32])
def test_any_number_of_pieces(splits):
    """Rows of many pieces (more than are added at once), of one and of few; launched twice."""
    case = attention_case([(150, 1), (1, 1), (40, 1)], num_heads=4, num_kv_heads=2, key_dim=16)
    config = RowsConfig(block_n=16, num_warps=1, num_stages=1, num_programs=1)
    out, arrivals = attend_rows(case, splits=splits, config=config, launches=2)
    assert relative_error(out, dense_attention(case, scaling=0.25)) < 1e-5
    assert not arrivals.any(), "the next launch would wait for another number of programs"


@pytest.mark.parametrize("page_size", [1, 5, 8, 16, 48])
@pytest.mark.parametrize("window", [None, 27])
def test_ways_to_look_up_pages_agree(page_size, window):
    """A page is smaller than a block, as large, larger, or does not fit into one."""
    case = attention_case(
        [(61, 3), (17, 1)], num_heads=2, num_kv_heads=1, key_dim=16, page_size=page_size
    )
    exact = None
    for looks_ahead in (False, True):
        config = RowsConfig(
            block_n=16, num_warps=1, num_stages=1, num_programs=1, looks_ahead=looks_ahead
        )
        assert config.looks_up_pages(page_size) == (looks_ahead and page_size in (8, 16, 48))
        out, _ = attend_rows(case, splits=3, config=config, window=window)
        if exact is None:
            exact = dense_attention(case, scaling=0.25, window=window)
        assert not out.isnan().any(), "an unused slot was read"
        assert relative_error(out, exact) < 1e-5


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_all_programs_of_a_launch_run_at_a_time(heads):
    for num_rows in range(1, 300):
        config = rows_config(128, 2, num_rows * heads, 132)
        splits = num_splits(config, num_rows * heads, 132)
        room = config.num_programs * 132
        assert splits == 1 or num_rows * heads * splits <= room
        assert splits == MAX_SPLITS or num_rows * heads * (splits + 1) > room, "the GPU is not full"


def test_dependent_launch_is_for_hopper_alone(monkeypatch):
    assert not pdl_supported(torch.device("cpu"))
    assert pdl_options(False) == {}, "Triton for other devices does not know the option"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("TRITON_INTERPRET")
    for number, (capability, expected) in enumerate([((8, 0), False), ((9, 0), True)]):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert pdl_supported(torch.device("cuda", number)) == expected
    for number, (name, value) in enumerate([("TRITON_INTERPRET", "1"), ("LIGHTTHINKER_PDL", "0")]):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not pdl_supported(torch.device("cuda", 2 + number))
    pdl_supported.cache_clear()


def test_window_and_softcap_together_with_large_scores():
    case = attention_case(MIXED, num_heads=4, num_kv_heads=2, key_dim=16)
    assert relative_error(*run(case, scaling=4.0, softcap=50.0, window=24)) < 1e-5


@pytest.mark.parametrize("group", [1, 7])
def test_half_precision_stays_within_the_band_of_a_plain_reference(group):
    case = attention_case(
        MIXED, num_heads=group, num_kv_heads=1, key_dim=64, dtype=torch.float16, seed=3
    )
    out, exact = run(case, scaling=0.125)
    assert float((out.double() - exact).abs().max()) < error_band(case, exact, scaling=0.125)


def test_rows_and_tiles_agree_with_each_other():
    case = attention_case([(80, 40)], num_heads=2, num_kv_heads=1, key_dim=16)
    tiled, exact = run(case, scaling=0.25)
    backend = TritonBackend(case.pool, RowsCapacity(max_rows=40, max_sequences=1, max_pages=5))
    backend.metadata.fill(case.batch, use_tiles=False)
    by_row = backend.attend(
        0, case.query, case.key, case.value, scaling=0.25, softcap=None, window=None
    )
    assert backend.metadata.num_tiles == 0
    assert relative_error(by_row, exact) < 1e-5
    assert relative_error(tiled, exact) < 1e-5


def test_padding_rows_give_zeros_and_store_nothing():
    case = attention_case([(20, 1), (30, 4)], num_heads=4, num_kv_heads=2, key_dim=16)
    capacity = RowsCapacity(max_rows=12, max_sequences=4, max_pages=4)
    backend = TritonBackend(case.pool, capacity)
    full = attention_case([(12, 12)], num_heads=4, num_kv_heads=2, key_dim=16)
    for _ in range(3):  # every host buffer holds the rows of an earlier, larger step
        backend.metadata.fill(full.batch, use_tiles=False)
    backend.metadata.fill(case.batch, num_rows=12, use_tiles=False)

    def padded(x):
        return torch.cat([x, x.new_full((7, *x.shape[1:]), float("nan"))])

    out = backend.attend(
        0,
        padded(case.query),
        padded(case.key),
        padded(case.value),
        scaling=0.25,
        softcap=None,
        window=None,
    )
    exact = dense_attention(case, scaling=0.25)
    assert relative_error(out[:5], exact) < 1e-5
    assert torch.equal(out[5:], torch.zeros_like(out[5:]))
    used = {p for s in case.batch.sequences for p in s.pages}
    unused = [p * 16 + i for p in range(case.pool.num_slots // 16) if p not in used for i in (0, 9)]
    assert case.pool.keys[0][unused].isnan().all(), "padding was stored"


def test_a_row_that_sees_nothing_gives_zeros():
    case = attention_case([(40, 3)], num_heads=2, num_kv_heads=1, key_dim=16)
    sequence = case.batch.sequences[0]
    rows = [Row(0, 0, 0, 0), Row(5, 39, 5, 39), Row(0, 40, 0, 0)]
    batch = PagedBatch(
        [SequenceRows(rows, sequence.indices, sequence.pages, 40)],
        case.batch.page_size,
        case.batch.device,
    )
    out, _ = run(type(case)(case.pool, batch, case.query, case.key, case.value), scaling=0.25)
    assert torch.equal(out[:2], torch.zeros_like(out[:2]))
    assert out[2].abs().max() > 0


def test_smaller_steps_in_the_same_buffers_leave_nothing_behind():
    case = attention_case([(20, 1), (30, 5), (40, 34)], num_heads=2, num_kv_heads=1, key_dim=16)
    backend = TritonBackend(case.pool)
    first = backend.metadata
    for _ in range(2):
        backend.prepare(case.batch)
        backend.attend(0, case.query, case.key, case.value, scaling=0.25, softcap=None, window=None)
        small = PagedBatch(case.batch.sequences[1:2], case.pool.page_size, case.batch.device)
        part = type(case)(case.pool, small, case.query[1:6], case.key[1:6], case.value[1:6])
        backend.prepare(small)
        out = backend.attend(
            0, part.query, part.key, part.value, scaling=0.25, softcap=None, window=None
        )
        assert relative_error(out, dense_attention(part, scaling=0.25)) < 1e-5
    assert backend.metadata is first, "nothing had to grow"
