"""Whole decode steps as CUDA graphs: one per number of rows, all in one memory pool.

Decode, gist, continue and prompt tokens are rows alike, so a graph is keyed by nothing but its
number of rows; a step takes the next larger one, the rest is padding (slot -1, sees nothing).
Everything a graph reads lies in static buffers, filled before each replay; samples stay on the
device, where the next step finds the tokens that the host does not know yet. Long prefills, which
the tiled kernel computes better and which keep the GPU busy while Python launches them, and
whatever else does not fit run without a graph.
"""

from __future__ import annotations

import dataclasses
import warnings
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import torch

from lightthinker.attention.batch import PagedBatch, Row, SequenceRows
from lightthinker.attention.paged import AttentionBackend
from lightthinker.attention.rows_metadata import RowsCapacity, may_attend_by_row
from lightthinker.attention.staging import StagedBuffer
from lightthinker.attention.triton_backend import TritonBackend
from lightthinker.compression import CompressionConfig
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.device_sampler import DeviceSampler
from lightthinker.engine.lane import Riders
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.runner import ModelRunner
from lightthinker.engine.step import StepPlan
from lightthinker.kvcache.upload import upload

PREFILL_ROWS = 1024
"""Rows of the largest graph, unless there are more sequences. Without a graph Python takes longer
to launch a step's kernels than the GPU to compute so few rows."""

NUM_INPUTS = 4
"""Lines of input: token ids, positions, place of an unknown token, wanted rows."""


