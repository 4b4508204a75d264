"""Log-probabilities in OpenAI's two forms.

They cover every sampled token: reasoning, triggers and the end of reasoning included. A token's
text is what the tokenizer decodes it to alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from lightthinker.engine.outputs import TokenLogprob

TokenText = Callable[[int], str]

LEAST = -9999.0
"""Stands for minus infinity, which JSON lacks (a forced token may have no probability)."""


def chat_logprobs(entries: Sequence[TokenLogprob], text_of: TokenText) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        text = text_of(token_id)
        return {
            "token": text,
            "logprob": max(logprob, LEAST),
            "bytes": list(text.encode("utf-8", "replace")),
        }

    content = [
        one(e.token_id, e.logprob) | {"top_logprobs": [one(i, p) for i, p in e.top.items()]}
        for e in entries
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    entries: Sequence[TokenLogprob], text_of: TokenText, offset: int
) -> dict[str, Any]:
    """Return the `logprobs` of a text choice.

    Args:
        entries: One per token.
        text_of: Decodes a token.
        offset: Characters of the tokens before these.
    """
    tokens = [text_of(e.token_id) for e in entries]
    offsets = list(itertools.accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else []
    return {
        "tokens": tokens,
        "token_logprobs": [max(e.logprob, LEAST) for e in entries],
        "top_logprobs": [
            {text_of(i): max(p, LEAST) for i, p in e.top.items()} or None for e in entries
        ],
        "text_offset": offsets,
    }
