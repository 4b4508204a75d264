"""Top-k, top-p, min-p as one cut per row, in Triton's interpreter, against sorting in float64."""

from __future__ import annotations

import pytest
import torch

from lightthinker.attention.triton import sampling_cut
from lightthinker.attention.triton.sample import sample
from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch
from lightthinker.attention.triton.sampling_cut import KEEP_ALL, find_cuts
from lightthinker.testing.sampling import check_cut

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
CPU = torch.device("cpu")
VOCAB = 5003
"""Two pieces, the second one not full."""


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch):
    """The interpreter's time is its number of steps."""
    monkeypatch.setattr(sampling_cut, "SEARCH_BLOCK", 2048)
    monkeypatch.setattr(sampling_cut, "BINNED_TOGETHER", 1024)


def peaked(vocab=VOCAB):
    """As a language model's: a few candidates far above the rest."""
    return torch.cat([torch.linspace(9, 21, 30), torch.randn(vocab - 30) * 2])[
        torch.randperm(vocab)
    ]


DISTRIBUTIONS = {
    "flat": lambda: torch.rand(VOCAB) * 0.5,
    "normal": lambda: torch.randn(VOCAB) * 3,
    "peaked": peaked,
    "ties": lambda: (torch.randn(VOCAB) * 2).round(),
    "heavy tails": lambda: torch.randn(VOCAB) / torch.randn(VOCAB),
    "one value": lambda: torch.full((VOCAB,), -1.5),
    "few allowed": lambda: torch.randn(VOCAB).masked_fill(torch.rand(VOCAB) > 0.01, float("-inf")),
}
ROWS = [
    RowSampling(temperature=0.6, top_p=0.95),
    RowSampling(temperature=1.0, top_p=0.5),
    RowSampling(temperature=1.7, top_p=0.999),
    RowSampling(temperature=1.0, top_p=1e-6),
    RowSampling(temperature=1.0, top_p=0.9999999),
    RowSampling(temperature=0.6, top_k=20, top_p=0.95),
    RowSampling(temperature=1.0, top_k=1),
    RowSampling(temperature=0.9, top_k=1000),
    RowSampling(temperature=1.0, min_p=0.02),
    RowSampling(temperature=1.0, min_p=1e-9, top_k=3000),
    RowSampling(temperature=1.3, min_p=0.05, top_k=50, top_p=0.8),
    RowSampling(temperature=1.0, min_p=1.0, top_p=0.9),
    RowSampling(temperature=1e-4, top_k=40, top_p=0.9),
    RowSampling(temperature=1e4, top_k=40, top_p=0.9),
    RowSampling(temperature=1e-4, top_p=0.9),
    RowSampling(temperature=1e4, min_p=0.5, top_p=0.9),
]


def cuts_of(logits, rows, **options):
    batch = SamplingBatch(
        max_rows=len(rows), vocab_size=logits.shape[1], device=CPU, max_forbidden=1
    )
    batch.fill(rows)
    return find_cuts(logits, batch, **options)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_cut_keeps_what_sorting_keeps(name):
    torch.manual_seed(sum(map(ord, name)))
    logits = DISTRIBUTIONS[name]().expand(len(ROWS), -1)
    found = cuts_of(logits, ROWS)
    for row, cut in zip(ROWS, found.cut.tolist()):
        check_cut(logits[0], row, cut)


@pytest.mark.parametrize("name", ["normal", "ties"])
def test_a_list_that_does_not_fit_is_not_needed(name):
    torch.manual_seed(len(name))
    rows = ROWS[::2]
    if name == "normal":
        rows = [RowSampling(temperature=1.0, top_p=0.1 * i) for i in range(3, 10)] + ROWS[5:8]
    logits = DISTRIBUTIONS[name]().expand(len(rows), -1)
    found = cuts_of(logits, rows, capacity=1)
    assert (found.num_listed > 1).sum() > len(rows) // 2
    for row, cut in zip(rows, found.cut.tolist()):
        check_cut(logits[0], row, cut)


def test_lists_are_short_wherever_the_cut_is():
    torch.manual_seed(5)
    vocab = 20_000
    for temperature in (0.1, 0.6, 1.0, 1e4):
        rows = [
            RowSampling(temperature=temperature, **filters)
            for filters in ({"top_p": 0.95}, {"top_k": 20}, {"top_k": 20, "top_p": 0.95})
            if temperature <= 1 or "top_k" in filters
        ]
        found = cuts_of(peaked(vocab).expand(len(rows), -1), rows)
        assert found.num_listed.min() > 0
        assert found.num_listed.max() < 250, "one bin more than the candidates"
    rows = [RowSampling(temperature=0.8, top_p=0.95), RowSampling(temperature=0.8, min_p=0.1)]
    found = cuts_of(torch.randn(2, vocab) * 2.5, rows)
    assert 100 < found.num_listed[0] < 1500, "the bin of one nat, of a nucleus of thousands"
    assert found.num_listed[1] == 0, "min-p alone is known from the top"


