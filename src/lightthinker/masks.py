"""Layouts as attention masks of any Hugging Face causal LM, without touching its code.

`lt_sdpa` and `lt_flex` are registered with transformers both as attention and as mask functions.
While a `lifetimes` context is open, the model's own mask (causal, sliding, chunked) is intersected
with the layout's. Everywhere else the two names behave as plain `sdpa` and `flex_attention`.

    model.set_attn_implementation("lt_sdpa")
    with lifetimes(LifetimeBatch.from_layouts([layout])):
        model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids))

Always pass the attention mask of ones: without it transformers starts a new document wherever
position ids jump. Shape legend: B rows, S tokens in a row, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import (
    AttentionMaskInterface,
    add_offsets_to_mask_function,
    causal_mask_function,
    sdpa_mask,
)
from transformers.modeling_utils import AttentionInterface

from lightthinker.block_mask import (
    as_block_mask,
    expiry_order,
    sorted_blocks,
    strip_blocks,
)
from lightthinker.layout import TokenLayout, sees

MaskFunction = Callable[..., Any]


@dataclass(frozen=True)
class LifetimeBatch:
    """The layout vectors of a batch, int tensors [B, S].

    The last three are None when no variant uses them.
    """

    expires: torch.Tensor
    first: torch.Tensor | None = None
    last: torch.Tensor | None = None
    skip: torch.Tensor | None = None

    @classmethod
    def from_layouts(cls, layouts: Sequence[TokenLayout], device: str = "cpu") -> LifetimeBatch:
        """Stack layouts of equal length."""

        def stack(name: str) -> torch.Tensor:
            return torch.stack([torch.from_numpy(getattr(x, name)) for x in layouts]).to(device)

        if all(x.is_plain for x in layouts):
            return cls(stack("expires"))
        return cls(*(stack(name) for name in ("expires", "first", "last", "skip")))

    def combine(self, model_mask: MaskFunction) -> MaskFunction:
        """Return the model's own mask function intersected with the lifetimes."""
        expires, first, last, skip = self.expires, self.first, self.last, self.skip
        if first is None or last is None or skip is None:

            def plain(b: Any, h: Any, q: Any, k: Any) -> Any:
                return model_mask(b, h, q, k) & (q < expires[b, k])

            return plain

        def variants(b: Any, h: Any, q: Any, k: Any) -> Any:
            seen = sees(
                q,
                k,
                expires_k=expires[b, k],
                first_q=first[b, q],
                last_q=last[b, q],
                skip_q=skip[b, q],
            )
            return (model_mask(b, h, q, k) | ((k > q) & (k <= last[b, q]))) & seen

        return variants


_current: ContextVar[LifetimeBatch | None] = ContextVar("lightthinker_lifetimes", default=None)


@contextmanager
def lifetimes(batch: LifetimeBatch | None) -> Iterator[None]:
    """Apply these lifetimes to every `lt_sdpa` or `lt_flex` mask built inside the context."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def lt_sdpa_mask(*args: Any, mask_function: MaskFunction, **kwargs: Any) -> torch.Tensor | None:
    """Boolean mask [B, 1, S, S] for SDPA; None means plain causal."""
    batch = _current.get()
    if batch is not None:
        mask_function = batch.combine(mask_function)
        kwargs["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = sdpa_mask(*args, mask_function=mask_function, **kwargs)
    return mask


class SortedKeys(NamedTuple):
    """A mask over keys in another order; see `block_mask`.

    Attributes:
        blocks: The mask.
        order: Key that stands at each place, int64 [B, S].
        place: Where each key stands, int64 [B, S].
    """

    blocks: BlockMask
    order: torch.Tensor
    place: torch.Tensor

    @classmethod
    def by_expiry(cls, batch: LifetimeBatch) -> SortedKeys:
        """Return the lifetimes' mask under a model that is plainly causal."""
        expires = batch.expires
        order, (num_rows, length) = expiry_order(expires), expires.shape
        if batch.first is None:
            until = expires.gather(1, order)

            def mask(b: Any, h: Any, q: Any, place: Any) -> Any:
                return (order[b, place] <= q) & (q < until[b, place])

            blocks = sorted_blocks(expires, order)
        else:
            combined = batch.combine(causal_mask_function)

            def mask(b: Any, h: Any, q: Any, place: Any) -> Any:
                return combined(b, h, q, order[b, place])

            blocks = strip_blocks(mask, num_rows, length, length, expires.device)
        block_mask = as_block_mask(*blocks, mask, (length, length))
        return cls(block_mask, order, torch.argsort(order, dim=1))


