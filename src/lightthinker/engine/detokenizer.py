"""Sampled ids -> visible text: triggers become the separator, other special tokens vanish.

Decoding is lazy: ids are only collected until somebody asks for the text, and then only the new
ones are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TokenizersBackend

from lightthinker.compression import CompressionConfig


class Detokenizer:
    """Decodes one sequence; a character is only shown once no later token can change it."""

    def __init__(self, tokenizer: Any, config: CompressionConfig | None):
        self.decode = text_decoder(tokenizer)
        self.separator_id = config.separator_id if config else None
        self.trigger_text = config.separator.removeprefix(config.thought_suffix) if config else ""
        self._shown = ""
        self._ids: list[int] = []
        self._begin = 0
        self._decoded = 0

    @property
    def text(self) -> str:
        """The visible text so far."""
        self._decode_new(final=False)
        return self._shown

    def push(self, token_id: int) -> None:
        """Add a sampled token."""
        if token_id == self.separator_id:
            self.flush()
            self._shown += self.trigger_text
        else:
            self._ids.append(token_id)

    def push_plain(self, token_ids: list[int]) -> None:
        """Add sampled tokens, none of which is the separator."""
        self._ids += token_ids

    def flush(self) -> None:
        """Show what was held back, an unfinished character as it is, and forget the context."""
        self._decode_new(final=True)
        self._ids, self._begin, self._decoded = [], 0, 0

    def truncate(self, length: int) -> None:
        """Cut the text, at a stop string."""
        self.flush()
        self._shown = self._shown[:length]

    def _decode_new(self, *, final: bool) -> None:
        if self._decoded == len(self._ids):
            return
        before = self._decode(self._ids[self._begin : self._decoded])
        after = self._decode(self._ids[self._begin :])
        if after.endswith("\ufffd") and not final:
            return
        self._shown += after[len(before) :]
        self._begin, self._decoded = self._decoded, len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self.decode(ids)


def text_decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Return what decodes ids as the tokenizer does, special tokens left out, spaces as they are.

    A step decodes a few ids for every stream; transformers' own wrapping takes several times as
    long as the decoding, so it is left out where the tokenizer adds nothing to it.
    """
    adds_nothing = (
        isinstance(tokenizer, TokenizersBackend)
        and type(tokenizer)._decode is TokenizersBackend._decode
        and type(tokenizer).decode is TokenizersBackend.decode
    )
    if adds_nothing:
        backend = tokenizer.backend_tokenizer
        return lambda ids: str(backend.decode(ids, skip_special_tokens=True))
    return lambda ids: str(
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
