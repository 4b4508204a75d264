"""The tokenizer of models trained on the task families: words, single digits, bytes for the rest.

Its vocabulary is every token that the families write, found by generating problems, so that a trace
is as many tokens as `tasks.count_tokens` says; any other text falls back to bytes and survives the
round trip.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightthinker.tasks import FAMILIES, generate
from lightthinker.tasks.tokenization import TOKEN_PATTERN, tokenize

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
THINK, END_THINK = "<think>", "</think>"

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROBLEMS_PER_FAMILY = 400


def build_task_tokenizer(
    extra_text: str = "compress output continue to according previous content",
) -> Any:
    """Build the tokenizer; the same on every machine.

    Args:
        extra_text: Words to include beside the families' (the descriptions that initialise new
            tokens).
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(extra_text)),
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@lru_cache
def _tokenizer_json(extra_text: str) -> str:
    words = {w for text in _texts() for w in tokenize(text)} | set(tokenize(extra_text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = {to_bytes.pre_tokenize_str(word)[0][0] for word in words}
    entries = [*alphabet, *sorted(spelled - set(alphabet))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(entries)}, merges=[], ignore_merges=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(TOKEN_PATTERN.pattern), "isolated"), to_bytes]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, USER, ASSISTANT, "<|system|>", END])
    tokenizer.add_tokens(
        [AddedToken(THINK, normalized=False), AddedToken(END_THINK, normalized=False)]
    )
    return tokenizer.to_str()


def _texts() -> list[str]:
    texts = []
    for family in FAMILIES:
        for seed in range(PROBLEMS_PER_FAMILY):
            problem = generate(family, seed=seed, difficulty="mixed")
            texts.append(f"{problem.question}\n{problem.response}")
    return texts
