"""Prometheus metrics: vLLM's names, so that its dashboards work, and what compression adds.

Request metrics are observed in the engine's thread after each step, so a slow client does not show
as a slow engine. Names and meanings of the first group are vLLM's (its "Production Metrics"
page); the prefix of that group can be changed.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from lightthinker.engine.async_llm import Progress
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.reporting import EngineStats
from lightthinker.server.histogram import CountingHistogram

CONTENT_TYPE = CONTENT_TYPE_LATEST
OURS = "lightthinker:"

_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_COUNTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass
class _Seen:
    """What was observed of an unfinished request."""

    num_sampled: int = 0
    first_token: float = 0.0
    last_token: float = 0.0


class Metrics:
    """The metrics of one server.

    Args:
        model_name: Value of the label `model_name`.
        prefix: Put before vLLM's names.
    """

    def __init__(self, model_name: str, prefix: str = "vllm:"):
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._seen: dict[str, _Seen] = {}
        self._totals: dict[str, int] = {}
        gauge, counter, histogram = self._gauge, self._counter, self._histogram

        self.running = gauge(f"{prefix}num_requests_running", "Sequences running.")
        self.waiting = gauge(f"{prefix}num_requests_waiting", "Sequences waiting.")
        self.kv_usage = gauge(
            f"{prefix}kv_cache_usage_perc", "Share of the KV pages in use; 1 is all of them."
        )
        self.preemptions = counter(f"{prefix}num_preemptions", "Sequences swapped out.")
        self.prompt_tokens = counter(f"{prefix}prompt_tokens", "Prompt tokens.")
        self.generation_tokens = counter(f"{prefix}generation_tokens", "Sampled tokens.")
        self.cache_queries = counter(
            f"{prefix}prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.cache_hits = counter(
            f"{prefix}prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self.success = Counter(
            f"{prefix}request_success", "Finished requests, by reason.",
            ["model_name", "finished_reason"], registry=self.registry,
        )  # fmt: skip
        self.ttft = histogram(
            f"{prefix}time_to_first_token_seconds", "Time to first token.", _SECONDS
        )
        self.itl = CountingHistogram(
            f"{prefix}inter_token_latency_seconds", "Time between tokens.", _SECONDS,
            {"model_name": model_name},
        )  # fmt: skip
        self.registry.register(self.itl)
        self.tpot = histogram(
            f"{prefix}request_time_per_output_token_seconds",
            "Mean time per output token after the first.",
            _SECONDS,
        )
        self.e2e = histogram(
            f"{prefix}e2e_request_latency_seconds", "Time of a request from end to end.", _SECONDS
        )
        self.queue_time = histogram(
            f"{prefix}request_queue_time_seconds", "Time a request waited.", _SECONDS
        )
        self.inference_time = histogram(
            f"{prefix}request_inference_time_seconds", "Time a request ran.", _SECONDS
        )
        self.prefill_time = histogram(
            f"{prefix}request_prefill_time_seconds", "Time from start to first token.", _SECONDS
        )
        self.decode_time = histogram(
            f"{prefix}request_decode_time_seconds", "Time from first to last token.", _SECONDS
        )
        self.request_prompt = histogram(
            f"{prefix}request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self.request_generation = histogram(
            f"{prefix}request_generation_tokens", "Sampled tokens of a request.", _TOKENS
        )

        self.live = gauge(f"{OURS}live_kv_tokens", "KV tokens live in running sequences.")
        self.full_cot = gauge(
            f"{OURS}full_cot_kv_tokens",
            "KV tokens that full chain-of-thought would hold for the same sequences.",
        )
        self.compactions = counter(f"{OURS}compactions", "Times a sequence freed expired tokens.")
        self.freed = counter(f"{OURS}kv_tokens_freed", "KV tokens freed by compression.")
        self.thoughts = histogram(
            f"{OURS}request_thoughts", "Thoughts compressed in a request.", _COUNTS
        )
        self.peak = histogram(f"{OURS}request_peak_kv_tokens", "Peak KV tokens.", _TOKENS)
        self.refused = Counter(
            f"{OURS}requests_refused", "Requests answered with an error, by status.",
            ["model_name", "status"], registry=self.registry,
        )  # fmt: skip

    def observe(self, progress: list[Progress]) -> None:
        """Take a step's progress; called in the engine's thread."""
        now = time.monotonic()
        num_new, since = 0, Counts[float]()
        before, self._seen = self._seen, {}
        for request in progress:
            name, num_sampled = request.request_id, request.num_sampled
            seen = before.get(name) or _Seen()
            if num_sampled > seen.num_sampled:
                num_new += num_sampled - seen.num_sampled
                if seen.num_sampled == 0:
                    seen.first_token = now
                    self.ttft.observe(now - request.arrived)
                    # Not when it ends: an aborted request was prefilled, too.
                    self.prompt_tokens.inc(request.num_prompt_tokens)
                else:
                    since[seen.last_token] += 1
                seen.num_sampled, seen.last_token = num_sampled, now
            if request.output is not None:
                self._finished(request, request.output, seen, now)
            else:
                self._seen[name] = seen
        self.generation_tokens.inc(num_new)
        for last_token, count in since.items():
            self.itl.observe(now - last_token, count)

    def refuse(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self.refused.labels(self._model_name, str(status)).inc()

    def render(self, stats: EngineStats) -> bytes:
        """Return the exposition, with the engine's state as it is now."""
        self.running.set(stats.num_running)
        self.waiting.set(stats.num_waiting)
        self.kv_usage.set(stats.num_pages_used / stats.num_pages)
        self.live.set(stats.live_tokens)
        self.full_cot.set(stats.full_cot_tokens)
        for name, counter, total in (
            ("preemptions", self.preemptions, stats.num_preemptions),
            ("compactions", self.compactions, stats.num_compactions),
            ("freed", self.freed, stats.num_tokens_freed),
        ):
            counter.inc(total - self._totals.get(name, 0))
            self._totals[name] = total
        return bytes(generate_latest(self.registry))

    def _finished(self, request: Progress, output: RequestOutput, seen: _Seen, now: float) -> None:
        started = request.scheduled if request.scheduled is not None else now
        self.cache_queries.inc(request.num_prompt_tokens)
        self.cache_hits.inc(output.num_cached_tokens)
        self.request_prompt.observe(request.num_prompt_tokens)
        self.request_generation.observe(request.num_sampled)
        self.e2e.observe(now - request.arrived)
        self.queue_time.observe(started - request.arrived)
        self.inference_time.observe(now - started)
        if seen.first_token:
            self.prefill_time.observe(seen.first_token - started)
            self.decode_time.observe(now - seen.first_token)
            if seen.num_sampled > 1:
                self.tpot.observe((now - seen.first_token) / (seen.num_sampled - 1))
        for completion in output.outputs:
            self.success.labels(self._model_name, str(completion.finish_reason)).inc()
            self.thoughts.observe(sum(t.num_gists > 0 for t in completion.thoughts))
            if completion.stats is not None:
                self.peak.observe(completion.stats.peak_tokens)

    def _gauge(self, name: str, text: str) -> Gauge:
        made = Gauge(name, text, ["model_name"], registry=self.registry)
        return made.labels(self._model_name)

    def _counter(self, name: str, text: str) -> Counter:
        made = Counter(name, text, ["model_name"], registry=self.registry)
        return made.labels(self._model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, text, ["model_name"], buckets=buckets, registry=self.registry)
        return made.labels(self._model_name)
