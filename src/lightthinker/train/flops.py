"""Floating point operations of a training step, and what devices can do at their best.

6 N per token, as usual (2 forward, 2 for the gradients of activations, 2 for those of weights), N
being the weights that are multiplied with; plus attention, counted over the pairs of query and key
that the lifetimes leave visible. Recomputation is not counted: MFU is about useful work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

PEAK_BF16: dict[str, float] = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 matrix FLOP/s from NVIDIA's data sheets; the longest name that fits counts."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What flops and memory follow from.

    Attributes:
        num_parameters: All parameters.
        num_multiplied: Parameters that each token is multiplied with: without the embedding table
            (unless the head shares it), and of routed experts only those a token visits.
        num_trainable: Parameters that are trained.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Size of a head.
        hidden_size: Width.
        intermediate_size: Inner width of the feed-forward layers.
        vocab_size: Rows of the head.
        is_tied: Whether head and embedding are one matrix.
    """

    num_parameters: int
    num_multiplied: int
    num_trainable: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool

    @classmethod
    def of(cls, model: Any) -> ModelSize:
        """Measure a model, on any device, meta included."""
        config = model.config
        heads = config.num_attention_heads
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        every = {id(p): p for p in model.parameters()}.values()
        total = sum(_num_weights(p) for p in every)
        # Adapters of single rows hide that two weights are one.
        is_tied = head is embedding or bool(config.tie_word_embeddings)
        multiplied = total - (0 if is_tied else embedding.numel())
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        if experts:
            experts_of = [p for n, p in model.named_parameters() if ".experts." in n]
            inside = sum(map(_num_weights, experts_of))
            share = config.num_experts_per_tok / experts
            multiplied -= round(inside * (1 - share))
        return cls(
            num_parameters=total,
            num_multiplied=multiplied,
            num_trainable=sum(p.numel() for p in every if p.requires_grad),
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            vocab_size=head.shape[0],
            is_tied=is_tied,
        )

    def training_flops(self, num_tokens: int, num_pairs: int) -> float:
        """Return the flops of one forward and backward pass.

        Args:
            num_tokens: Tokens processed.
            num_pairs: Pairs of query and visible key, summed over the documents.
        """
        weights = (4 * self.num_multiplied + 2 * min(self.num_trainable, self.num_multiplied)) * 1.0
        attention = 12.0 * self.num_layers * self.num_heads * self.head_dim
        return weights * num_tokens + attention * num_pairs


def _num_weights(parameter: torch.nn.Parameter) -> int:
    """Weights in a parameter; bitsandbytes packs two 4-bit ones into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def peak_flops(device: torch.device) -> float | None:
    """Return the device's peak dense bf16 FLOP/s; None for a CPU or a device not in the table."""
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """Return the peak of a device by its name; the longest entry contained in it counts."""
    fitting = [entry for entry in PEAK_BF16 if entry.lower() in name.lower()]
    return PEAK_BF16[max(fitting, key=len)] if fitting else None
