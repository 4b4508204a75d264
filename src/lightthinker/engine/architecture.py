"""Which architectures the paged engine serves: found out before any weight is read.

What a config says plainly is checked first. Then comes a check that needs no list of models: the
model is built on the meta device, where it takes no memory, and one forward shows what its layers
ask for. A model is refused only for something that was seen. Where a forward on the meta device
fails for another reason, the same probe of the loaded model decides.

The engine needs of a model that all a token leaves behind for later tokens is keys and values,
stored under its own position, and that what a later token sees of them is the engine's to say.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from lightthinker.attention.paged import PAGED_ATTENTION, ShapeProbe, paged_attention
from lightthinker.errors import CheckpointError
from lightthinker.kvcache.pool import LayerShape

SERVED_LAYER_TYPES = ("full_attention", "sliding_attention")
"""Values of a config's `layer_types` that the engine knows."""

# One token behind another one, twice: rows 1 and 2 are to be computed alike.
_PROBE_TOKENS, _PROBE_POSITIONS = [1, 2, 2], [3, 7, 7]
_SAME = 1e-2


class LayerProbe(ShapeProbe):
    """Notes what each layer stores, from a forward of the probe's rows in which attention is zero.

    Without attention, rows of the same token and position are computed alike, unless the model
    carries something from row to row by other means, or counts positions of its own.
    """

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
        """Note the shapes; the result is all zeros.

        Raises:
            CheckpointError: The layer's keys and values cannot be stored as one pair per token.
        """
        if layer in self.shapes:
            raise CheckpointError(
                f"layer {layer} attends more than once for each token, to keys or values of their "
                "own"
            )
        if not all(_same_rows(tensor) for tensor in (query_THD, key_THD, value_THD)):
            raise CheckpointError(
                f"the input of layer {layer}'s attention depends on other tokens or on positions "
                "that the model counts itself"
            )
        return super().attend(
            layer, query_THD, key_THD, value_THD, scaling=scaling, softcap=softcap, window=window
        )


def check_architecture(config: Any) -> None:
    """Refuse a model that the engine cannot serve; takes a second or so and no weights.

    Args:
        config: A checkpoint's Hugging Face config.

    Raises:
        CheckpointError: It cannot be served; the message names the feature.
    """
    feature = _plain_feature(config) or _plain_feature(config.get_text_config())
    if feature is None and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        feature = "transformers has no causal language model (AutoModelForCausalLM) of this type"
    if feature is not None:
        raise _refusal(config, feature)
    try:
        with torch.device("meta"):
            # Mixtures of experts have no grouped matmul on the meta device but bfloat16's.
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                dtype=torch.bfloat16,
                attn_implementation=PAGED_ATTENTION,
            )
        probe_layers(model.eval())
    except CheckpointError:
        raise
    except Exception as error:
        # Models that choose their attention class by name do not find ours.
        if isinstance(error, KeyError) and error.args == (PAGED_ATTENTION,):
            feature = "its attention cannot be replaced by a registered function"
            raise _refusal(config, feature) from error
    check_config(config)


def check_config(config: Any) -> None:
    """Refuse what a config says plainly.

    Args:
        config: A checkpoint's Hugging Face config.

    Raises:
        CheckpointError: It asks for something that the engine cannot serve.
    """
    text = config.get_text_config()
    feature = _plain_feature(config) or _plain_feature(text) or _unserved_layer_types(text)
    if feature is not None:
        raise _refusal(config, feature)


def probe_layers(model: Any) -> list[LayerShape]:
    """Forward three tokens to learn what each layer stores.

    Args:
        model: A causal LM in evaluation mode whose attention is `lt_paged`; on the meta device it
            is checked as far as shapes tell.

    Raises:
        CheckpointError: A layer keeps its state elsewhere, or asks of attention what the engine
            does not do.
    """
    try:
        return _probe_layers(model)
    except CheckpointError as error:
        raise _refusal(model.config, str(error)) from error


