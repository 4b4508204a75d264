"""What a request returns.

VLLM's `RequestOutput` and `CompletionOutput`, plus what compression did.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ThoughtStats:
    """One finished thought.

    Attributes:
        text: The thought as the model wrote it.
        num_tokens: Its length in tokens, trigger included.
        num_gists: Gist tokens it was compressed into; 0 with compression off.
        tokens_freed: KV tokens freed when it was compressed.
    """

    text: str
    num_tokens: int
    num_gists: int
    tokens_freed: int


@dataclass(frozen=True)
class CompressionStats:
    """What one sample cost; token counts are of KV-cache tokens.

    While the sample runs, `mean_live_tokens`, `dep_paper` and `dep_full` are 0.

    Attributes:
        num_prompt_tokens: Prompt length.
        num_sampled_tokens: Tokens sampled (usage counts these).
        num_gist_tokens: Gist and continue tokens inserted by the engine.
        num_thoughts: Thoughts compressed.
        tokens_freed: KV tokens freed before the request ended.
        live_tokens: KV tokens live now.
        full_cot_tokens: KV tokens that full chain-of-thought would hold now.
        peak_tokens: Most KV tokens live at once (the paper's Peak).
        mean_live_tokens: Mean over the sampled tokens of the KV tokens live when each was written.
        dep_paper: Dependency as the paper counts it.
        dep_full: Dependency with gist and continue tokens charged.
        kv_bytes_peak: `peak_tokens` in bytes of KV cache.
    """

    num_prompt_tokens: int
    num_sampled_tokens: int
    num_gist_tokens: int
    num_thoughts: int
    tokens_freed: int
    live_tokens: int
    full_cot_tokens: int
    peak_tokens: int
    mean_live_tokens: float
    dep_paper: int
    dep_full: int
    kv_bytes_peak: int


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a sampled token was, under the model's own distribution.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability, before penalties and temperature, among the tokens
            that may be sampled.
        top: The most likely tokens and theirs, best first; as many as were asked for.
    """

    token_id: int
    logprob: float
    top: dict[int, float]


@dataclass(frozen=True)
class CompletionOutput:
    """One sample of a request.

    Attributes:
        index: Which of the n samples.
        text: Visible text so far: triggers shown as the separator, gists not at all.
        token_ids: Sampled token ids so far, triggers included.
        finish_reason: None while running; `stop`, `length` or `abort`.
        stop_reason: The stop string or stop token id that ended it, if any.
        thoughts: Finished thoughts so far.
        logprobs: One entry per sampled token, if asked for.
        stats: Costs; complete once finished, `live_tokens` and `full_cot_tokens` current at every
            step.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    thoughts: list[ThoughtStats] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    stats: CompressionStats | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A request's state after a step.

    Attributes:
        request_id: Its name.
        prompt: Its prompt, if it came as text.
        prompt_token_ids: Its prompt's ids.
        outputs: One entry per sample.
        finished: Whether all samples are finished.
        num_cached_tokens: Prompt tokens whose KV was already there, from an earlier request.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
