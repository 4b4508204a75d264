"""Prompts and messages -> token ids, with a tokenizer of the server's own.

Fast tokenizers must not be used from two threads at once, and the engine's thread decodes with the
model's: here is a copy, used by one worker thread only, so that a long prompt does not hold up the
event loop. Chat templates are the checkpoint's, rendered in transformers' sandbox; a request may
only set variables that its template reads.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jinja2
import jinja2.meta

from lightthinker.encode import render_prompt
from lightthinker.engine.llm import LLM
from lightthinker.errors import LightThinkerError
from lightthinker.server.errors import APIError
from lightthinker.server.protocol import Message

T = TypeVar("T")

_RESERVED = frozenset(
    [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "conversation",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "raise_exception",
        "strftime_now",
        "namespace",
        "range",
        "dict",
        "lipsum",
        "cycler",
        "joiner",
    ]
)
_EFFORT = "reasoning_effort"
_SWITCH = "enable_thinking"


class Prompts:
    """Renders, encodes and decodes for the server.

    Args:
        llm: The checkpoint; only its tokenizer's copy is used.
    """

    def __init__(self, llm: LLM):
        self.tokenizer = copy.deepcopy(llm.tokenizer)
        self.compression = llm.compression
        self.vocab_size = llm.vocab_size
        self.template_variables = _template_variables(self.tokenizer)
        self._token_texts: dict[int, str] = {}
        self._decoder = copy.deepcopy(llm.tokenizer)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lightthinker-tokenizer")

    async def chat(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        reasoning_effort: str | None = None,
    ) -> tuple[list[int], bool]:
        """Return a conversation's token ids, and whether the model is about to reason.

        Raises:
            APIError: 400 for variables the template does not read, an effort it cannot follow, or
                messages it refuses.
        """
        variables = self._variables(template_kwargs or {}, reasoning_effort)
        return await self._run(lambda: self._chat([m.rendered() for m in messages], variables))

    async def text(self, prompt: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a raw prompt."""
        return await self._run(lambda: self._encode(prompt, add_special_tokens))

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone; for the event loop's thread."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self._decoder.decode([token_id])
        return text

    async def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Return each token as the vocabulary spells it."""
        return await self._run(lambda: list(self.tokenizer.convert_ids_to_tokens(list(ids))))

    async def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included.

        Raises:
            APIError: 400 for an id outside the vocabulary.
        """
        if any(i >= self.vocab_size for i in ids):
            message = f"tokens must be ids below {self.vocab_size}, the size of the vocabulary."
            raise APIError(400, message, param="tokens")
        return await self._run(lambda: str(self.tokenizer.decode(list(ids))))

    async def num_tokens_until(self, ids: Sequence[int], marker: str) -> int:
        """Return how many of the ids it takes until their text holds the marker; else all."""

        def search() -> int:
            low, high = 0, len(ids)
            while low < high:
                middle = (low + high) // 2
                if marker in self.tokenizer.decode(list(ids[:middle])):
                    high = middle
                else:
                    low = middle + 1
            return low

        return await self._run(search)

    def close(self) -> None:
        """End the worker thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)

    def _variables(self, given: dict[str, Any], effort: str | None) -> dict[str, Any]:
        for name in given:
            if name not in self.template_variables:
                known = ", ".join(sorted(self.template_variables)) or "none"
                raise APIError(
                    400,
                    f"The model's chat template reads no variable '{name}' (it reads: {known}).",
                    param="chat_template_kwargs",
                )
        return given | self._effort(effort)

    def _effort(self, effort: str | None) -> dict[str, Any]:
        """Return what `reasoning_effort` means to this template."""
        if effort is None:
            return {}
        if effort == "none" and _SWITCH in self.template_variables:
            return {_SWITCH: False}
        if effort != "none" and _EFFORT in self.template_variables:
            return {_EFFORT: effort}
        raise APIError(
            400,
            f"The model's chat template cannot follow reasoning_effort '{effort}'. Leave it out; "
            "thinking_token_budget limits reasoning for any model.",
            param=_EFFORT,
        )

    def _chat(
        self, messages: list[dict[str, str]], variables: dict[str, Any]
    ) -> tuple[list[int], bool]:
        begin = self.compression.reasoning_begin if self.compression else ""
        end = self.compression.reasoning_end.strip() if self.compression else ""
        try:
            text = render_prompt(self.tokenizer, messages, "", variables)
            reasons = bool(end) and not text.rstrip().endswith(end)
            if reasons:
                text = text if text.endswith(begin) else text + begin
            return self._encode(text, False), reasons
        except (LightThinkerError, APIError):
            raise
        except Exception as error:  # a template and its caller's variables can raise anything
            raise APIError(
                400, f"The chat template refuses these messages: {error}", param="messages"
            ) from error

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise APIError(400, "The text holds an unpaired surrogate; send Unicode.") from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids


def _template_variables(tokenizer: Any) -> frozenset[str]:
    """Return the variables that the chat template reads and a request may set."""
    if not tokenizer.chat_template:
        return frozenset()
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(
        _without_generation_tags(tokenizer.get_chat_template())
    )
    reserved = _RESERVED | set(tokenizer.special_tokens_map)
    return frozenset(jinja2.meta.find_undeclared_variables(tree) - reserved)


def _without_generation_tags(template: str) -> str:
    """Remove transformers' own block tags, which jinja does not know."""
    for tag in ("generation", "endgeneration"):
        for form in (f"{{% {tag} %}}", f"{{%- {tag} -%}}", f"{{%- {tag} %}}", f"{{% {tag} -%}}"):
            template = template.replace(form, "")
    return template
