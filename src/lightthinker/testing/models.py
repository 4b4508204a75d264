"""Tiny random models of many families, and a small tokenizer.

Enough to test everything but quality.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lightthinker.compression import CompressionConfig
from lightthinker.tokens import add_tokens

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {"sliding_window": 24, "query_pre_attn_scalar": 16}

_LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral+window": {"sliding_window": 24},
    "gemma": {},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": {"original_max_position_embeddings": 4096},
    "olmo2": {},
    "olmo3": {"sliding_window": 24},
    "smollm3": {},
    "granite": {},
    "cohere": {},
    "cohere2": {"sliding_window": 24},
    "glm": {},
    "glm4": {},
    "starcoder2": {"sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "exaone4": {"sliding_window": 24},
    "seed_oss": {},
    "ernie4_5": {},
    "stablelm": {},
    "gpt_neox": {},
    "ministral": {"sliding_window": 24},
    "hunyuan_v1_dense": {},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
}
"""Families the paged engine is tested with.

`name+variant` is the model type `name` with other settings.
"""


def tiny_config(family: str, **overrides: Any) -> Any:
    """Return a fresh config (never share one: models change it)."""
    kind = family.split("+")[0]
    return AutoConfig.for_model(kind, **{**_COMMON, **FAMILIES[family], **overrides})


def tiny_model(
    family: str, *, seed: int = 0, attn_implementation: str = "sdpa", **overrides: Any
) -> Any:
    """Return a random float32 model with weights large enough that logits differ clearly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        tiny_config(family, **overrides),
        attn_implementation=attn_implementation,
        dtype=torch.float32,
    )
    return model.eval()


def byte_tokenizer() -> Any:
    """Return a byte-level tokenizer with a chat template and `<|im_end|>` as eos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_checkpoint(
    folder: str | Path, *, compression: CompressionConfig | None = None, seed: int = 0
) -> Path:
    """Save a random Qwen2 with compression tokens and tokenizer, as `train` would leave it."""
    model, tokenizer = tiny_model("qwen2", seed=seed), byte_tokenizer()
    add_tokens(model, tokenizer, compression or CompressionConfig(num_gists=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
