"""A request's fields -> SamplingParams, within the server's limits.

What a request leaves out comes from the checkpoint's generation_config.json if that samples, else
from SamplingParams (greedy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightthinker.engine.llm import LLM
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.server.errors import APIError
from lightthinker.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationBody
from lightthinker.server.settings import ServerSettings

_SAMPLED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True)
class Sampling:
    """Turns requests into SamplingParams for one model.

    Attributes:
        settings: The limits.
        max_model_len: Positions the model has.
        defaults: What a request's missing fields mean.
    """

    settings: ServerSettings
    max_model_len: int
    defaults: dict[str, Any]

    @classmethod
    def of(cls, llm: LLM, settings: ServerSettings) -> Sampling:
        """Read the model's limits and defaults."""
        generation = llm.generation_config
        samples = generation is not None and bool(generation.do_sample)
        found = {name: getattr(generation, name, None) for name in _SAMPLED} if samples else {}
        defaults = {name: value for name, value in found.items() if value is not None}
        return cls(settings, llm.engine.max_model_len, defaults)

    def check(self, body: GenerationBody, num_prompts: int = 1) -> None:
        """Raise APIError 400 for what exceeds a limit that needs no prompt."""
        settings, stops = self.settings, body.stop_strings
        if num_prompts * body.n > settings.max_n:
            _refuse("n", f"{num_prompts} prompts x n={body.n}", f"at most {settings.max_n} choices")
        if len(stops) > settings.max_stop_strings:
            _refuse("stop", f"{len(stops)} strings", f"at most {settings.max_stop_strings}")
        if any(not s or len(s) > settings.max_stop_chars for s in stops):
            _refuse("stop", "an empty or long string", f"1 to {settings.max_stop_chars} characters")
        if len(body.stop_token_ids or ()) > settings.max_stop_strings:
            _refuse("stop_token_ids", "too many ids", f"at most {settings.max_stop_strings}")

    def params(self, body: GenerationBody, num_prompt_tokens: int) -> SamplingParams:
        """Return the parameters of a request.

        Args:
            body: The request.
            num_prompt_tokens: Length of its prompt.

        Raises:
            APIError: 400, a limit is exceeded.
        """
        given = {name: getattr(body, name) for name in _SAMPLED}
        chosen = self.defaults | {k: v for k, v in given.items() if v is not None}
        return SamplingParams(
            n=body.n,
            seed=body.seed,
            stop=tuple(body.stop_strings),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=body.ignore_eos,
            max_tokens=self._max_tokens(body, num_prompt_tokens),
            logprobs=body.num_logprobs,
            priority=body.priority,
            thinking_token_budget=body.thinking_token_budget,
            compression=body.extension.compression,
            max_thought_tokens=body.extension.max_thought_tokens,
            retain_thoughts=body.extension.retain_thoughts,
            **chosen,
        )

    def _max_tokens(self, body: GenerationBody, num_prompt_tokens: int) -> int:
        name, asked = "max_tokens", body.max_tokens
        if isinstance(body, ChatCompletionRequest) and body.max_completion_tokens is not None:
            if asked is not None and asked != body.max_completion_tokens:
                _refuse(name, str(asked), "equal to max_completion_tokens, or left out")
            name, asked = "max_completion_tokens", body.max_completion_tokens
        prompt_limit = self.settings.max_prompt_tokens or self.max_model_len - 1
        if num_prompt_tokens > prompt_limit:
            param = "prompt" if isinstance(body, CompletionRequest) else "messages"
            raise APIError(
                400,
                f"The prompt has {num_prompt_tokens} tokens; at most {prompt_limit} are allowed.",
                param=param,
                code="context_length_exceeded",
            )
        room = self.max_model_len - num_prompt_tokens
        limit = min(room, self.settings.max_output_tokens or room)
        if asked is not None and asked > limit:
            message = (
                f"{name} is {asked}; with a prompt of {num_prompt_tokens} tokens it may be at most "
                f"{limit}."
            )
            raise APIError(400, message, param=name, code="context_length_exceeded")
        return limit if asked is None else asked


def _refuse(param: str, value: str, allowed: str) -> None:
    raise APIError(400, f"{param} is {value}; it must be {allowed}.", param=param)
