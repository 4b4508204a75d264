"""SamplingParams: how one request samples, with vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightthinker.engine.policy import CachePolicy
from lightthinker.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample one request.

    Attributes:
        n: Number of samples per prompt.
        temperature: 0 is greedy.
        top_p: Nucleus probability in (0, 1].
        top_k: Candidates kept; 0 or -1 keeps all.
        min_p: Candidates whose probability is below this share of the best one's are dropped.
        repetition_penalty: Logits of tokens already in prompt or output are divided by this if
            positive and multiplied if negative; 1 changes nothing.
        presence_penalty: Subtracted once from the logits of tokens already in the output.
        frequency_penalty: Subtracted from the logits of output tokens for each occurrence.
        seed: Makes this request's samples reproducible, whatever else is in the batch.
        stop: Strings that end the output; not part of the text.
        stop_token_ids: Token ids that end the output.
        max_tokens: Most tokens to sample; gist and continue tokens are not sampled and not counted.
        logprobs: Report the log-probability of each sampled token and of this many best ones (0:
            of the sampled token alone), taken before penalties and temperature. None: report none.
        priority: Requests with smaller numbers are admitted first and preempted last.
        timeout_s: Seconds after which the request is aborted, waiting included, with `timeout` as
            its `stop_reason`.
        ignore_eos: Go on after the end-of-sequence token.
        compression: Whether triggers compress. None: whatever the checkpoint was trained for.
        max_thought_tokens: Force the trigger once a thought has this many tokens.
        thinking_token_budget: Force the end of reasoning once this many tokens are sampled.
        retain_thoughts: Finished thoughts that stay in the cache in full, in place of the
            checkpoint's own number; for models that were trained with several.
        policy: Bound the KV cache by eviction; nothing is compressed then.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    max_tokens: int = 1024
    logprobs: int | None = None
    priority: int = 0
    timeout_s: float | None = None
    ignore_eos: bool = False
    compression: bool | None = None
    max_thought_tokens: int | None = None
    thinking_token_budget: int | None = None
    retain_thoughts: int | None = None
    policy: CachePolicy | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        _check(self.n >= 1, "n", self.n, "at least 1")
        _check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 or more")
        _check(isinstance(self.max_tokens, int), "max_tokens", self.max_tokens, "a whole number")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _check(self.top_k >= -1, "top_k", self.top_k, "at least 1, or 0 or -1 for all")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        _check(
            0 < self.repetition_penalty < float("inf"),
            "repetition_penalty",
            self.repetition_penalty,
            "above 0; 1 changes nothing",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "in [-2, 2]")
        if self.logprobs is not None:
            _check(0 <= self.logprobs <= 20, "logprobs", self.logprobs, "in [0, 20], or None")
        if self.timeout_s is not None:
            _check(self.timeout_s > 0, "timeout_s", self.timeout_s, "above 0, or None")
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check("" not in stop, "stop", self.stop, "non-empty strings")
        if self.policy is not None and self.compression:
            raise RequestError(
                f"Policy {self.policy.name!r} and compression cannot be combined; "
                "drop the policy, or ask with compression=False."
            )
        for name, least in (
            ("max_thought_tokens", 1),
            ("thinking_token_budget", 0),
            ("retain_thoughts", 0),
        ):
            value = getattr(self, name)
            _check(value is None or value >= least, name, value, f"at least {least}")

    @property
    def has_penalties(self) -> bool:
        """Whether what was written changes the logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return tuple(self.stop)


def _check(ok: bool, field: str, value: object, allowed: str) -> None:
    if not ok:
        raise RequestError(f"{field} is {value!r}; it must be {allowed}.")