def test_rounding_leaves_no_row_without_ids():
    """The mass of the pieces and that of their bins round differently, in the last place."""
    torch.manual_seed(2)
    logits = torch.rand(24, VOCAB) * 5
    row = RowSampling(temperature=1.0, top_p=1 - 2**-24)
    for x, cut in zip(logits, cuts_of(logits, [row] * 24).cut.tolist()):
        check_cut(x, row, cut)


def test_a_cut_depends_on_its_own_row_alone():
    torch.manual_seed(8)
    logits = torch.stack([torch.randn(VOCAB) * 3, peaked(), torch.randn(VOCAB)])[
        torch.arange(8) % 3
    ]
    rows = [RowSampling(), RowSampling(temperature=1.0), *ROWS[:12:2]]
    together = cuts_of(logits, rows)
    assert together.cut[:2].tolist() == [KEEP_ALL.value] * 2
    assert together.num_listed[:2].tolist() == [0, 0]
    order = [7, 1, 3, 0]
    again = cuts_of(logits[order], [rows[i] for i in order])
    assert again.cut.tolist() == together.cut[order].tolist()
    for i in (2, 4):
        assert int(cuts_of(logits[i : i + 1], [rows[i]]).cut) == int(together.cut[i])


@pytest.mark.parametrize("poison", [float("nan"), 3e38])
def test_nothing_is_read_that_was_not_written(monkeypatch, poison):
    torch.manual_seed(9)
    logits = DISTRIBUTIONS["normal"]().expand(5, -1).clone()
    logits[4] = float("-inf")
    rows = ROWS[4:12:2] + ROWS[:1]
    expected = cuts_of(logits, rows)

    def poisoned(shape, dtype, device):
        fill = poison if dtype.is_floating_point else 2**31 - 1
        return torch.full(shape, fill, dtype=dtype, device=device)

    monkeypatch.setattr(sampling_cut.torch, "empty", poisoned)
    assert torch.equal(cuts_of(logits, rows).cut, expected.cut)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_of_a_larger_buffer(dtype):
    torch.manual_seed(10)
    rows = ROWS[::3]
    buffer = (torch.randn(len(rows), VOCAB + 5) * 3).to(dtype)
    logits = buffer[:, :VOCAB]
    for x, row, cut in zip(logits, rows, cuts_of(logits, rows).cut.tolist()):
        check_cut(x, row, cut)


def test_filters_that_filter_nothing():
    logits = torch.randn(3, 397)
    rows = [
        RowSampling(temperature=1.0, top_k=397),
        RowSampling(temperature=1.0, top_k=10**6, top_p=1.0),
        RowSampling(temperature=0.0, top_k=3, top_p=0.5, min_p=0.5),
    ]
    assert cuts_of(logits, rows).cut.tolist() == [KEEP_ALL.value] * 3


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_rows_without_a_finite_top():
    logits = torch.randn(6, VOCAB)
    logits[:2] = float("nan")
    logits[2] = float("-inf")
    logits[3:5, [40, 4700]] = float("inf")
    logits[5, 9] = float("nan")
    filters = [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1, "top_p": 0.9}]
    rows = [RowSampling(temperature=1.0, seed=1, **filters[i % 3]) for i in range(6)]
    batch = SamplingBatch(max_rows=6, vocab_size=VOCAB, device=CPU, max_forbidden=1)
    batch.fill(rows)
    infinite = int(torch.tensor(float("inf")).view(torch.int32))
    assert find_cuts(logits, batch).cut[3:5].tolist() == [infinite - 1] * 2
    tokens, valid = torch.full((6,), -1), torch.zeros(6, dtype=torch.bool)
    sample(logits, batch, tokens, valid)
    assert valid.tolist() == [False, False, False, True, True, True]
    assert tokens[3:5].tolist() == [40, 40]
    assert ((tokens >= 0) & (tokens < VOCAB)).all()


def test_the_repetition_penalty_comes_first():
    torch.manual_seed(11)
    logits = torch.randn(1, VOCAB) * 3
    seen = logits[0].topk(30).indices[::2].tolist()
    row = RowSampling(temperature=0.8, top_p=0.8, repetition_penalty=1.8, history=0)
    batch = SamplingBatch(max_rows=1, vocab_size=VOCAB, device=CPU, num_histories=1)
    batch.begin_history(0, seen)
    batch.fill([row])
    penalized = logits[0].clone()
    penalized[seen] /= 1.8
    for capacity in (1, 4096):
        check_cut(penalized, row, int(find_cuts(logits, batch, capacity=capacity).cut))
