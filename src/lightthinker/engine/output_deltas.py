"""Outputs on their way between processes: what is new since the last report, put together again.

Outputs are cumulative: the 500th report of a stream has 500 token ids and all of its text. Between
processes that would be copied, written, read and built again each time, so a `DeltaEncoder` sends
what was added, and a `RequestDelta` applied to the last output that was rebuilt gives the next.

Invariant: the rebuilt output equals the engine's in every field. Token ids, thoughts and
log-probabilities only grow; a text that did not grow by its end is sent anew.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any, NamedTuple

from lightthinker.engine.outputs import (
    CompletionOutput,
    CompressionStats,
    RequestOutput,
    ThoughtStats,
    TokenLogprob,
)

_stats_values = attrgetter(*(field.name for field in dataclasses.fields(CompressionStats)))


class SampleDelta(NamedTuple):
    """What is new of one sample; see `CompletionOutput`.

    Attributes:
        number: Which sample.
        text_begin: Where `text` begins: what was sent before stays up to here.
        text: The text from there on.
        token_ids: New ones.
        finish_reason: As it is now.
        stop_reason: As it is now.
        thoughts: New ones.
        logprobs: New ones, if asked for.
        stats: All values of `CompressionStats`, in order.
    """

    number: int
    text_begin: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None
    thoughts: list[ThoughtStats]
    logprobs: list[TokenLogprob] | None
    stats: tuple[Any, ...] | None


class RequestDelta(NamedTuple):
    """What is new of a request; see `RequestOutput`.

    Attributes:
        key: What the two processes call it.
        prompt: Its prompt and its ids, in the first report only.
        samples: One entry per sample.
        finished: Whether all are finished.
        num_cached_tokens: As it is now.
    """

    key: str
    prompt: tuple[str | None, list[int]] | None
    samples: list[SampleDelta]
    finished: bool
    num_cached_tokens: int

    def apply(self, request_id: str, before: RequestOutput | None) -> RequestOutput:
        """Return the request's output.

        Args:
            request_id: Its name in this process.
            before: What the delta before this one gave; None for the first.
        """
        if before is None:
            assert self.prompt is not None, "the first report has the prompt"
            text, ids = self.prompt
            samples = [_completion(delta, None) for delta in self.samples]
        else:
            text, ids = before.prompt, before.prompt_token_ids
            pairs = zip(self.samples, before.outputs, strict=True)
            samples = [_completion(delta, sample) for delta, sample in pairs]
        return RequestOutput(request_id, text, ids, samples, self.finished, self.num_cached_tokens)


class _Told(NamedTuple):
    """What was sent of a sample."""

    text: str = ""
    num_token_ids: int = 0
    num_thoughts: int = 0
    num_logprobs: int = 0


class DeltaEncoder:
    """Knows what was sent of each unfinished request."""

    def __init__(self) -> None:
        self._told: dict[str, list[_Told]] = {}

    def encode(self, output: RequestOutput) -> RequestDelta:
        """Return what is new; a finished request is forgotten."""
        key = output.request_id
        told = self._told.get(key)
        prompt = None if told else (output.prompt, output.prompt_token_ids)
        before = told or [_Told()] * len(output.outputs)
        samples = [_delta(one, sent) for one, sent in zip(output.outputs, before, strict=True)]
        if output.finished:
            self.forget(key)
        else:
            self._told[key] = [
                _Told(c.text, len(c.token_ids), len(c.thoughts), len(c.logprobs or ()))
                for c in output.outputs
            ]
        return RequestDelta(key, prompt, samples, output.finished, output.num_cached_tokens)

    def forget(self, key: str) -> None:
        """Note that a request was aborted; unknown ones are ignored."""
        self._told.pop(key, None)


def _delta(now: CompletionOutput, told: _Told) -> SampleDelta:
    begin = len(told.text) if now.text.startswith(told.text) else 0
    return SampleDelta(
        now.index,
        begin,
        now.text[begin:],
        now.token_ids[told.num_token_ids :],
        now.finish_reason,
        now.stop_reason,
        now.thoughts[told.num_thoughts :],
        None if now.logprobs is None else now.logprobs[told.num_logprobs :],
        None if now.stats is None else _stats_values(now.stats),
    )


def _completion(delta: SampleDelta, before: CompletionOutput | None) -> CompletionOutput:
    ids, thoughts, logprobs = delta.token_ids, delta.thoughts, delta.logprobs
    text = delta.text
    if before is not None:
        text = before.text[: delta.text_begin] + text
        ids, thoughts = before.token_ids + ids, before.thoughts + thoughts
        logprobs = None if logprobs is None else (before.logprobs or []) + logprobs
    return CompletionOutput(
        delta.number,
        text,
        ids,
        delta.finish_reason,
        delta.stop_reason,
        thoughts,
        logprobs,
        None if delta.stats is None else CompressionStats(*delta.stats),
    )
