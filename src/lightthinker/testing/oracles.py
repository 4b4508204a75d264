"""The obvious, slow references that fast code must equal, and a sampler that follows a script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lightthinker.engine.sequence import Sequence
from lightthinker.layout import TokenLayout


@dataclass
class ScriptedSampler:
    """Samples what the script says and records the logits it was shown.

    Attributes:
        scripts: Token ids to sample, by request id.
        logits: Recorded logits by request id: pairs of (index of the token they were read at,
            logits [V]).
        layouts: The layout of each sequence as of its last step, by request id.
        token_ids: All token ids of each sequence, inserted ones included, by request id.
    """

    scripts: dict[str, list[int]]
    logits: dict[str, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)
    sequences: dict[str, Sequence] = field(default_factory=dict)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """Return each sequence's next scripted token; the last one again beyond the end.

        Beyond the end only samples are asked for that will be thrown away, after an end of sequence
        that asynchronous scheduling has not seen yet.
        """
        tokens = []
        for row, sequence in zip(logits, sequences, strict=True):
            name = sequence.request_id
            self.sequences[name] = sequence
            self.logits.setdefault(name, []).append((sequence.num_forwarded - 1, row.clone()))
            script = self.scripts[name]
            tokens.append(script[min(len(sequence.sampled_ids), len(script) - 1)])
        return tokens


def dense_masks(layout: TokenLayout, model_config: Any) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return additive float masks [1, 1, n, n] for `eager` attention.

    One per layer type where the model has several.
    """
    visible = torch.from_numpy(layout.visible())
    index = torch.arange(len(layout))
    window = getattr(model_config, "sliding_window", None)
    layer_types = getattr(model_config, "layer_types", None)

    def additive(sliding: bool) -> torch.Tensor:
        mask = visible
        if sliding and window is not None:
            mask = mask & (index[None, :] > index[:, None] - window)
        return torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None]

    if layer_types is None:
        return additive(sliding=True)
    masks = {kind: additive(sliding=kind == "sliding_attention") for kind in set(layer_types)}
    return masks if len(masks) > 1 else next(iter(masks.values()))


@torch.no_grad()
def dense_logits(
    model: Any, token_ids: list[int] | np.ndarray[Any, Any], layout: TokenLayout
) -> torch.Tensor:
    """Return logits [n, V] of one forward under the dense mask.

    The model must use eager attention.
    """
    assert model.config._attn_implementation == "eager", (
        "additive masks are right under eager attention only"
    )
    ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.long)[None]
    positions = torch.from_numpy(layout.position).long()[None]
    out = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=dense_masks(layout, model.config),
        use_cache=False,
    )
    logits: torch.Tensor = out.logits[0]
    return logits