def graph_sizes(max_samples: int, max_rows: int) -> list[int]:
    """Return the numbers of rows that get a graph, ascending.

    The smallest is 2: torch.compile would make a second program for a dimension of size 1.

    Args:
        max_samples: Rows up to which sizes are close together: steps that generate.
        max_rows: Rows of the largest graph.
    """
    sizes = [2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, 1025, 32)]
    sizes += range(1088, max_samples, 64)
    sizes = [s for s in sizes if s < max_samples] + [max(2, max_samples)]
    sizes += range(sizes[-1] // 64 * 64 + 64, max_rows, 64)
    return [s for s in sizes if s < max_rows] + [max(2, max_rows)]


class GraphRunner:
    """Runs steps through captured graphs.

    Args:
        runner: The model.
        backend: Its attention.
        sampler: Draws inside the graph.
        max_rows: Rows of the largest graph.
        max_samples: Most rows of a step that are sampled from, and most sequences.
        max_live_tokens: Live tokens of one sequence beyond which a step runs without a graph.
    """

    def __init__(
        self,
        runner: ModelRunner,
        backend: TritonBackend,
        sampler: DeviceSampler,
        *,
        max_rows: int,
        max_samples: int,
        max_live_tokens: int,
    ):
        self.runner = runner
        self.backend = backend
        self.sampler = sampler
        self.max_samples = max_samples
        self.sizes = graph_sizes(max_samples, max_rows)
        largest = self.sizes[-1]
        max_pages = -(-max_live_tokens // backend.pool.page_size)
        self.metadata = backend.new_metadata(
            RowsCapacity(max_rows=largest, max_sequences=max_samples, max_pages=max_pages)
        )
        self._inputs = StagedBuffer(NUM_INPUTS * largest, runner.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def is_captured(self) -> bool:
        """Whether the graphs are there."""
        return bool(self._graphs)

    def capture(self, on_size: Callable[[int], None] | None = None) -> None:
        """Capture all sizes, the largest first, so that the others fit into its memory.

        Args:
            on_size: Told of each size before it is captured.
        """
        memory = torch.cuda.graph_pool_handle()
        for size in reversed(self.sizes):
            if on_size:
                on_size(size)
            empty = PagedBatch([], self.backend.pool.page_size, self.runner.device)
            self._fill(StepPlan(), empty, size)
            self._compute(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=memory):
                self._compute(size)
            self._graphs[size] = graph

    def run_without(self) -> None:
        """Compile the kernels that no graph holds: those of a long prompt, and compaction.

        Else the first long prompt, or thought, would wait for them, and all other requests with
        it. A prompt is forwarded beside one generating sequence and beside many, for which
        attention is launched otherwise. The pages are free ones, and free again afterwards.
        """
        pool = self.backend.pool
        num_pages = -(-(self.sizes[-1] + 1) // pool.page_size) + 1
        num_pages = min(num_pages, pool.allocator.num_free)
        if num_pages < 2:
            return
        *pages, last = pool.allocator.allocate(num_pages)
        for num_others in dict.fromkeys((1, self.max_samples)):
            self._forward_plainly(pages, last, num_others)
        pool.move([last * pool.page_size], [last * pool.page_size])
        pool.allocator.release([*pages, last])

    def _forward_plainly(self, pages: list[int], last: int, num_others: int) -> None:
        """Run a step of a prompt that fills `pages`, beside sequences of one token in `last`."""
        page_size = self.backend.pool.page_size
        prompt = len(pages) * page_size
        one = SequenceRows(rows=[Row(0, 1, 0, 0)], indices=[0], pages=[last], num_live=1)
        sequences = [
            SequenceRows(
                rows=[Row(0, i + 1, 0, 0) for i in range(prompt)],
                indices=list(range(prompt)),
                pages=pages,
                num_live=prompt,
            ),
            *[one] * num_others,
        ]
        batch = PagedBatch(sequences, page_size, self.runner.device)
        zeros, wanted = [0] * batch.num_rows, [prompt - 1, prompt]
        plan = StepPlan(token_ids=zeros, positions=zeros, sequences=sequences, wanted_rows=wanted)
        logits = self.runner.run(self.backend, batch, plan, None)
        self.sampler.fill([], num_rows=len(logits))
        self.sampler.draw(logits)

    def warm_up(self, say: Callable[[str], None]) -> None:
        """Compile the model and capture all graphs, unless that is done or there is no GPU.

        Args:
            say: Told in words what begins.
        """
        if self.is_captured or self.runner.device.type != "cuda":
            return
        from torch._dynamo.exc import TorchDynamoException

        say("compiling the model")
        self.runner.compile()
        try:
            self.capture(lambda size: say(f"capturing the graph of {size} rows"))
        except TorchDynamoException as error:
            warnings.warn(
                f"This model cannot be compiled, its steps will be slower: {error}", stacklevel=3
            )
            self.runner.compile(False)
            self.capture(lambda size: say(f"capturing the graph of {size} rows"))
        say("compiling the kernels of long prompts and of compaction")
        self.run_without()
        torch.cuda.synchronize()

    def fits(self, plan: StepPlan, batch: PagedBatch, riders: Riders | None = None) -> bool:
        """Whether a graph can run this step."""
        num_riders = 0 if riders is None else len(riders)
        needed = dataclasses.replace(
            RowsCapacity.of(batch),
            max_rows=batch.num_rows + num_riders,
            max_sequences=len(batch.sequences) + num_riders,
        )
        return (
            bool(plan.sampling or num_riders)
            and len(plan.sampling) + num_riders <= self.max_samples
            and self.metadata.capacity.holds(needed)
            and may_attend_by_row((len(s.rows), s.num_live) for s in batch.sequences)
            and all(s.observed is None for s in batch.sequences)
            and not any(s.samples_with_logits for s in plan.sampling)
        )

    def run(
        self,
        plan: StepPlan,
        batch: PagedBatch,
        known: PendingTokens | list[int] | None,
        riders: Riders | None = None,
    ) -> PendingTokens:
        """Run a step that fits.

        Args:
            plan: The step.
            batch: Its rows.
            known: Samples of the step before, if a row's token is one of them.
            riders: Rows of the fast lane, which come before the plan's, as their samples do.
        """
        num_riders = len(riders) if riders else 0
        num_rows = num_riders + len(plan.token_ids)
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        self._fill(plan, batch, size, riders)
        if isinstance(known, list):
            self.sampler.buffer.tokens[: len(known)] = upload(known, self.runner.device)
        self.sampler.fill(plan.sampling, num_rows=min(size, self.max_samples), riders=riders)
        if self._graphs:
            self._graphs[size].replay()
        else:
            self._compute(size)
        return self.sampler.buffer.fetch(num_riders + len(plan.sampling))

    def _fill(
        self, plan: StepPlan, batch: PagedBatch, size: int, riders: Riders | None = None
    ) -> None:
        """Write a step into the static buffers, padded to `size` rows."""
        self.metadata.fill(batch, num_rows=size, use_tiles=False, decoding=riders)
        inputs = self._inputs.next_host().reshape(NUM_INPUTS, -1)
        inputs[:, :size] = 0
        inputs[2, :size] = -1
        first = 0
        if riders:
            first = len(riders)
            inputs[1, :first] = riders.position
            inputs[2, :first] = riders.unknown_from
            inputs[3, :first] = np.arange(first)
        host, num_rows, num_wanted = inputs[:, first:], len(plan.token_ids), len(plan.wanted_rows)
        host[0, :num_rows] = np.maximum(plan.token_ids, 0)
        host[1, :num_rows] = plan.positions
        host[2, plan.unknown_rows] = plan.unknown_from
        host[3, :num_wanted] = np.array(plan.wanted_rows, dtype=np.int32) + first
        self._inputs.upload(inputs.size)

    def _compute(self, size: int) -> None:
        """What a graph holds: substitute unknown tokens, forward, sample."""
        words = self._inputs.device_words.view(NUM_INPUTS, -1)[:, :size]
        token_ids, positions, unknown_from, wanted_rows = (line.clone() for line in words.long())
        wanted_rows = wanted_rows[: self.max_samples]
        samples = self.sampler.buffer.tokens.clamp_min(0)
        unknown = unknown_from >= 0
        token_ids = torch.where(unknown, samples[unknown_from.clamp_min(0)], token_ids)
        eager, self.backend.metadata = self.backend.metadata, self.metadata
        try:
            logits = self.runner.forward(
                self.backend, token_ids, positions, wanted_rows, compiled=True
            )
        finally:
            self.backend.metadata = eager
        self.sampler.draw(logits)


def device_steps(
    runner: ModelRunner,
    backend: AttentionBackend,
    compression: CompressionConfig | None,
    config: EngineConfig,
) -> tuple[DeviceSampler, GraphRunner | None]:
    """Return what samples on the device, and what runs steps as graphs unless `enforce_eager`.

    The graphs are not captured yet. They have room for every sequence's token and for a few groups
    of gists in the same step, or for a prompt that is not long.
    """
    assert isinstance(backend, TritonBackend), "the torch backend has no static buffers"
    group = compression.num_gists + 1 if compression else 0
    max_samples = max(2, config.max_num_seqs + max(group, config.max_num_seqs // 4))
    sampler = DeviceSampler(
        compression.never_sampled if compression else (),
        max_rows=max_samples,
        vocab_size=int(runner.model.get_output_embeddings().weight.shape[0]),
        device=runner.device,
    )
    if config.enforce_eager:
        return sampler, None
    max_live_tokens = min(backend.pool.num_slots, config.max_graph_live_tokens)
    max_rows = max(max_samples, min(PREFILL_ROWS, config.max_num_batched_tokens))
    graphs = GraphRunner(
        runner, backend, sampler,
        max_rows=max_rows, max_samples=max_samples, max_live_tokens=max_live_tokens,
    )  # fmt: skip
    return sampler, graphs
