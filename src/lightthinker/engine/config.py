"""EngineConfig: the sizes of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lightthinker.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine.

    Attributes:
        max_num_seqs: Most sequences running at once.
        max_num_batched_tokens: Most tokens forwarded in one step.
        page_size: Tokens per KV page.
        num_kv_tokens: Tokens the KV pool holds. None: what fits on a GPU, 65,536 on a CPU.
        gpu_memory_utilization: Share of a GPU's memory that weights, KV pool and the largest step
            may take together.
        enable_prefix_caching: Keep the full pages of finished prompts findable, and share them
            between requests and samples that begin alike.
        async_scheduling: Prepare and launch a step before the tokens of the step before it are
            known, so that the device never waits for Python; a thought's gists then come one step
            later. None: on a GPU.
        attention_backend: `torch`, `triton`, or `auto`: Triton on CUDA, torch on a CPU.
        enforce_eager: Neither compile the model nor capture CUDA graphs.
        fuse_projections: Where the model is compiled and whole on one GPU, compute q, k and v in
            one matmul, gate and up in one, and RoPE's angles once a step. Their weights are laid
            side by side in the model and take no more memory.
        max_graph_live_tokens: Live tokens of one sequence beyond which a step runs without a graph.
        max_stream_updates_per_s: Most reports a second on requests that stream, over all of them,
            which take turns; the first and the last state of each are always reported. Reports are
            cumulative: fewer of them carry more text each.
        poison_freed_pages: Fill freed KV with NaN (for tests).
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 4096
    page_size: int = 16
    num_kv_tokens: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    async_scheduling: bool | None = None
    attention_backend: str = "auto"
    enforce_eager: bool = False
    fuse_projections: bool = True
    max_graph_live_tokens: int = 32_768
    max_stream_updates_per_s: float = inf
    poison_freed_pages: bool = False

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "page_size", "num_kv_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; it must be at least 1.")
        if not self.max_stream_updates_per_s > 0:
            raise RequestError(
                f"max_stream_updates_per_s is {self.max_stream_updates_per_s}; it must be greater "
                "than 0 (inf for no limit)."
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise RequestError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be in (0, 1]."
            )
