"""In-graph sampling in Triton's interpreter: candidate sets, distributions, batch invariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightthinker.attention.triton.sample import sample
from lightthinker.attention.triton.sampling_batch import RowSampling, SamplingBatch
from lightthinker.attention.triton.sampling_cut import find_cuts
from lightthinker.testing.sampling import candidates, exponential, philox, race_winner

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
CPU = torch.device("cpu")


def draw(logits, rows, *, batch=None, padding=0):
    batch = batch or SamplingBatch(
        max_rows=len(rows) + padding, vocab_size=logits.shape[1], device=CPU, max_forbidden=4
    )
    batch.fill(rows)
    tokens = torch.full((len(logits),), -7)
    valid = torch.zeros(len(logits), dtype=torch.bool)
    sample(logits.clone(), batch, tokens, valid)
    return tokens, valid


SETTINGS = {
    "top-k": {"top_k": 5},
    "top-k 1": {"top_k": 1},
    "top-p": {"top_p": 0.7},
    "top-p tiny": {"top_p": 1e-6},
    "min-p": {"min_p": 0.2},
    "min-p below top-k": {"min_p": 0.5, "top_k": 12},
    "all": {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7},
    "forbidden": {"top_k": 4, "forbidden": (0, 3, 11)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_can_be_sampled_is_what_sorting_would_keep(name):
    torch.manual_seed(1)
    logits = torch.randn(2, 300) * 3
    logits[1] *= 0.1
    setting = RowSampling(**{"temperature": 0.9, **SETTINGS[name]}, seed=5)
    expected = [set(candidates(x, setting).nonzero().flatten().tolist()) for x in logits]
    kept = [kernel_candidates(x, setting) for x in logits]
    assert kept == expected
    if name == "top-k":
        assert len(kept[0]) == 5


def kernel_candidates(logits, setting):
    vocab = len(logits)
    batch = SamplingBatch(max_rows=1, vocab_size=vocab, device=CPU, max_forbidden=4)
    batch.fill([setting])
    x = logits[None].clone()
    x[0, list(setting.forbidden)] = float("-inf")
    cut = find_cuts(x, batch).cut
    bits = (x[0] / torch.tensor(setting.temperature)).view(torch.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return set(((order > cut[0]) & (x[0] > float("-inf"))).nonzero().flatten().tolist())


def test_ties_at_the_cut_stay_together():
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, -1.0])
    assert kernel_candidates(logits, RowSampling(temperature=1.0, top_k=2)) == {0, 1, 2, 3}
    assert kernel_candidates(logits, RowSampling(temperature=1.0, top_p=0.6)) == {0, 1, 2, 3}


def test_greedy_takes_the_largest_allowed_id_and_the_first_of_equals():
    logits = torch.zeros(3, 5000)
    logits[0, [4200, 4900]] = 3.0
    logits[1, [17, 4999]] = torch.tensor([5.0, 4.0])
    logits[2, 8] = float("nan")
    logits[2, 4097] = 1.0
    rows = [RowSampling(), RowSampling(forbidden=(17,)), RowSampling(top_k=3, top_p=0.1)]
    tokens, valid = draw(logits, rows)
    assert tokens.tolist() == [4200, 4999, 4097]
    assert valid.all()


def test_philox_is_the_published_one():
    """Known-answer vectors of the Random123 library for a zero counter and key."""
    words = philox(0, np.array([0]), np.array([0]))
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_the_sampled_id_wins_the_exponential_race():
    torch.manual_seed(4)
    logits = torch.randn(6, 9000) * 2
    rows = [
        RowSampling(temperature=1.0, seed=7),
        RowSampling(temperature=0.5, seed=2**64 - 1, step=1000),
        RowSampling(temperature=5.0, seed=2**40 + 3, step=3),
        RowSampling(temperature=1.0, seed=-5, top_p=0.8),
        RowSampling(temperature=1.3, seed=9, top_k=2000),
        RowSampling(temperature=1.0, seed=10, min_p=0.01),
    ]
    tokens, _ = draw(logits, rows)
    assert tokens.tolist() == [race_winner(x, row) for x, row in zip(logits, rows)]


def test_the_race_follows_the_probabilities():
    """Chi-square of 20,000 draws of the same race; 20.5 is the 99.9 % quantile."""
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    seeds = np.arange(20_000, dtype=np.uint64)
    columns = []
    for i in range(6):
        words = philox(seeds, np.full(20_000, i), np.full(20_000, 3))
        columns.append(exponential(words[0]) / p[i])
    counts = np.bincount(np.argmin(columns, axis=0), minlength=6)
    assert ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum() < 20.5


def test_a_request_samples_the_same_in_any_batch():
    torch.manual_seed(3)
    logits = torch.randn(5, 4500)
    rows = [
        RowSampling(temperature=1.0, seed=2**63 + 11, step=4),
        RowSampling(temperature=0.7, seed=12, top_p=0.9),
        RowSampling(),
        RowSampling(temperature=1.0, seed=12, top_k=50),
        RowSampling(temperature=2.0, seed=13, min_p=0.01, step=9),
    ]
    together, _ = draw(logits, rows)
    for order in ([3], [4, 0, 1]):
        tokens, _ = draw(logits[order], [rows[i] for i in order], padding=2)
        assert tokens.tolist() == together[order].tolist()


def test_seed_and_step_both_change_the_draw():
    logits = torch.zeros(1, 6000).expand(8, -1)
    changes = [(0, 0), (0, 1), (1, 0), (2**32, 0), (0, 0), (2**31, 0), (0, 2), (2**63, 0)]
    rows = [RowSampling(temperature=1.0, seed=s, step=t) for s, t in changes]
    tokens, _ = draw(logits, rows)
    assert tokens[0] == tokens[4]
    assert len(set(tokens.tolist())) == 7


def test_repetition_penalty_looks_at_the_requests_own_history():
    logits = torch.tensor([[3.0, 2.9, -1.0, 0.5]]).repeat(3, 1)
    batch = SamplingBatch(max_rows=3, vocab_size=4, device=CPU, max_forbidden=1, num_histories=2)
    batch.begin_history(0, [1, 1])
    batch.begin_history(1, [0, 3])
    rows = [
        RowSampling(repetition_penalty=1.5, history=0),
        RowSampling(repetition_penalty=1.5, history=1),
        RowSampling(repetition_penalty=1.5),
    ]
    seen = [draw(logits, rows, batch=batch)[0].tolist() for _ in range(2)]
    assert seen[0] == [0, 1, 0]
    # Both have 0 and 1 behind them now; 0 is still the larger of the two.
    assert seen[1] == [0, 0, 0]
    assert batch.seen[0].tolist() == [1, 1, 0, 0]
    batch.begin_history(0, [2])
    assert batch.seen[0].tolist() == [0, 0, 1, 0]
    batch.begin_history(0, [0])
    negative = torch.tensor([[-1.0, -1.2, -9.0, -9.0]])
    assert int(draw(negative, rows[:1], batch=batch)[0]) == 1
    logits = torch.tensor([[0.1, 0.2, 0.5, -0.4]])
    setting = RowSampling(temperature=1.0, repetition_penalty=10.0, history=0, top_k=2)
    p = candidates(logits[0], setting, seen=[2])
    assert set(p.nonzero().flatten().tolist()) == {0, 1}
    for seed in range(4):
        batch.begin_history(0, [2])
        row = RowSampling(**{**vars(setting), "seed": seed})
        assert int(draw(logits, [row], batch=batch)[0]) in (0, 1)


def test_a_row_with_nothing_left_is_reported_alone():
    logits = torch.zeros(3, 5)
    logits[0] = float("nan")
    logits[1, 2:] = float("-inf")
    rows = [
        RowSampling(temperature=1.0, top_p=0.5),
        RowSampling(temperature=1.0, top_k=1, forbidden=(0, 1)),
        RowSampling(temperature=1.0),
    ]
    tokens, valid = draw(logits, rows)
    assert valid.tolist() == [False, False, True]
    assert all(0 <= t < 5 for t in tokens.tolist())
