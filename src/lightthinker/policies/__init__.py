"""Cache methods to compare with: each bounds the KV cache by eviction, one small dataclass each.

Which exist, how they deviate from their papers, and how to add one: docs/policies.md.
"""

from lightthinker.policies.budget import matched_budget
from lightthinker.policies.h2o import H2O
from lightthinker.policies.r_kv import RKV
from lightthinker.policies.random_eviction import RandomEviction
from lightthinker.policies.sepllm import SepLLM
from lightthinker.policies.snapkv import SnapKV
from lightthinker.policies.streaming_llm import StreamingLLM
from lightthinker.policies.tova import TOVA

__all__ = [
    "H2O",
    "RKV",
    "TOVA",
    "RandomEviction",
    "SepLLM",
    "SnapKV",
    "StreamingLLM",
    "matched_budget",
]
