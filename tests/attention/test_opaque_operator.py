"""Under torch.compile attention is one opaque operator: one graph, no break, the same logits."""

from __future__ import annotations

import torch

from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.attention.paged import PAGED_ATTENTION, paged_attention
from lightthinker.attention.torch_backend import TorchBackend
from lightthinker.engine.runner import ModelRunner
from lightthinker.kvcache.pool import PagePool
from lightthinker.testing.models import tiny_model


@torch.no_grad()
def test_a_compiled_model_has_one_graph_for_all_steps():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny_model("gemma2", num_hidden_layers=2)
    runner = ModelRunner(model)
    assert model.config._attn_implementation == PAGED_ATTENTION
    shapes = runner.probe()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for num_tokens in (9, 5, 7):
        outputs = []
        for forward in (model, compiled):
            pool = PagePool(
                shapes, num_pages=4, page_size=4, dtype=torch.float32, device=torch.device("cpu")
            )
            backend = TorchBackend(pool)
            rows = [Row(0, i + 1, 0, 0) for i in range(num_tokens)]
            step = SequenceRows(rows, list(range(num_tokens)), [2, 0, 3], num_tokens)
            batch = PagedBatch([step], 4, torch.device("cpu"))
            backend.prepare(batch)
            ids = torch.arange(num_tokens)[None] + 10
            with paged_attention(backend):
                out = forward(
                    input_ids=ids,
                    position_ids=torch.arange(num_tokens)[None],
                    use_cache=False,
                    logits_to_keep=torch.tensor([num_tokens - 1, 0]),
                )
            outputs.append((out.logits, pool.keys[1][batch.slots]))
        for eager, traced in zip(*outputs):
            assert (eager - traced).abs().max() < 1e-6
    counters = torch._dynamo.utils.counters
    assert sum(counters["graph_break"].values()) == 0
    assert counters["stats"]["unique_graphs"] == 1