class _InOrder(torch.autograd.Function):
    """Another order of tokens, in both directions.

    The gradient goes back by the inverse order, which, other than adding at indices, is exact and
    the same every time.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, place: torch.Tensor) -> Any:
        ctx.save_for_backward(place)
        return torch.take_along_dim(x, order[:, None, :, None], dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (place,) = ctx.saved_tensors
        return torch.take_along_dim(gradients[0], place[:, None, :, None], dim=2), None, None


def in_order(x: torch.Tensor, order: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return [B, H, S, D] with its tokens in another order, which `place` undoes."""
    out: torch.Tensor = _InOrder.apply(x, order, place)  # type: ignore[no-untyped-call]
    return out


def lt_flex_mask(*args: Any, mask_function: MaskFunction, **kwargs: Any) -> BlockMask | SortedKeys:
    """Block mask built from the lifetimes; the dense mask never exists."""
    batch = _current.get()
    lengths = kwargs["q_length"], kwargs["kv_length"]
    has_offset = bool(kwargs.get("q_offset") or kwargs.get("kv_offset"))
    if batch is not None:
        is_causal = mask_function is causal_mask_function
        if is_causal and not has_offset and lengths[0] == lengths[1]:
            return SortedKeys.by_expiry(batch)
        mask_function = batch.combine(mask_function)
    elif (padding := kwargs.get("attention_mask")) is not None:
        inner = mask_function
        mask_function = lambda b, h, q, k: inner(b, h, q, k) & padding[b, k]  # noqa: E731
    if has_offset:
        mask_function = add_offsets_to_mask_function(
            mask_function, kwargs.get("q_offset", 0), kwargs.get("kv_offset", 0)
        )
    blocks = strip_blocks(mask_function, kwargs["batch_size"], *lengths, kwargs["device"])
    return as_block_mask(*blocks, mask_function, lengths)


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of [B, H, Q, D] over [B, H_kv, K, D] under a boolean mask; no mask means causal.

    Softcapped scores (Gemma 2) are computed with plain matrix products, since SDPA cannot cap them.
    """
    is_causal = mask is None and query.shape[2] > 1
    if softcap is None:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=is_causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (
        query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    )
    scores = softcap * torch.tanh(scores / softcap)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value


def lt_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA attention on [B, H, S, D], registered with transformers."""
    _refuse_sinks(kwargs)
    out = masked_attention(
        query, key, value, attention_mask, scaling=scaling, softcap=softcap, dropout=dropout
    )
    return out.transpose(1, 2).contiguous(), None


def _refuse_sinks(kwargs: dict[str, Any]) -> None:
    if kwargs.get("s_aux") is not None:
        raise ValueError("Attention sinks (gpt-oss) are not supported by lt_sdpa and lt_flex.")


_compiled_flex = torch.compile(flex_attention, dynamic=False)


def lt_flex(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask | SortedKeys | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """FlexAttention on [B, H, S, D]; grouped queries of any ratio, KV heads are not repeated."""
    _refuse_sinks(kwargs)
    if dropout:
        raise ValueError(
            "lt_flex has no attention dropout; set attention_dropout to 0 in the model's config."
        )
    # Under autocast RoPE leaves queries and keys in float32; flex wants one dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if isinstance(attention_mask, SortedKeys):
        attention_mask, order, place = attention_mask
        key, value = in_order(key, order, place), in_order(value, order, place)
    score_mod = None
    if softcap is not None:
        score_mod = lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)  # noqa: E731
    compile_here = query.device.type == "cuda" and not torch.compiler.is_compiling()
    attention = _compiled_flex if compile_here else flex_attention
    out: Any = attention(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def register_masks() -> None:
    """Register `lt_sdpa` and `lt_flex` with transformers; idempotent, done on import."""
    for name, attention, mask in (
        ("lt_sdpa", lt_sdpa, lt_sdpa_mask),
        ("lt_flex", lt_flex, lt_flex_mask),
    ):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, mask)


register_masks()
