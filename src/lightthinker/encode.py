"""A reasoning trace -> token ids, labels, layout.

    [prompt][thought 1, trigger][g1 .. gC][continue][thought 2, trigger] ... [reasoning_end, answer,
    eos]

Loss falls on thoughts, triggers and the answer; never on prompt, gists or continue (AnLLM's anchor
is sampled and so a target). Source: paper section 3.2; REFERENCE of upstream's `dataset.py`. Knows
nothing of packing or batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightthinker.compression import CompressionConfig
from lightthinker.errors import CheckpointError, DataError
from lightthinker.layout import IntArray, Role, TokenLayout
from lightthinker.layout_builder import LayoutBuilder

IGNORE_INDEX = -100
Message = Mapping[str, str]


@dataclass(frozen=True)
class Example:
    """One encoded trace: `input_ids` and `labels` are int32 [n], `layout` has n tokens."""

    input_ids: IntArray
    labels: IntArray
    layout: TokenLayout

    def __len__(self) -> int:
        return len(self.input_ids)


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    reasoning_begin: str,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Render messages with the tokenizer's chat template, up to where reasoning begins.

    Args:
        tokenizer: Its chat template renders.
        messages: The conversation.
        reasoning_begin: Text put after the generation prompt, unless the template ends with it.
        template_kwargs: Further variables for the template.

    Raises:
        CheckpointError: The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            "The tokenizer has no chat template. Give it one (in a recipe model.chat_template, in "
            "Python tokenizer.chat_template), or pass plain prompts instead of messages "
            "(`generate --raw`)."
        )
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **(template_kwargs or {})
    )
    return text if reasoning_begin and text.endswith(reasoning_begin) else text + reasoning_begin


class Encoder:
    """Encodes traces for one tokenizer and one compression config."""

    def __init__(self, tokenizer: Any, config: CompressionConfig):
        if not config.is_resolved:
            raise CheckpointError(
                "Token ids are not resolved; call lightthinker.tokens.add_tokens first."
            )
        if tokenizer.eos_token_id is None:
            raise CheckpointError("The tokenizer has no eos token; set tokenizer.eos_token.")
        self.tokenizer = tokenizer
        self.config = config

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Render messages with the chat template, up to where reasoning begins."""
        return render_prompt(self.tokenizer, messages, self.config.reasoning_begin)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of `prompt_text(messages)`."""
        return self._ids([self.prompt_text(messages)])[0]

    def encode(
        self,
        messages: Sequence[Message],
        thoughts: Sequence[str],
        answer: str | None,
        *,
        compress: bool = True,
        answer_pieces: Sequence[str] = (),
        retain_thoughts: int | None = None,
        recover: bool = False,
    ) -> Example:
        """Encode one trace.

        Args:
            messages: The conversation before the reasoning: roles system, user, assistant.
            thoughts: Consecutive pieces of the reasoning text.
            answer: The final answer's text. None for a trace that is cut off after its last
                thought: neither the end of reasoning nor eos is written.
            compress: False writes the same visible tokens, triggers included, without gists: full
                chain-of-thought in the token stream of a model that can do both.
            answer_pieces: With `compress_answer`, the answer in the pieces that end as thoughts;
                by default it is one.
            retain_thoughts: Use this in place of the settings' (mixed retention training).
            recover: After each thought's gists, write the thought again from them alone, as a
                target (training only; the settings need a `recover_token`).

        Raises:
            DataError: The trace has no thoughts.
        """
        if not any(t.strip() for t in thoughts):
            raise DataError("the trace has no thoughts")
        config, end = self.config, self.config.reasoning_end
        if retain_thoughts is not None:
            config = dataclasses.replace(config, retain_thoughts=retain_thoughts)
        writer = _Writer(config, compress and config.method != "full", recover=recover)
        prompt = self.prompt_text(messages)
        if config.method in ("full", "token"):
            # The engine knows that reasoning is over once the marker is complete: until then the
            # token-level method cuts segments, here as there.
            marker = end.rstrip() if config.method == "token" and answer is not None else ""
            body = "".join(thoughts).rstrip() + config.thought_suffix + marker
            tails = [] if answer is None else [end[len(marker) :] + answer]
            text_ids = self._ids([prompt, body, *tails])
            writer.prompt(text_ids[0])
            writer.stream(text_ids[1], Role.THOUGHT)
            for ids in text_ids[2:]:
                writer.stream(ids, Role.THOUGHT if config.compress_answer else Role.ANSWER)
        else:
            pieces = [t.rstrip() + config.thought_suffix for t in thoughts if t.strip()]
            tail = "" if answer is None else end + answer
            if config.compress_answer and answer is not None:
                first, *others = answer_pieces or [answer]
                tails = [end + first, *others]
                pieces += [text.rstrip() + config.thought_suffix for text in tails if text.strip()]
                tail = ""
            text_ids = self._ids([prompt, *pieces, *([tail] if tail else [])])
            writer.prompt(text_ids[0])
            for piece in text_ids[1 : 1 + len(pieces)]:
                writer.thought(piece)
            for ids in text_ids[1 + len(pieces) :]:
                writer.stream(ids, Role.ANSWER)
        if answer is not None:
            writer.stream([self.tokenizer.eos_token_id], Role.ANSWER)
        return writer.example()

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


class _Writer:
    """Token ids beside the layout that `LayoutBuilder` writes for them."""

    def __init__(self, config: CompressionConfig, compress: bool, *, recover: bool):
        self.config = config
        self.compress = compress
        self.recover = recover and compress
        self.builder = LayoutBuilder(config)
        self.ids: list[int] = []

    def prompt(self, ids: list[int]) -> None:
        if not self.compress and self.config.prompt_chunk_tokens is not None:
            self.builder.plain_prompt(len(ids))
            self.ids += ids
            return
        self.ids += [
            ids[s] if s >= 0 else self.config.gist_ids[-1 - s]
            for s in self.builder.prompt(len(ids))
        ]

    def thought(self, ids: list[int]) -> None:
        config, builder = self.config, self.builder
        builder.sampled(len(ids))
        self.ids += ids
        if config.has_trigger:
            assert config.trigger_id is not None
            builder.sampled(role=Role.TRIGGER)
            self.ids.append(config.trigger_id)
        if self.compress:
            self._gists()
        else:
            builder.num_thoughts += 1

    def stream(self, ids: list[int], role: Role) -> None:
        """Write tokens; the token-level method compresses every full segment of thought tokens."""
        if self.config.method != "token" or not self.compress or role is Role.ANSWER:
            self.builder.sampled(len(ids), role=role)
            self.ids += ids
            return
        size, done = self.config.segment_tokens, 0
        while done < len(ids):
            take = min(size - (len(self.builder) - self.builder.thought_start), len(ids) - done)
            self.builder.sampled(take)
            self.ids += ids[done : done + take]
            done += take
            if len(self.builder) - self.builder.thought_start == size:
                self._gists()

    def _gists(self) -> None:
        again: list[int] = []
        if self.recover:
            assert self.config.recover_id is not None
            written = self.ids[self.builder.thought_start :]
            again = [self.config.recover_id, *(t for t in written if t != self.config.trigger_id)]
        num_gists, has_continue = self.builder.compress(num_recover=len(again))
        self.ids += self.config.gist_ids[:num_gists]
        self.ids += again
        if has_continue:
            assert self.config.continue_id is not None
            self.ids.append(self.config.continue_id)

    def example(self) -> Example:
        layout = self.builder.build()
        ids = np.array(self.ids, dtype=np.int32)
        targets = [Role.THOUGHT, Role.TRIGGER, Role.ANSWER]
        is_target = np.isin(layout.role, targets)
        if self.config.method == "anllm":
            is_target |= layout.role == Role.GIST
            is_target[: layout.output_start] = False
        is_target |= (layout.role == Role.RECOVER) & (ids != self.config.recover_id)
        return Example(ids, np.where(is_target, ids, IGNORE_INDEX).astype(np.int32), layout)
