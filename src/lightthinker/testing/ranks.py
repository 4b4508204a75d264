"""Training in several processes of a host that has no GPU: DDP, FSDP2 and DeepSpeed.

accelerate shards on accelerators only; `become_rank` tells a process that the CPU is one, and that
it multiplies in bf16. Ranks are forked: importing torch anew would take most of a test's time.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import training_args

from lightthinker.train import run as run_module
from lightthinker.train.distributed import checkpoint_format, training_settings
from lightthinker.train.recipe import Recipe
from lightthinker.train.run import train

SECONDS_TO_END = 200
"""After which a rank counts as stuck."""


def _join(rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)


def become_rank(rank: int, world: int, port: int) -> None:
    """Make this process a rank for which the CPU is an accelerator; there is no way back."""
    _join(rank, world, port)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    replaced: Any = training_args
    replaced.is_torch_bf16_gpu_available = lambda: True
    replaced = PartialState
    replaced._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    replaced = run_module
    replaced.training_settings = lambda recipe, on_gpu: training_settings(recipe, on_gpu=True)
    replaced.checkpoint_format = lambda recipe, on_gpu: checkpoint_format(recipe, on_gpu=True)


def train_rank(rank: int, world: int, port: int, recipe: Recipe, resume: bool) -> None:
    """What each rank runs: `train` of a recipe whose `trainer.use_cpu` is false."""
    become_rank(rank, world, port)
    train(recipe, resume=resume)


def train_ddp_rank(rank: int, world: int, port: int, recipe: Recipe, resume: bool) -> None:
    """What each rank of plain DDP on CPUs runs, which needs no pretence."""
    _join(rank, world, port)
    train(recipe, resume=resume)


def start_ranks(
    recipe: Recipe,
    *,
    world: int = 2,
    resume: bool = False,
    target: Callable[..., None] = train_rank,
) -> list[Any]:
    """Start the processes of a run and return them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=target, args=(rank, world, port, recipe, resume))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def exit_codes(ranks: list[Any]) -> list[int | None]:
    """Wait for the processes and return how each ended; None if it has not."""
    for process in ranks:
        process.join(SECONDS_TO_END)
    return [process.exitcode for process in ranks]
