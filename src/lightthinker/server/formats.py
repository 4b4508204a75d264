"""How a choice looks in `/v1/chat/completions` and in `/v1/completions`."""

from __future__ import annotations

from typing import Any

from lightthinker.engine.outputs import CompletionOutput
from lightthinker.server.choices import Piece
from lightthinker.server.logprobs import TokenText, chat_logprobs, text_logprobs


class ChatFormat:
    """Messages and deltas; reasoning under both of its names.

    Args:
        text_of: Decodes a token, for log-probabilities.
    """

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, text_of: TokenText):
        self._text_of = text_of

    def opening(self) -> dict[str, Any]:
        """Return the first chunk's choice: the role."""
        return {
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a chunk's choice."""
        delta: dict[str, Any] = {}
        if piece.reasoning:
            delta |= _reasoning(piece.reasoning)
        if piece.answer:
            delta["content"] = piece.answer
        return {
            "delta": delta,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
        }

    def whole(self, index: int, piece: Piece, output: CompletionOutput) -> dict[str, Any]:
        """Return a finished choice."""
        message = {"role": "assistant", "content": piece.answer, "refusal": None}
        return {
            "message": message | _reasoning(piece.reasoning or None),
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
            "stop_reason": output.stop_reason,
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return None if piece.logprobs is None else chat_logprobs(piece.logprobs, self._text_of)


class TextFormat:
    """Plain text, reasoning and answer as the model wrote them.

    Args:
        text_of: Decodes a token, for log-probabilities.
    """

    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def __init__(self, text_of: TokenText):
        self._text_of = text_of
        self._offsets: dict[int, int] = {}

    def opening(self) -> None:
        """Text completions open with nothing."""
        return

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a chunk's choice."""
        logprobs = None
        if piece.logprobs is not None:
            offset = self._offsets.get(index, 0)
            logprobs = text_logprobs(piece.logprobs, self._text_of, offset)
            self._offsets[index] = offset + sum(map(len, logprobs["tokens"]))
        return {
            "text": piece.answer,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def whole(self, index: int, piece: Piece, output: CompletionOutput) -> dict[str, Any]:
        """Return a finished choice."""
        return {**self.chunk(index, piece), "stop_reason": output.stop_reason}


def _reasoning(text: str | None) -> dict[str, Any]:
    return {"reasoning_content": text, "reasoning": text}
