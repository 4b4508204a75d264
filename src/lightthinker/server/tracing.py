"""OpenTelemetry traces of requests: when one waited, when its prompt was read, when it wrote.

A span `generate` for each prompt, child of the caller's `traceparent`, and below it `queue`,
`prefill` and `decode`, made when the request is over from the times that the engine's thread saw
(the same as in `/metrics`). Attributes are OpenTelemetry's for generative AI, and ours with
`lightthinker.`; never a prompt or an answer. Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightthinker import __version__
from lightthinker.engine.async_llm import Progress
from lightthinker.engine.outputs import RequestOutput

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Environment variables that switch tracing on; OpenTelemetry's others hold too."""


@dataclass
class _Open:
    """A request whose span has not ended."""

    parent: Context
    begun: float
    newest: Progress | None = None
    first_token: float | None = None


class Tracing:
    """The spans of one server.

    Args:
        provider: Where spans go.
        model_name: Of the model served.
    """

    def __init__(self, provider: TracerProvider, model_name: str):
        self._provider = provider
        self._tracer = provider.get_tracer("lightthinker", __version__)
        self._model_name = model_name
        self._open: dict[str, _Open] = {}
        self._epoch_s = time.time() - time.monotonic()

    def begin(self, request_id: str, headers: Mapping[str, str]) -> None:
        """Note a request that is about to be submitted, and who asks."""
        from opentelemetry.propagate import extract

        self._open[request_id] = _Open(extract(headers), time.monotonic())

    def observe(self, progress: list[Progress]) -> None:
        """Take a step's progress; called in the engine's thread."""
        now = time.monotonic()
        for request in progress:
            seen = self._open.get(request.request_id)
            if seen is None:
                continue
            seen.newest = request
            if seen.first_token is None and request.num_sampled:
                seen.first_token = now
            if request.output is not None:
                self._end(request.request_id, now)

    def abandon(self, request_id: str) -> None:
        """End the span of a request that was refused or aborted; unknown ones are ignored."""
        self._end(request_id, time.monotonic())

    def shutdown(self) -> None:
        """End the spans of what still runs, and send what was not sent yet."""
        for request_id in list(self._open):
            self.abandon(request_id)
        self._provider.shutdown()

    def _end(self, request_id: str, now: float) -> None:
        seen = self._open.pop(request_id, None)
        if seen is None:
            return
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.status import StatusCode

        request = seen.newest
        arrived = request.arrived if request else seen.begun
        span = self._tracer.start_span(
            "generate", seen.parent, SpanKind.SERVER, start_time=self._nanoseconds(arrived)
        )
        span.set_attribute("gen_ai.operation.name", "generate_content")
        span.set_attribute("gen_ai.request.model", self._model_name)
        if request:
            span.set_attribute("gen_ai.usage.input_tokens", request.num_prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", request.num_sampled)
        if request and request.output:
            span.set_attributes(_outcome(request.output))
        else:
            span.set_status(StatusCode.ERROR, "ended before it was finished")
        below = set_span_in_context(span, seen.parent)
        times = (arrived, request.scheduled, seen.first_token) if request else ()
        begun = [t for t in times if t is not None]
        phases = zip(("queue", "prefill", "decode"), begun, [*begun[1:], now], strict=False)
        for name, begin, end in phases:
            child = self._tracer.start_span(name, below, start_time=self._nanoseconds(begin))
            child.end(self._nanoseconds(end))
        span.end(self._nanoseconds(now))

    def _nanoseconds(self, monotonic_s: float) -> int:
        return int((self._epoch_s + monotonic_s) * 1e9)


def _outcome(output: RequestOutput) -> dict[str, Any]:
    """Return the attributes of a finished request, summed or the largest over its samples."""
    stats = [c.stats for c in output.outputs if c.stats is not None]
    return {
        "gen_ai.response.finish_reasons": [str(c.finish_reason) for c in output.outputs],
        "lightthinker.cached_tokens": output.num_cached_tokens,
        "lightthinker.thoughts": sum(t.num_gists > 0 for c in output.outputs for t in c.thoughts),
        "lightthinker.kv_tokens_freed": sum(s.tokens_freed for s in stats),
        "lightthinker.peak_kv_tokens": max((s.peak_tokens for s in stats), default=0),
    }


def tracing_from_environment(model_name: str) -> Tracing | None:
    """Return tracing if the environment names a collector, with what OpenTelemetry reads from it.

    Without the packages of the extra `otel` it warns and returns None: such variables are often
    set for all of a cluster's programs.

    Args:
        model_name: Of the model served.
    """
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if named is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("%s is set, but no traces are sent: pip install 'lightthinker[otel]'", named)
        return None
    default = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "lightthinker"}
    provider = TracerProvider(resource=Resource.create(default))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, model_name)