def _probe_layers(model: Any) -> list[LayerShape]:
    if "position_ids" not in inspect.signature(model.forward).parameters and not model._is_stateful:
        raise CheckpointError("it counts positions itself (its forward takes no position_ids)")
    probe = LayerProbe()
    device = next(model.parameters()).device
    ids = torch.tensor(_PROBE_TOKENS, device=device)
    positions = torch.tensor(_PROBE_POSITIONS, device=device)
    with torch.no_grad(), paged_attention(probe):
        logits_1TV = model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=torch.arange(len(ids), device=device),
        ).logits
    _check_every_layer(model, probe.shapes)
    if not _same_rows(logits_1TV[0]):
        raise CheckpointError("its logits depend on other tokens by other means than attention")
    return [probe.shapes[i] for i in range(len(probe.shapes))]


def _refusal(config: Any, feature: str) -> CheckpointError:
    return CheckpointError(
        f"The engine cannot serve models of type {config.model_type!r}: {feature}. It serves "
        "models whose every layer is softmax attention over the stored keys and values of tokens."
    )


def _plain_feature(config: Any) -> str | None:
    if config.is_encoder_decoder:
        return "it is an encoder and a decoder with cross-attention"
    if getattr(config, "cross_attention_layers", None) or getattr(
        config, "add_cross_attention", False
    ):
        return "it has cross-attention"
    attention = getattr(config, "attn_config", None)
    has_alibi = getattr(config, "alibi", False) or getattr(attention, "alibi", False)
    if has_alibi or config.model_type == "bloom":
        return "its positions are ALiBi, a bias on attention scores"
    return _unpaged_rope(config)


def _unserved_layer_types(config: Any) -> str | None:
    kinds = getattr(config, "layer_types", None) or []
    others = sorted({kind for kind in kinds if kind not in SERVED_LAYER_TYPES})
    if not others:
        return None
    which = (
        f"{_layers(i for i, kind in enumerate(kinds) if kind == other)} of type {other!r}"
        for other in others
    )
    return f"it has {'; '.join(which)}, and not {' or '.join(map(repr, SERVED_LAYER_TYPES))}"


def _unpaged_rope(config: Any) -> str | None:
    """Name a RoPE under which one sequence's length changes the keys of another."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)]
    for rope in nested or [parameters]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            return (
                f"its RoPE type {rope['rope_type']!r} chooses frequencies by the longest sequence "
                "of a batch, which would change keys that are already stored"
            )
    return None


def _check_every_layer(model: Any, shapes: dict[int, LayerShape]) -> None:
    layers = _decoder_layers(model)
    missing = [i for i in range(max(len(layers), max(shapes, default=0) + 1)) if i not in shapes]
    if missing:
        names = sorted({_mixer(layers[i]) for i in missing if i < len(layers)})
        classes = f" ({', '.join(names)})" if names else ""
        where = f"{_layers(missing)}{classes}"
        if model._is_stateful:
            raise CheckpointError(f"{where} keep a recurrent state")
        raise CheckpointError(f"{where} do not call the registered attention function")
    if model._is_stateful:
        # A recurrent part beside the attention of each layer.
        names = sorted({type(layer).__name__ for layer in layers})
        raise CheckpointError(
            f"its layers ({', '.join(names)}) keep a recurrent state beside attention"
        )
    if not shapes:
        raise CheckpointError("it does not call the registered attention function")


def _decoder_layers(model: Any) -> list[nn.Module]:
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers)
    return list(next(lists, []))


def _mixer(layer: nn.Module) -> str:
    """Name the part of a layer that mixes tokens: it is built before experts."""
    names = [
        type(part).__name__
        for part in layer.children()
        if not type(part).__module__.startswith("torch.nn")
    ]
    mixers = (name for name in names if "Norm" not in name and "MLP" not in name)
    return next(mixers, type(layer).__name__)


def _layers(indices: Iterable[int]) -> str:
    """Write layer numbers as `layers 0-2, 4`."""
    runs = [
        [index for _, index in run]
        for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0])
    ]
    return "layers " + ", ".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs
    )


def _same_rows(tensor: torch.Tensor) -> bool:
    """Whether rows 1 and 2 are equal, up to rounding."""
    if tensor.is_meta:
        return True
    first, second = tensor[1].float(), tensor[2].float()
    tolerance = _SAME * float(first.abs().max())
    return torch.allclose(first, second, rtol=0, atol=tolerance, equal_nan=True)
