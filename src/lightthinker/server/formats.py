"""How a choice looks in `/v1/chat/completions` and in `/v1/completions`."""

from __future__ import annotations

from typing import Any

from lightthinker.engine.outputs import CompletionOutput
from lightthinker.server.choices import Piece


class ChatFormat:
    """Messages and deltas; reasoning under both of its names."""

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def opening(self) -> dict[str, Any]:
        """Return the first chunk's choice: the role."""
        return {
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return a chunk's choice."""
        delta: dict[str, Any] = {}
        if piece.reasoning:
            delta |= _reasoning(piece.reasoning)
        if piece.answer:
            delta["content"] = piece.answer
        return {"delta": delta, "logprobs": None, "finish_reason": piece.finish_reason}

    def whole(self, piece: Piece, output: CompletionOutput) -> dict[str, Any]:
        """Return a finished choice."""
        message = {"role": "assistant", "content": piece.answer, "refusal": None}
        return {
            "message": message | _reasoning(piece.reasoning or None),
            "logprobs": None,
            "finish_reason": piece.finish_reason,
            "stop_reason": output.stop_reason,
        }


class TextFormat:
    """Plain text, reasoning and answer as the model wrote them."""

    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def opening(self) -> None:
        """Text completions open with nothing."""
        return

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return a chunk's choice."""
        return {"text": piece.answer, "logprobs": None, "finish_reason": piece.finish_reason}

    def whole(self, piece: Piece, output: CompletionOutput) -> dict[str, Any]:
        """Return a finished choice."""
        return {**self.chunk(piece), "stop_reason": output.stop_reason}


def _reasoning(text: str | None) -> dict[str, Any]:
    return {"reasoning_content": text, "reasoning": text}
