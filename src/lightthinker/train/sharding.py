"""Whole weights in one process only: the first rank reads them, the others receive their shards.

Under FSDP2 every other rank builds the same model without weights (on the meta device: resized
embeddings, adapters and the loss included); accelerate shards it there and sends the weights of the
first rank, one parameter at a time. Here is what that needs of the model: ranks that agree on names
and shapes, buffers with values, ties that survive the way over the meta device, and addresses by
which accelerate tells parameters apart. New rows and adapters are drawn on the first rank alone, so
they are those of a run in one process. Knows no recipe.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightthinker.errors import CheckpointError


class WeightsFromFirstRank(TrainerCallback):  # type: ignore[misc]
    """Readies a model for being sharded from the first rank; undone when training begins.

    Every rank makes one, after all changes to the model and before the Trainer.

    Args:
        model: With weights on the first rank, on the meta device elsewhere.
        mixed_precision: Whether trained weights will be float32, whatever they were read as.

    Raises:
        CheckpointError: The model of this rank is another one than that of the first.
    """

    def __init__(self, model: Any, *, mixed_precision: bool):
        self.model = model
        dtypes = _agree(model)
        ties = _ties(model)
        # transformers' own ties go by names that peft's wrappers change.
        model.tie_weights = lambda: _tie(model, ties)
        # accelerate sends parameters, and puts back buffers that the state does not list.
        self._persistent = [
            (module, name)
            for module in model.modules()
            for name in module._buffers.keys() - module._non_persistent_buffers_set
        ]
        for module, name in self._persistent:
            module._non_persistent_buffers_set.add(name)
        if torch.distributed.get_rank() != 0:
            _give_addresses(model, dtypes, mixed_precision=mixed_precision)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Give the model its method and its persistent buffers back."""
        del self.model.tie_weights
        for module, name in self._persistent:
            module._non_persistent_buffers_set.discard(name)


def from_first_rank(value: Any) -> Any:
    """Return what the first rank passed in; what the others pass does not matter."""
    sent = [value]
    torch.distributed.broadcast_object_list(sent, src=0)
    return sent[0]


@torch.no_grad()
def gathered_state(
    model: Any, *, trained_only: bool = False, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return a sharded model's whole weights, on the CPU of the first rank; none on the others.

    Every rank calls in. One parameter at a time is whole on a device, and none on other hosts.

    Args:
        model: As accelerate sharded it.
        trained_only: Leave frozen weights out; they are not gathered either.
        dtype: Cast each as it arrives, so that the wider ones are never all there.
    """
    options = StateDictOptions(ignore_frozen_params=trained_only)
    sharded: dict[str, Any] = get_model_state_dict(model, options=options)
    is_first = torch.distributed.get_rank() == 0
    whole: dict[str, torch.Tensor] = {}
    for name, value in sharded.items():
        if isinstance(value, DTensor):  # With cpu_offload it waits in host memory.
            on_device: Any = value.to(value.device_mesh.device_type)
            value = on_device.full_tensor()
        if is_first:
            is_cast = dtype is not None and value.is_floating_point()
            whole[name] = value.to("cpu", dtype if is_cast else value.dtype, copy=True)
    return whole


def _agree(model: Any) -> dict[str, torch.dtype]:
    """Give every rank the first one's buffers; return the dtypes of the first one's weights."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    mine = None
    if torch.distributed.get_rank() == 0:
        dtypes = {name: p.dtype for name, p in model.named_parameters()}
        mine = (shapes, dtypes, {name: buffer.cpu() for name, buffer in model.named_buffers()})
    expected: dict[str, tuple[int, ...]]
    received: dict[str, torch.dtype]
    buffers: dict[str, torch.Tensor]
    expected, received, buffers = from_first_rank(mine)
    differing = sorted({name for name, _ in expected.items() ^ shapes.items()})
    if differing:
        raise CheckpointError(
            "The first rank's model is another one than this rank's: do all hosts have the same "
            f"packages and checkpoint? They differ in {', '.join(differing[:4])}"
        )
    for name, buffer in buffers.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    return received


def _ties(model: Any) -> list[list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def _tie(model: Any, ties: list[list[str]]) -> None:
    for first, *others in ties:
        parameter = model.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)


def _give_addresses(model: Any, dtypes: dict[str, torch.dtype], *, mixed_precision: bool) -> None:
    """Put memory that is never written, hence never there, in place of parameters on meta."""
    for name, parameter in list(model.named_parameters()):
        is_cast = mixed_precision and parameter.requires_grad
        dtype = torch.float32 if is_cast else dtypes[name]
        empty = torch.empty(parameter.shape, dtype=dtype, device="cpu")
        stand_in = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, stand_in)  # type: ignore[no-untyped-call]
