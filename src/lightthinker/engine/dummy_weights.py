"""Random weights for a config: `load_format="dummy"`, as vLLM calls it.

Speed depends on shapes and not on what the weights say, so a server of a large model can be
measured with a folder that holds a config and a tokenizer. What such a model writes means nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM


def random_model(config: Any, *, dtype: torch.dtype | str, device: torch.device) -> Any:
    """Return a causal LM with weights as its architecture initialises them, always the same ones.

    Args:
        config: The model's.
        dtype: Of the weights; `auto` takes the config's.
        device: Where they are drawn, so that a large model never lies in host memory.
    """
    if isinstance(dtype, str):
        dtype = config.dtype or torch.float32
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return model.eval()
