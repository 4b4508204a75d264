"""The compaction kernel moves exactly what torch indexing would, overlaps included."""

from __future__ import annotations

import random

import pytest
import torch

from lightthinker.kvcache.pool import LayerShape, PagePool

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")

SHAPES = [LayerShape(2, 16, 16), LayerShape(1, 24, 10), LayerShape(5, 64, 64)]


def pools(page_size, dtype, shapes=SHAPES, num_pages=60):
    """Two pools with the same random contents: moved by kernel and by torch."""
    made = [
        PagePool(
            shapes,
            num_pages=num_pages,
            page_size=page_size,
            dtype=dtype,
            device=torch.device("cpu"),
            kernels=kernels,
            poison=True,
        )
        for kernels in (True, False)
    ]
    torch.manual_seed(0)
    ours, theirs = made
    for a, b in zip([*ours.keys, *ours.values], [*theirs.keys, *theirs.values]):
        a.copy_(torch.randn(a.shape))
        b.copy_(a)
    ours.token_index.copy_(torch.arange(len(ours.token_index)) * 7 + 2**40)
    theirs.token_index.copy_(ours.token_index)
    return ours, theirs


def moves_of(pages, page_size, live, kept):
    slots = [pages[i // page_size] * page_size + i % page_size for i in range(live)]
    pairs = [(slots[old], slots[new]) for new, old in enumerate(kept) if old != new]
    return [s for s, _ in pairs], [t for _, t in pairs]


def same(ours, theirs):
    return all(
        torch.equal(a, b)
        for a, b in zip(
            [*ours.keys, *ours.values, ours.token_index],
            [*theirs.keys, *theirs.values, theirs.token_index],
        )
    )


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_sequences_of_a_step_in_one_call(page_size, dtype):
    """A thought longer than its gists, one shorter (overlap), arbitrary subsets over 32 moves."""
    rng = random.Random(page_size)
    num_pages = 400 // page_size
    ours, theirs = pools(page_size, dtype, num_pages=num_pages)
    pages = list(range(num_pages))
    rng.shuffle(pages)
    keeps = [
        (60, [*range(20), *range(50, 60)]),
        (40, [*range(25), *range(28, 40)]),
        (120, sorted(rng.sample(range(120), 85))),
        (90, [0, 89]),
        (50, list(range(1, 50))),
    ]
    source, target, sizes = [], [], []
    for live, kept in keeps:
        count = -(-live // page_size)
        own, pages = pages[:count], pages[count:]
        s, t = moves_of(own, page_size, live, kept)
        source, target, sizes = source + s, target + t, [*sizes, len(s)]
    ours.move(source, target, sizes)
    theirs.move(source, target, sizes)
    assert same(ours, theirs)
    assert set(target) & set(source), "the case has overlaps"


def test_without_group_sizes_all_moves_are_one_group():
    ours, theirs = pools(4, torch.float32)
    source, target = moves_of([3, 0, 9, 1, 5, 30, 31, 32, 33], 4, 36, list(range(2, 36)))
    for pool in (ours, theirs):
        pool.move(source, target)
        pool.move([], [])
    assert same(ours, theirs)


def test_nan_payloads_survive():
    ours, _ = pools(4, torch.float32, shapes=[LayerShape(1, 16, 16)])
    bits = torch.arange(16, dtype=torch.int32) + 0x7FC00001
    ours.keys[0][5, 0].view(torch.int32).copy_(bits)
    ours.move([5], [2])
    assert torch.equal(ours.keys[0][2, 0].view(torch.int32), bits)


@pytest.mark.parametrize(
    ("source", "target", "sizes", "complaint"),
    [([5, 1], [1, 7], [2], "before it is read"), ([5, 6], [6, 2], [1, 1], "two sequences")],
)
def test_a_poisoning_pool_refuses_moves_out_of_order(source, target, sizes, complaint):
    ours, _ = pools(4, torch.float32, shapes=[LayerShape(1, 16, 16)])
    with pytest.raises(AssertionError, match=complaint):
        ours.move(source, target, sizes)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dims", [(64, 64), (24, 10)], ids=["wide", "narrow"])
@pytest.mark.parametrize("kept", [70, 1])
def test_every_head_keeps_tokens_of_its_own(page_size, dtype, dims, kept):
    """Three sequences of 90 tokens; 70 are two blocks of moves and a part of a third."""
    num_layers, num_heads, live = 2, 3, 90
    shapes = [LayerShape(num_heads, *dims)] * num_layers
    ours, theirs = pools(page_size, dtype, shapes, num_pages=480 // page_size)
    for pool in (ours, theirs):
        pool.keep_scores()
        pool.scores.copy_(torch.arange(pool.scores.numel()).view(pool.scores.shape))
    pages = torch.randperm(480 // page_size, generator=torch.Generator().manual_seed(1))
    slots = (pages[:, None] * page_size + torch.arange(page_size)).flatten()
    slots_Bn = slots[: 3 * 96].view(3, 96)[:, :live]
    draw = torch.rand((3, num_layers, num_heads, live), generator=torch.Generator().manual_seed(2))
    draw[0, 0, 0] = torch.arange(live, 0, -1)  # One head keeps the first, and moves nothing.
    kept_BLHm = draw.topk(kept, dim=-1).indices.sort(dim=-1).values
    source = slots_Bn[:, None, None].expand(-1, num_layers, num_heads, -1).gather(-1, kept_BLHm)
    source_LHM = source.permute(1, 2, 0, 3).flatten(2)
    target = slots_Bn[:, :kept].flatten()
    before = ours.keys[0].clone()
    ours.move_heads(source_LHM, target, kept)
    theirs.move_heads(source_LHM, target, kept)
    assert same(ours, theirs)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.keys[0][slots_Bn[0], 0], before[slots_Bn[0], 0])
    assert not torch.equal(ours.keys[0], before)
