"""How a model is cut for tensor parallel ranks: transformers' own plan, made to fit.

transformers cuts embedding and output layer by the vocabulary and refuses one that the number of
ranks does not divide, and added special tokens easily make such a vocabulary. Every rank then holds
those two whole, and the layers are cut as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig


def sharding(config: Any) -> DistributedConfig:
    """Return the plan for a model; torch.distributed is set up.

    Args:
        config: The model's.
    """
    plan = config.base_model_tp_plan
    if not plan or config.vocab_size % torch.distributed.get_world_size() == 0:
        return DistributedConfig(tp_plan="auto")
    prefix = AutoModelForCausalLM._model_mapping[type(config)].base_model_prefix
    layers = {name: how for name, how in plan.items() if name.startswith("layers.")}
    return DistributedConfig(tp_plan={f"{prefix}.{name}": how for name, how in layers.items()})
