"""A prompt and its parameters -> a request: what can be refused is refused here, by name."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cache, cached_property
from math import inf
from time import monotonic
from typing import Any

from lightthinker.compression import CompressionConfig
from lightthinker.engine.budget import thinking_budget
from lightthinker.engine.detokenizer import Detokenizer
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.reporting import completion
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.sequence import Sequence
from lightthinker.errors import RequestError

Submission = tuple[str, str | SequenceOf[int], SamplingParams | None]
"""What a request is asked for with: its name, its prompt, and how to sample."""


@dataclass
class Request:
    """A request in the engine: its samples, what is made of their tokens, and who is told."""

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    sequences: list[Sequence]
    detokenizers: list[Detokenizer]
    thought_begins: list[int]
    stream: bool
    deadline: float
    was_reported: bool = False

    @property
    def finished(self) -> bool:
        """Whether all samples are finished."""
        return None not in [s.finish_reason for s in self.sequences]

    def output(self, bytes_per_token: int) -> RequestOutput:
        """Report the request as it stands."""
        completions = [
            completion(sequence, detokenizer, bytes_per_token)
            for sequence, detokenizer in zip(self.sequences, self.detokenizers, strict=True)
        ]
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_ids,
            completions,
            self.finished,
            min(s.num_cached_tokens for s in self.sequences),
        )


@dataclass(frozen=True)
class Intake:
    """Makes requests for one engine.

    Attributes:
        tokenizer: The checkpoint's.
        compression: Its settings, or None.
        max_model_len: Positions that the model has.
        vocab_size: Rows of its embedding.
        num_kv_tokens: Tokens that the KV pool holds.
    """

    tokenizer: Any
    compression: CompressionConfig | None
    max_model_len: int
    vocab_size: int
    num_kv_tokens: int

    def request(
        self,
        request_id: str,
        prompt: str | SequenceOf[int],
        params: SamplingParams,
        *,
        stream: bool,
    ) -> Request:
        """Make a request; see `LLMEngine.add_request`."""
        prompt_ids: list[int] = (
            self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        )
        self._check_prompt(prompt_ids)
        compression = self._compression_of(params)
        if params.max_thought_tokens is not None and self._trigger_id is None:
            raise RequestError(
                "max_thought_tokens needs a checkpoint whose thoughts end with a trigger."
            )
        seed = random.getrandbits(62) if params.seed is None else params.seed
        sequences = [
            Sequence(
                request_id,
                index,
                prompt_ids,
                params,
                compression,
                self._end_detector(params, compression),
                self._trigger_id,
                seed + index,
                thinking_budget(params.thinking_token_budget, self.tokenizer, self.compression),
            )
            for index in range(params.n)
        ]
        longest = max(sequences[0].builder.position) + 1
        if longest >= self.max_model_len:
            raise RequestError(
                f"The prompt takes {longest} positions, and the model has {self.max_model_len}: "
                "none is left to answer."
            )
        if len(prompt_ids) >= self.num_kv_tokens:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens and the KV pool holds "
                f"{self.num_kv_tokens}; raise num_kv_tokens."
            )
        return Request(
            request_id,
            prompt if isinstance(prompt, str) else None,
            prompt_ids,
            sequences,
            [Detokenizer(self.tokenizer, self.compression) for _ in sequences],
            [0] * params.n,
            stream,
            inf if params.timeout_s is None else monotonic() + params.timeout_s,
        )

    @cached_property
    def _text_of(self) -> Callable[[int], str]:
        @cache
        def text_of(token_id: int) -> str:
            text: str = self.tokenizer.decode([token_id])
            return text

        return text_of

    @property
    def _trigger_id(self) -> int | None:
        return self.compression.trigger_id if self.compression else None

    def _check_prompt(self, prompt_ids: list[int]) -> None:
        if not prompt_ids:
            raise RequestError("The prompt is empty.")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise RequestError(
                f"The prompt has token ids outside the model's vocabulary of {self.vocab_size}."
            )

    def _compression_of(self, params: SamplingParams) -> CompressionConfig | None:
        available = (
            self.compression if self.compression and self.compression.method != "full" else None
        )
        if params.compression and available is None:
            raise RequestError(
                "This checkpoint has no compression settings; ask with compression=False."
            )
        off = params.compression is False or params.policy is not None
        if params.retain_thoughts is None:
            return None if off else available
        if off or available is None:
            raise RequestError("retain_thoughts is for requests that compress their thoughts.")
        return dataclasses.replace(available, retain_thoughts=params.retain_thoughts)

    def _end_detector(
        self, params: SamplingParams, compression: CompressionConfig | None
    ) -> Callable[[list[int]], bool] | None:
        """Return a check for the end marker in what was sampled, if anything depends on it.

        It looks at decoded text: a tokenizer may merge the marker's end with what follows.
        """
        settings = self.compression
        marker = settings.reasoning_end.strip() if settings else ""
        token_level = compression is not None and compression.method == "token"
        if not marker or settings is None or settings.compress_answer:
            return None
        if not token_level and params.max_thought_tokens is None:
            return None
        window = len(marker) + 8

        def reasoning_over(sampled_ids: list[int]) -> bool:
            # Decoding is slow, and nearly no token holds the marker's last character.
            if marker[-1] not in self._text_of(sampled_ids[-1]):
                return False
            return marker in self.tokenizer.decode(sampled_ids[-window:])

        return reasoning_over


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a sequence: the generation config's and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
