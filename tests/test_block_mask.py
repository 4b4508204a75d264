"""Block masks without the dense mask: the blocks torch finds, linear memory, no recompiles."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from lightthinker.block_mask import as_block_mask, expiry_order, sorted_blocks, strip_blocks
from lightthinker.data.packing import pack_row
from lightthinker.encode import Example
from lightthinker.layout import LayoutRules, Role
from lightthinker.layout_builder import LayoutBuilder
from lightthinker.masks import LifetimeBatch, SortedKeys, in_order

TENSORS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
           "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")  # fmt: skip


def random_example(rules, rng):
    builder = LayoutBuilder(rules)
    builder.prompt(int(rng.integers(1, 400)))
    for length in rng.integers(1, 150, 5).tolist():
        builder.sampled(length)
        builder.compress()
    layout = builder.build()
    ids = np.zeros(len(layout), dtype=np.int32)
    return Example(ids, ids, layout)


def lifetime_batch(rules, row_length, seed, num_rows=2):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        examples, room = [], row_length
        while True:
            example = random_example(rules, rng)
            if len(example) > room:
                break
            examples.append(example)
            room -= len(example)
        rows.append(pack_row(examples, row_length, pad_id=0, variants=True))
    return LifetimeBatch(
        *(
            torch.from_numpy(np.stack([row[name] for row in rows]))
            for name in ("expires", "first", "last", "skip")
        )
    )


def torch_s_own(expires):
    """The mask over sorted keys as torch makes it, from the dense one."""
    order, (num_rows, length) = expiry_order(expires), expires.shape
    plain = LifetimeBatch(expires).combine(causal_mask_function)

    def mask(b, h, q, k):
        return plain(b, h, q, order[b, k])

    return create_block_mask(mask, num_rows, None, length, length, device="cpu")


@pytest.mark.parametrize("row_length", [1536, 1700])
@pytest.mark.parametrize("retain", [0, 2])
def test_blocks_of_lifetimes_are_torch_s_own(row_length, retain):
    batch = lifetime_batch(LayoutRules(num_gists=3, retain_thoughts=retain), row_length, seed=1)
    ours, order, place = SortedKeys.by_expiry(LifetimeBatch(batch.expires))
    assert int(ours.full_kv_num_blocks.sum()) > 0
    expected = torch_s_own(batch.expires)
    for name in TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), msg=name)
        assert getattr(ours, name).is_contiguous(), name
    row, query, key = torch.meshgrid(*map(torch.arange, (2, row_length, row_length)), indexing="ij")
    seen = ours.mask_mod(row, 0, query, place[row, key])
    plain = LifetimeBatch(batch.expires).combine(causal_mask_function)
    assert torch.equal(seen, plain(row, 0, query, key))
    assert torch.equal(order.gather(1, place), torch.arange(row_length).expand(2, -1))


@pytest.mark.parametrize("at", [128, 129, 255, 256, 257])
def test_blocks_at_the_edge_of_a_block(at):
    """One key that expires just before, at or after the last query of a block."""
    expires = torch.full((1, 384), 384, dtype=torch.int32)
    expires[0, 7] = at
    ours, expected = SortedKeys.by_expiry(LifetimeBatch(expires)).blocks, torch_s_own(expires)
    for name in TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), msg=name)


def test_sorted_by_expiry_fewer_blocks_are_visited():
    """What compression forgets is not visited either, though gists lie between."""
    builder = LayoutBuilder(LayoutRules(num_gists=9))
    builder.prompt(150)
    while len(builder) < 4000:
        builder.sampled(64)
        builder.compress()
    builder.sampled(4096 - len(builder), role=Role.ANSWER)
    expires = torch.from_numpy(builder.build().expires)[None]
    partial, full = sorted_blocks(expires, expiry_order(expires))
    in_order = strip_blocks(
        LifetimeBatch(expires).combine(causal_mask_function), 1, 4096, 4096, "cpu"
    )
    visited, before = int((partial | full).sum()), int((in_order[0] | in_order[1]).sum())
    assert visited < 0.45 * before, (visited, before)
    assert int(full.sum()) > int(in_order[1].sum())


@pytest.mark.parametrize("window", [None, 200])
def test_blocks_of_any_mask_are_torch_s_own(window):
    rules = LayoutRules(num_gists=3, see_current=True, bi_directional=True)
    batch = lifetime_batch(rules, 1700, seed=2)
    model_mask = sliding_window_causal_mask_function(window) if window else causal_mask_function
    mask = batch.combine(model_mask)
    expected = create_block_mask(mask, 2, None, 1700, 1700, device="cpu")
    ours = as_block_mask(*strip_blocks(mask, 2, 1700, 1700, "cpu"), mask, (1700, 1700))
    for name in TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), msg=name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("bi_directional", [False, True])
def test_a_compiled_kernel_visits_these_blocks_and_no_others(bi_directional):
    """Uncompiled, FlexAttention looks at the mask function alone."""
    torch.compiler.reset()
    rules = LayoutRules(num_gists=3, bi_directional=bi_directional)
    batch, length = lifetime_batch(rules, 700, seed=3, num_rows=1), 700
    if not bi_directional:
        batch = LifetimeBatch(batch.expires)
    blocks, order, place = SortedKeys.by_expiry(batch)
    query, key, value = torch.randn(3, 1, 2, length, 16, generator=torch.Generator().manual_seed(0))
    at = torch.arange(length)
    mask = batch.combine(causal_mask_function)(torch.zeros(1, 1, 1, 1).long(), 0, at[:, None], at)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    sorted_key, sorted_value = in_order(key, order, place), in_order(value, order, place)
    with torch.no_grad():
        found = torch.compile(flex_attention)(query, sorted_key, sorted_value, block_mask=blocks)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_the_dense_mask_is_never_made():
    """65,536 tokens: the dense mask would be 4 GiB, a strip of it is 8 MiB."""
    length = 65_536
    builder = LayoutBuilder(LayoutRules(num_gists=4))
    builder.prompt(100)
    while len(builder) < length - 300:
        builder.sampled(200)
        builder.sampled(role=Role.TRIGGER)
        builder.compress()
    builder.sampled(length - len(builder), role=Role.ANSWER)
    expires = torch.from_numpy(builder.build().expires)[None]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        partial, full = sorted_blocks(expires, expiry_order(expires))
    allocated = max(event.cpu_memory_usage for event in profile.key_averages())
    assert int((partial | full).sum()) < 4 * (length // 128) + 512 * 512
    assert allocated < 64 * 2**20


def test_changing_batches_do_not_recompile():
    """The program is compiled once; `error_on_recompile` turns a second time into an error."""
    torch.compiler.reset()
    heads = torch.randn(1, 2, 1536, 16)
    compiled = torch.compile(flex_attention, backend="eager", dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            expires = lifetime_batch(LayoutRules(num_gists=3), 1536, seed, num_rows=1).expires
            compiled(
                heads, heads, heads, block_mask=SortedKeys.by_expiry(LifetimeBatch(expires)).blocks
            )
        shorter, expires = heads[:, :, :256], expires[:, :256]
        with pytest.raises(Exception, match="Recompil"):
            compiled(
                shorter,
                shorter,
                shorter,
                block_mask=SortedKeys.by_expiry(LifetimeBatch(expires)).blocks,
            )
    torch.compiler.reset()
