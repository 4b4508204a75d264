"""`lt_paged`: the attention function that unmodified Hugging Face models call inside the engine.

It is registered as an attention function only, never as a mask function, so models build no mask.
Which keys a token sees comes from the step's rows, which the engine hands to the backend before the
forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers.modeling_utils import AttentionInterface

from lightthinker.attention.batch import PagedBatch
from lightthinker.errors import CheckpointError
from lightthinker.kvcache.pool import LayerShape

PAGED_ATTENTION = "lt_paged"


class AttentionBackend(Protocol):
    """What stores and attends; see `TorchBackend` for the shapes."""

    def prepare(self, batch: PagedBatch) -> None:
        """Note the step's rows."""

    def attend(
        self,
        layer: int,
        query_THD: torch.Tensor,
        key_THD: torch.Tensor,
        value_THD: torch.Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Store keys and values of one layer and attend."""
        ...


class ShapeProbe:
    """A backend that only notes what each layer would store; configs are not to be trusted."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}

    def prepare(self, batch: PagedBatch) -> None:
        """Nothing to prepare."""

    def attend(
        self,
        layer: int,
        query_THD: torch.Tensor,
        key_THD: torch.Tensor,
        value_THD: torch.Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Note the shapes; the result is all zeros."""
        self.shapes[layer] = LayerShape(
            key_THD.shape[1], key_THD.shape[2], value_THD.shape[2], window
        )
        return query_THD.new_zeros(*query_THD.shape[:2], value_THD.shape[2])


_backend: ContextVar[AttentionBackend | None] = ContextVar("lightthinker_backend", default=None)


@contextmanager
def paged_attention(backend: AttentionBackend) -> Iterator[None]:
    """Serve `lt_paged` calls with this backend."""
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


def _attend(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    layer: int,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    backend = _backend.get()
    assert backend is not None, "lt_paged runs inside the engine only"
    return backend.attend(
        layer, query_THD, key_THD, value_THD, scaling=scaling, softcap=softcap, window=window
    )


# The pool and the step's rows are looked up when the operator runs and are no arguments of it: a
# compiled graph then survives a pool that was replaced and launch sizes that change, and
# functionalization has no pool to copy. What a layer writes is read by that layer alone, within the
# same call, so the graph needs no edge for it.
_attend_op = torch.library.custom_op("lightthinker::paged_attention", _attend, mutates_args=())


@_attend_op.register_fake
def _attend_fake(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    layer: int,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    return query_THD.new_empty(*query_THD.shape[:2], value_THD.shape[2])


_UNSERVED_ARGUMENTS = {
    "s_aux": "sinks (as gpt-oss has)",
    "position_bias": "a relative position bias",
    "indices": "sparse keys chosen by an index",
    "block_indices": "sparse blocks of keys chosen by an index",
}


def lt_paged(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention on [1, H, T, D]; returns [1, T, H, D_value].

    Raises:
        CheckpointError: The layer asks for what the engine does not do.
    """
    if attention_mask is not None:
        raise CheckpointError("its attention has a mask or a bias of the model's own")
    for argument, feature in _UNSERVED_ARGUMENTS.items():
        if kwargs.get(argument) is not None:
            raise CheckpointError(f"its attention has {feature}")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise CheckpointError("its attention sees later tokens (it is not causal)")
    query_THD, key_THD, value_THD = (t[0].transpose(0, 1) for t in (query, key, value))
    window = (
        kwargs["sliding_window"]
        if "sliding_window" in kwargs
        else getattr(module, "sliding_window", None)
    )
    # Under torch.compile attention is one opaque operator; the detour costs time when eager.
    attend = _attend_op if torch.compiler.is_compiling() else _attend
    out_THD = attend(
        query_THD,
        key_THD,
        value_THD,
        module.layer_idx,
        float(scaling if scaling is not None else query.shape[-1] ** -0.5),
        None if softcap is None else float(softcap),
        window,
    )
    return out_THD[None], None


AttentionInterface.register(PAGED_ATTENTION, lt_paged)
