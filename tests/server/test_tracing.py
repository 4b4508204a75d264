"""OpenTelemetry spans: one for each request, with its phases below it, and never its text."""

from __future__ import annotations

import logging
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest

from lightthinker import LLM
from lightthinker.server.settings import ServerSettings
from lightthinker.server.tracing import ENDPOINTS, Tracing, tracing_from_environment
from lightthinker.testing.serving import chat_body, running_server

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.status import StatusCode

TRACE, CALLER = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def traced(checkpoint, exporter):
    """A server whose spans end up in `exporter`."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    llm = LLM(checkpoint, device="cpu", num_kv_tokens=8192)
    settings = ServerSettings(model_name="tiny")
    with running_server(llm, settings, tracing=Tracing(provider, "tiny")) as server:
        yield server


def wait_for(count, exporter):
    deadline = time.monotonic() + 60
    while len(exporter.get_finished_spans()) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_request_is_a_span_with_its_phases_below_it(traced, exporter):
    url = f"{traced.url}/v1/chat/completions"
    body = chat_body("A secret question.", n=2)
    caller = {"traceparent": f"00-{TRACE:032x}-{CALLER:016x}-01"}
    answer = httpx.post(url, json=body, headers=caller, timeout=60).json()
    wait_for(4, exporter)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans.pop("generate")
    assert list(spans) == ["queue", "prefill", "decode"]
    assert (request.context.trace_id, request.parent.span_id) == (TRACE, CALLER)
    end = request.start_time
    for span in spans.values():
        assert span.parent.span_id == request.context.span_id
        assert span.start_time == end
        assert span.end_time >= span.start_time
        end = span.end_time
    assert end == request.end_time
    usage, attributes = answer["usage"], request.attributes
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert attributes["gen_ai.response.finish_reasons"] == ("length", "length")
    for name, key in (
        ("thoughts",) * 2,
        ("kv_tokens_freed",) * 2,
        ("peak_kv_tokens", "peak_tokens"),
    ):
        assert attributes[f"lightthinker.{name}"] == usage["lightthinker"][key] > 0
    assert "secret" not in request.to_json()


def test_a_request_that_is_left_or_refused_ends_its_span_as_an_error(traced, exporter):
    url = f"{traced.url}/v1/completions"
    body = {"prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines), next(lines)  # by the second, the engine has told of the first's step
    traced.wait_until_no_tasks()
    traced.engine.shutdown()
    assert httpx.post(url, json=body, timeout=60).status_code == 503
    left, refused = (s for s in exporter.get_finished_spans() if s.name == "generate")
    for span in (left, refused):
        assert span.status.status_code is StatusCode.ERROR
        assert span.parent is None
    assert left.attributes["gen_ai.usage.input_tokens"] > 0
    assert "gen_ai.usage.input_tokens" not in refused.attributes


def test_it_is_off_unless_the_environment_names_a_collector(monkeypatch, caplog):
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert tracing_from_environment("tiny") is None
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, EXPORTER, None)
    with caplog.at_level(logging.WARNING):
        assert tracing_from_environment("tiny") is None
    assert "lightthinker[otel]" in caplog.text


def test_spans_reach_a_collector(monkeypatch):
    pytest.importorskip(EXPORTER)
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv(ENDPOINTS[0], f"http://127.0.0.1:{collector.server_address[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        tracing = tracing_from_environment("tiny")
        tracing.begin("one", {})
        tracing.shutdown()
        collector.shutdown()
    ((path, content),) = received
    (resource,) = ExportTraceServiceRequest.FromString(content).resource_spans
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert path == "/v1/traces"
    assert names["service.name"] == "lightthinker"
    assert [span.name for span in resource.scope_spans[0].spans] == ["generate"]
