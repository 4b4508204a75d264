"""Sampled ids -> visible text, token by token.

Triggers become the separator, other special tokens vanish.
"""

from __future__ import annotations

from typing import Any

from lightthinker.compression import CompressionConfig


class Detokenizer:
    """Decodes one sequence incrementally.

    Text is only emitted once no later token can change it.
    """

    def __init__(self, tokenizer: Any, config: CompressionConfig | None):
        self.tokenizer = tokenizer
        self.trigger_id = config.trigger_id if config else None
        self.trigger_text = config.separator.removeprefix(config.thought_suffix) if config else ""
        self.text = ""
        self._ids: list[int] = []
        self._begin = 0
        self._emitted = 0

    def push(self, token_id: int) -> str:
        """Add a sampled token; return the text it makes visible."""
        if token_id == self.trigger_id:
            return self.flush() + self._emit(self.trigger_text)
        self._ids.append(token_id)
        before = self._decode(self._ids[self._begin : self._emitted])
        after = self._decode(self._ids[self._begin :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._begin, self._emitted = self._emitted, len(self._ids)
        return self._emit(after[len(before) :])

    def flush(self) -> str:
        """Emit what was held back, an unfinished character as it is, and forget the context."""
        before = self._decode(self._ids[self._begin : self._emitted])
        after = self._decode(self._ids[self._begin :])
        self._ids, self._begin, self._emitted = [], 0, 0
        return self._emit(after[len(before) :])

    def _emit(self, text: str) -> str:
        self.text += text
        return text

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
