"""The Triton kernels on a GPU: float64 by error band, graph replay = eager, large shapes.

Run by hand: `pytest tests/gpu -m gpu`; its output is committed under results/. Slots that no
sequence owns are NaN. The band is attention-gym's: twice what a plain reference in the same dtype
errs, rounding included.
"""

from __future__ import annotations

import random

import pytest
import torch

from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.attention.paged import paged_attention
from lightthinker.attention.rows_metadata import RowsCapacity
from lightthinker.kvcache.pool import LayerShape, PagePool
from lightthinker.testing.attention import attention_case, dense_attention, error_band
from lightthinker.testing.models import tiny_model

pytestmark = pytest.mark.gpu

MIXED = [(37, 1), (300, 10), (9, 9), (450, 200), (1, 1), (1025, 1)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def attend(case, **settings):
    from lightthinker.attention.triton_backend import TritonBackend

    backend = TritonBackend(case.pool)
    backend.prepare(case.batch)
    settings = {"scaling": case.query.shape[2] ** -0.5, "softcap": None, "window": None} | settings
    out = backend.attend(0, case.query, case.key, case.value, **settings)
    exact = dense_attention(case, **settings)
    assert not out.isnan().any(), "an unused slot was read"
    return out, exact, settings


def check(case, **settings):
    out, exact, settings = attend(case, **settings)
    if case.query.dtype == torch.float32:
        assert float((out.double() - exact).norm() / exact.norm()) < 1e-5
    else:
        assert float((out.double() - exact).abs().max()) < error_band(case, exact, **settings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (12, 2), (28, 4), (32, 8), (16, 1), (24, 1)], ids=str)
def test_query_heads_per_kv_head(dtype, heads):
    check(
        attention_case(
            MIXED,
            num_heads=heads[0],
            num_kv_heads=heads[1],
            key_dim=128,
            dtype=dtype,
            device="cuda",
        )
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (256, 256), (192, 128)], ids=str)
def test_head_sizes(dtype, dims):
    check(
        attention_case(
            MIXED,
            num_heads=6,
            num_kv_heads=2,
            key_dim=dims[0],
            value_dim=dims[1],
            dtype=dtype,
            device="cuda",
        )
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 16, 32])
@pytest.mark.parametrize("settings", [{}, {"window": 100}, {"softcap": 20.0}], ids=str)
def test_pages_windows_and_softcap(dtype, page_size, settings):
    case = attention_case(
        MIXED,
        num_heads=14,
        num_kv_heads=2,
        key_dim=64,
        page_size=page_size,
        dtype=dtype,
        device="cuda",
    )
    check(case, **settings)


@pytest.mark.parametrize("num_sequences", [1, 32, 256])
def test_decode_of_many_sequences(num_sequences):
    rng = random.Random(num_sequences)
    lengths = [
        (rng.randint(1, 3000 if num_sequences < 256 else 800), 1) for _ in range(num_sequences)
    ]
    check(
        attention_case(
            lengths, num_heads=28, num_kv_heads=4, key_dim=128, dtype=torch.bfloat16, device="cuda"
        )
    )


def test_a_long_prompt():
    case = attention_case(
        [(3000, 2500)], num_heads=28, num_kv_heads=4, key_dim=128, dtype=torch.bfloat16,
        device="cuda",
    )  # fmt: skip
    check(case)


