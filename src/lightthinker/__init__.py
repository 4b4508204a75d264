"""LightThinker: reasoning that compresses its own thoughts and frees their KV cache.

Importing this package loads neither torch nor transformers; `LLM` and friends are loaded on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "AsyncLLM": "lightthinker.engine.async_llm",
    "LLM": "lightthinker.engine.llm",
    "LLMEngine": "lightthinker.engine.engine",
    "SamplingParams": "lightthinker.engine.sampling_params",
    "RequestOutput": "lightthinker.engine.outputs",
    "CompletionOutput": "lightthinker.engine.outputs",
    "CompressionConfig": "lightthinker.compression",
    "TokenLayout": "lightthinker.layout",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "CompressionConfig",
    "LLMEngine",
    "RequestOutput",
    "SamplingParams",
    "TokenLayout",
    "__version__",
]

if TYPE_CHECKING:
    from lightthinker.compression import CompressionConfig
    from lightthinker.engine.async_llm import AsyncLLM
    from lightthinker.engine.engine import LLMEngine
    from lightthinker.engine.llm import LLM
    from lightthinker.engine.outputs import CompletionOutput, RequestOutput
    from lightthinker.engine.sampling_params import SamplingParams
    from lightthinker.layout import TokenLayout


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lightthinker' has no attribute {name!r}")
