"""How many KV tokens fit: the device's memory, less weights, less the largest step.

What `gpu_memory_utilization` leaves over is for what comes after the pool and is not in this sum:
the CUDA graphs with their samplers, and what the compiler and the kernels' libraries hold. Where it
is too little, the start fails, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightthinker.attention.paged import ShapeProbe
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.runner import ModelRunner
from lightthinker.errors import RequestError
from lightthinker.kvcache.pool import PagePool

DEFAULT_ON_CPU = 65_536
GIB = 2**30
_OUT_OF_MEMORY = ("out of memory", "alloc_failed")


def num_kv_tokens_that_fit(
    runner: ModelRunner, config: EngineConfig, bytes_per_token: int, *, all_ranks: bool = False
) -> int:
    """Return how many KV tokens the pool gets when the user names no number.

    On a GPU it is what `gpu_memory_utilization` leaves beside the weights and the largest step,
    which is forwarded once to see what it takes.

    Args:
        runner: The model, on its device.
        config: Sizes.
        bytes_per_token: KV bytes of one token, all layers.
        all_ranks: Agree on what fits on every rank of torch.distributed.

    Raises:
        RequestError: Nothing is left.
    """
    if runner.device.type != "cuda":
        return DEFAULT_ON_CPU
    step_bytes = _largest_step(runner, config)
    free, total = torch.cuda.mem_get_info(runner.device)
    cached = torch.cuda.memory_reserved(runner.device) - torch.cuda.memory_allocated(runner.device)
    used = total - free - cached
    budget = int(total * config.gpu_memory_utilization) - used - step_bytes
    num_tokens = budget // bytes_per_token
    if all_ranks:
        least = torch.tensor(num_tokens)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        num_tokens = int(least)
    if num_tokens < config.page_size:
        raise RequestError(
            f"No memory is left for the KV cache: the GPU has {total / GIB:.1f} GiB, of which "
            f"gpu_memory_utilization={config.gpu_memory_utilization} may be used; "
            f"{used / GIB:.1f} GiB are in use (weights and other programs) and a step of "
            f"{config.max_num_batched_tokens} tokens takes {step_bytes / GIB:.1f} GiB. Raise "
            "gpu_memory_utilization, lower max_num_batched_tokens, or load smaller weights."
        )
    return int(num_tokens)


@contextmanager
def start_beside(pool: PagePool, config: EngineConfig) -> Iterator[None]:
    """Tell in a user's words that the memory beside the pool does not do for the graphs.

    Args:
        pool: The KV pool, which has its memory.
        config: The engine's.

    Raises:
        RequestError: The device ran out of memory inside.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        knob = f"gpu_memory_utilization={config.gpu_memory_utilization}"
        if config.num_kv_tokens is not None:
            knob = f"num_kv_tokens={config.num_kv_tokens}"
        raise RequestError(
            "The GPU's memory ran out while the model was compiled and its CUDA graphs were "
            f"captured, which comes beside the weights and a KV cache of {pool.num_slots:,} tokens "
            f"({pool.num_slots * pool.bytes_per_token / GIB:.1f} GiB). Lower {knob} or "
            f"max_num_seqs={config.max_num_seqs}, or start with enforce_eager, without graphs."
        ) from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is this or came while one was handled: an open capture ends with its own.

    CUDA's driver, Triton and cuBLAS, whose memory is not torch's, say it in words.
    """
    while error is not None:
        said = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(w in said for w in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _largest_step(runner: ModelRunner, config: EngineConfig) -> int:
    """Return the bytes that a step of most tokens and most samples takes beside the weights."""
    before = torch.cuda.memory_allocated(runner.device)
    torch.cuda.reset_peak_memory_stats(runner.device)
    rows = torch.zeros(config.max_num_batched_tokens, dtype=torch.long, device=runner.device)
    num_wanted = min(config.max_num_seqs, config.max_num_batched_tokens)
    logits = runner.forward(ShapeProbe(), rows, rows, rows[:num_wanted])
    del logits
    peak = torch.cuda.max_memory_allocated(runner.device)
    torch.cuda.empty_cache()
    # Logits once more in float32, and a tenth for what the kernels hold.
    vocab_size = int(runner.model.get_output_embeddings().weight.shape[0])
    logits_bytes = 4 * num_wanted * vocab_size
    return int(1.1 * (peak - before)) + logits_bytes