SETTINGS = [
    {"block_n": 64, "num_warps": 4, "num_stages": 3},
    {"block_n": 64, "num_warps": 4, "num_stages": 3, "looks_ahead": False, "max_registers": 128},
    {"block_n": 16, "num_warps": 1, "num_stages": 6},
    {"block_n": 128, "num_warps": 8, "num_stages": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("page_size", [1, 16, 48])
def test_pieces_are_added_alike_in_every_launch(settings, page_size):
    """Thousands of programs hand pieces over; a lost store or a late read would show up."""
    from lightthinker.attention.rows_metadata import RowsMetadata
    from lightthinker.attention.triton.launch import RowsConfig, pdl_supported
    from lightthinker.attention.triton.rows_attention import rows_attention

    rng = random.Random(page_size)
    lengths = [(rng.randint(1, 900), rng.choice([1, 1, 1, 7])) for _ in range(48)]
    case = attention_case(
        [(max(live, rows), rows) for live, rows in lengths], num_heads=28, num_kv_heads=4,
        key_dim=128, page_size=page_size, dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    metadata = RowsMetadata(
        RowsCapacity.of(case.batch), page_size=page_size, device=case.query.device,
        counters_per_row=4,
    )  # fmt: skip
    metadata.fill(case.batch, use_tiles=False)
    outs = [torch.full_like(case.query, float("nan")) for _ in range(40)]
    pool = case.pool
    for number, out in enumerate(outs):
        rows_attention(
            case.query, pool.keys[0], pool.values[0], pool.token_index, metadata, out,
            scaling=0.1, softcap=None, window=None, store=(case.key, case.value), splits=13,
            config=RowsConfig(num_programs=1, **settings),
            pdl=number % 4 > 0 and pdl_supported(out.device),
        )  # fmt: skip
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert not metadata.arrivals.any()
    exact = dense_attention(case, scaling=0.1)
    assert float((outs[0].double() - exact).abs().max()) < error_band(case, exact, scaling=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_graph_replay_equals_eager(dtype):
    """One graph of 16 rows serves decodes, gists and padding of later steps, bit for bit."""
    from lightthinker.attention.triton_backend import TritonBackend

    shape = {"num_heads": 12, "num_kv_heads": 2, "key_dim": 128, "dtype": dtype, "device": "cuda"}
    case = attention_case([(700, 1), (90, 10), (33, 1), (5, 3)], **shape)
    backend = TritonBackend(case.pool, RowsCapacity(max_rows=16, max_sequences=8, max_pages=64))
    static = [
        torch.zeros(16, *x.shape[1:], dtype=dtype, device="cuda")
        for x in (case.query, case.key, case.value)
    ]
    settings = {"scaling": 0.1, "softcap": None, "window": None}
    empty = PagedBatch([], case.pool.page_size, case.batch.device)
    backend.metadata.fill(empty, num_rows=16, use_tiles=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        backend.attend(0, *static, **settings)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backend.attend(0, *static, **settings)

    sequences = case.batch.sequences
    starts = [0, 1, 11, 12, 15]
    for chosen in ([0, 1, 2, 3], [1], [3, 0], [0, 1, 2, 3]):
        rows = [t for s in chosen for t in range(starts[s], starts[s + 1])]
        batch = PagedBatch([sequences[s] for s in chosen], case.pool.page_size, case.batch.device)
        parts = [x[rows] for x in (case.query, case.key, case.value)]
        for buffer, part in zip(static, parts):
            buffer.fill_(float("nan"))
            buffer[: len(rows)] = part
        backend.metadata.fill(batch, num_rows=16, use_tiles=False)
        graph.replay()
        replayed = captured.clone()
        backend.metadata.fill(batch, num_rows=16, use_tiles=False)
        eager = backend.attend(0, *static, **settings)
        assert torch.equal(replayed, eager)
        assert torch.equal(eager[len(rows) :], torch.zeros_like(eager[len(rows) :]))
        exact = dense_attention(type(case)(case.pool, batch, *parts), scaling=0.1)
        assert float((replayed[: len(rows)].double() - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("page_size", [1, 16, 32])
def test_compaction_equals_torch_indexing(dtype, page_size):
    shapes = [LayerShape(4, 128, 128)] * 6 + [LayerShape(1, 96, 40)]
    num_pages = 64 * 1024 // page_size
    made = [
        PagePool(
            shapes,
            num_pages=num_pages,
            page_size=page_size,
            dtype=dtype,
            device=torch.device("cuda"),
            kernels=kernels,
        )
        for kernels in (True, False)
    ]
    ours, theirs = made
    for a, b in zip([*ours.keys, *ours.values], [*theirs.keys, *theirs.values]):
        a.copy_(torch.randn_like(a))
        b.copy_(a)
    ours.token_index.copy_(torch.arange(ours.num_slots, device="cuda"))
    theirs.token_index.copy_(ours.token_index)
    rng = random.Random(0)
    pages = list(range(num_pages))
    rng.shuffle(pages)
    source, target, sizes = [], [], []
    for number in range(120):
        live = rng.randint(20, 500)
        count = -(-live // page_size)
        own, pages = pages[:count], pages[count:]
        if number % 3:
            first = rng.randint(0, live - 11)
            kept = [*range(first), *range(live - 10, live)]
        else:
            kept = sorted(rng.sample(range(live), live * 2 // 3))
        slots = [own[i // page_size] * page_size + i % page_size for i in range(live)]
        pairs = [(slots[old], slots[new]) for new, old in enumerate(kept) if old != new]
        source += [s for s, _ in pairs]
        target += [t for _, t in pairs]
        sizes.append(len(pairs))
    for pool in made:
        pool.move(source, target, sizes)
    for a, b in zip(
        [*ours.keys, *ours.values, ours.token_index],
        [*theirs.keys, *theirs.values, theirs.token_index],
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sampling_in_a_graph_draws_what_the_reference_draws(dtype):
    from lightthinker.attention.triton.sample import sample
    from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch
    from lightthinker.testing.sampling import race_winner

    vocab, device = 152_064, torch.device("cuda")
    torch.manual_seed(0)
    logits = (torch.randn(8, vocab, device="cuda") * 2.5).to(dtype)
    batch = SamplingBatch(max_rows=8, vocab_size=vocab, device=device, num_histories=2)
    static = torch.zeros_like(logits)
    tokens = torch.zeros(8, dtype=torch.long, device="cuda")
    valid = torch.zeros(8, dtype=torch.bool, device="cuda")
    batch.fill([])
    sample(static, batch, tokens, valid)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample(static, batch, tokens, valid)
    agreed = 0
    for step in range(4):
        rows = [
            RowSampling(),
            RowSampling(temperature=1.0, seed=1, step=step),
            RowSampling(temperature=0.8, seed=2, step=step, top_k=40),
            RowSampling(temperature=1.0, seed=3, step=step, top_p=0.9),
            RowSampling(temperature=1.2, seed=4, step=step, min_p=0.02),
            RowSampling(temperature=1.0, seed=2**63 + 5, step=step, top_k=9, top_p=0.5),
            RowSampling(forbidden=[int(logits[6].argmax())]),
            RowSampling(temperature=0.6, seed=6, step=step, top_k=1000, top_p=0.95),
        ]
        static.copy_(logits)
        batch.fill(rows)
        graph.replay()
        assert valid.all()
        drawn = tokens.tolist()
        assert logits[0, drawn[0]] == logits[0].max()
        assert logits[6, drawn[6]] == logits[6].topk(2).values[1]
        assert drawn[6] not in rows[6].forbidden
        for i in (1, 2, 3, 4, 5, 7):
            agreed += drawn[i] == race_winner(logits[i].float(), rows[i])
        # Same rows in another order and place: the same ids.
        order = [5, 1, 7, 0, 3, 2, 4, 6]
        static.copy_(logits[order])
        batch.fill([rows[i] for i in order])
        graph.replay()
        assert tokens.tolist() == [drawn[i] for i in order]
    # A near-tie of the race may fall the other way in float32.
    assert agreed >= 23, f"{agreed} of 24 draws are the reference's"


VOCAB = 152_064
FILTERS = [
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 50},
    {"temperature": 1.0, "top_p": 0.9},
    {},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 0.02, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.01, "top_k": 100, "top_p": 0.8},
    {"temperature": 1.0},
    {"temperature": 0.01, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1e-4},
    {"temperature": 2.0, "top_p": 0.999},
    {"temperature": 1e4, "top_k": 1000, "top_p": 0.5},
]


def logits_of_many_kinds(num_rows):
    """Like a language model's, random, flat, full of ties, with heavy tails, mostly forbidden."""
    torch.manual_seed(num_rows)
    x = torch.randn(num_rows, VOCAB, device="cuda") * 2.5
    kind = torch.arange(num_rows, device="cuda") % 6
    x[kind == 0, 1000:1040] = torch.linspace(12, 25, 40, device="cuda")
    x[kind == 2] *= 0.05
    x[kind == 3] = (x[kind == 3] * 2).round()
    x[kind == 4] /= torch.randn_like(x[kind == 4])
    x[kind == 5] = x[kind == 5].masked_fill(x[kind == 5] < 7, float("-inf"))
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 128])
@pytest.mark.parametrize("capacity", [64, 32_768], ids=["long search", "list"])
def test_cuts_keep_what_sorting_keeps(num_rows, dtype, capacity):
    from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch
    from lightthinker.attention.triton.sampling_cut import KEEP_ALL, find_cuts
    from lightthinker.testing.sampling import check_cut

    logits = logits_of_many_kinds(num_rows).to(dtype)
    rows = [RowSampling(**FILTERS[i % len(FILTERS)], seed=i) for i in range(num_rows)]
    batch = SamplingBatch(max_rows=num_rows, vocab_size=VOCAB, device=logits.device)
    batch.fill(rows)
    found = find_cuts(logits, batch, capacity=capacity)
    cuts = found.cut.tolist()
    for x, row, cut in zip(logits, rows, cuts, strict=True):
        if row.temperature in (0.0, 1.0) and row.top_p == 1 and row.min_p == 0:
            assert cut == KEEP_ALL.value
        else:
            check_cut(x, row, cut)
    if capacity == 64:
        return
    # As a language model's, and flat ones of 2.5 / 0.6 nats: no long search.
    for i, length in enumerate(found.num_listed.tolist()):
        if i % 6 == 0:
            assert length < 2000 or rows[i].temperature > 1
        if i % 6 == 1 and rows[i].temperature == 0.6:
            assert length < 32_768
    for _ in range(20):
        assert torch.equal(find_cuts(logits, batch).cut, found.cut)
    for i in range(0, num_rows, 9):
        batch.fill([rows[i]])
        assert int(find_cuts(logits[i : i + 1], batch).cut) == cuts[i]


@pytest.mark.parametrize("num_rows", [1, 128])
def test_filtered_sampling_in_a_graph_is_the_eager_one(num_rows):
    from lightthinker.attention.triton.sample import sample
    from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch

    logits = logits_of_many_kinds(num_rows)
    batch = SamplingBatch(max_rows=num_rows, vocab_size=VOCAB, device=logits.device)
    outs = [
        (
            torch.full((num_rows,), -1, device="cuda"),
            torch.zeros(num_rows, dtype=torch.bool, device="cuda"),
        )
        for _ in range(2)
    ]
    batch.fill([])
    sample(logits, batch, *outs[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample(logits, batch, *outs[0])
    for step in range(len(FILTERS)):
        batch.fill(
            [
                RowSampling(**FILTERS[(i + step) % len(FILTERS)], seed=i, step=step)
                for i in range(num_rows)
            ]
        )
        for _ in range(3):
            graph.replay()
            sample(logits, batch, *outs[1])
            assert torch.equal(outs[0][0], outs[1][0])
            assert outs[0][1].all()
            assert outs[1][1].all()


def test_repetition_penalty_marks_what_was_sampled():
    from lightthinker.attention.triton.sample import sample
    from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch

    batch = SamplingBatch(
        max_rows=1, vocab_size=6, device=torch.device("cuda"), num_histories=1, max_forbidden=1
    )
    batch.begin_history(0, [5])
    tokens = torch.zeros(1, dtype=torch.long, device="cuda")
    valid = torch.zeros(1, dtype=torch.bool, device="cuda")
    drawn = []
    for step in range(3):
        batch.fill([RowSampling(repetition_penalty=4.0, history=0, step=step)])
        logits = torch.tensor([[1.0, 3.0, 2.0, 1.5, 0.0, 8.0]], device="cuda")
        sample(logits, batch, tokens, valid)
        drawn.append(int(tokens))
    # 8 / 4 = 2 ties with id 2: the lower id goes first.
    assert drawn == [1, 2, 5]


@torch.no_grad()
def test_a_compiled_model_on_the_kernels_has_no_graph_break():
    from lightthinker.attention.triton_backend import TritonBackend
    from lightthinker.engine.runner import ModelRunner

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runner = ModelRunner(tiny_model("qwen2", num_hidden_layers=2).cuda())
    pool = PagePool(
        runner.probe(), num_pages=8, page_size=16, dtype=torch.float32, device=runner.device
    )
    backend = TritonBackend(pool)
    compiled = torch.compile(runner.model, fullgraph=True, dynamic=True)
    for count in (20, 60, 33):
        step = SequenceRows(
            [Row(0, i + 1, 0, 0) for i in range(count)], list(range(count)), [3, 1, 6, 2], count
        )
        backend.prepare(PagedBatch([step], 16, runner.device))
        inputs = {
            "input_ids": torch.arange(count, device="cuda")[None] + 5,
            "position_ids": torch.arange(count, device="cuda")[None],
            "use_cache": False,
        }
        with paged_attention(backend):
            eager = runner.model(**inputs).logits
            traced = compiled(**inputs).logits
        assert (eager - traced).abs().max() < 1e-4
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
