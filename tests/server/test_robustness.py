"""Load, aborts, slow readers, disconnects, overflow, time-outs: others are unharmed."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest

from lightthinker import LLM
from lightthinker.engine.async_llm import Progress
from lightthinker.server.metrics import Metrics
from lightthinker.server.settings import ServerSettings
from lightthinker.testing.serving import chat_body, running_server

NUM_REQUESTS = 40
ROOT = Path(__file__).resolve().parents[2]


async def read_stream(client: httpx.AsyncClient, body: dict, *, chunks=None, pause_s=0.0):
    """Return a streamed answer's text; leave after `chunks` chunks, or read slowly."""
    text, count = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as got:
        assert got.status_code == 200
        async for line in got.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                delta = choice["delta"]
                text += delta.get("reasoning_content") or ""
                text += delta.get("content") or ""
            count += 1
            if count == chunks:
                return None
            if pause_s:
                await asyncio.sleep(pause_s)
    return text


async def read_whole(client: httpx.AsyncClient, body: dict) -> str:
    answer = await client.post("/v1/chat/completions", json=body)
    message = answer.json()["choices"][0]["message"]
    return message["reasoning_content"] + (message["content"] or "")


async def one_of_many(client: httpx.AsyncClient, i: int) -> str | None:
    """Behave as request number `i` does: every tenth leaves, some read slowly."""
    body = chat_body(f"What is {i} + {i}?")
    if i % 10 == 3:
        return await read_stream(client, body, chunks=random.Random(i).randint(1, 20))
    if i % 10 == 5:
        return await read_stream(client, body, pause_s=0.01)
    return await (read_stream(client, body) if i % 2 else read_whole(client, body))


def test_many_at_once_with_aborts_and_slow_readers_leave_others_unharmed(server):
    async def run() -> tuple[list, list]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            loud = await asyncio.gather(*(one_of_many(client, i) for i in range(NUM_REQUESTS)))
            bodies = [chat_body(f"What is {i} + {i}?") for i in range(NUM_REQUESTS)]
            quiet = [await read_whole(client, body) for body in bodies[:8]]
        return loud, quiet

    loud, quiet = asyncio.run(run())
    assert server.wait_until_idle()
    assert [text is None for text in loud] == [i % 10 == 3 for i in range(NUM_REQUESTS)]
    assert loud[:3] == quiet[:3]
    assert loud[4:8] == quiet[4:8]
    assert server.engine.stats().num_pages_used == 0
    server.engine.llm.engine.scheduler.check_integrity()
    assert server.wait_until_no_tasks()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_request_along(server, stream):
    """Far from done when the client goes: freed all the same."""
    body = chat_body("Leave", max_tokens=4000, thinking_token_budget=3900, stream=stream)
    data = json.dumps(body).encode()

    async def leave_early() -> None:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        while not server.engine.stats().num_running:
            await asyncio.sleep(0.005)
        if stream:
            await reader.read(100)
        writer.close()

    before = tokens_sampled(server)
    asyncio.run(leave_early())
    assert server.wait_until_idle(30)
    assert server.engine.stats().num_pages_used == 0
    assert tokens_sampled(server) - before < 3000


def tokens_sampled(server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    line = next(x for x in text.splitlines() if x.startswith("vllm:generation_tokens_total"))
    return float(line.split()[-1])


@pytest.fixture(scope="module")
def small(checkpoint):
    """Room for two requests, one sequence at a time, and little patience."""
    llm = LLM(checkpoint, device="cpu", max_num_seqs=1, num_kv_tokens=8192)
    settings = ServerSettings(model_name="small", request_timeout_s=1.5)
    with running_server(llm, settings, max_requests=2) as running:
        yield running


def test_overflow_answers_429_and_recovers(small):
    long = chat_body(max_tokens=3000, thinking_token_budget=2900)
    results = []

    def post() -> None:
        results.append(httpx.post(f"{small.url}/v1/chat/completions", json=long, timeout=60))

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    while small.engine.num_unfinished < 2:
        time.sleep(0.005)
    refused = httpx.post(f"{small.url}/v1/chat/completions", json=chat_body())
    for thread in threads:
        thread.join()

    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert small.wait_until_idle()
    short = httpx.post(f"{small.url}/v1/chat/completions", json=chat_body(max_tokens=2))
    assert short.status_code == 200


def test_a_request_that_takes_too_long_is_ended(small):
    long = chat_body(max_tokens=4000, thinking_token_budget=3900)
    whole = httpx.post(f"{small.url}/v1/chat/completions", json=long, timeout=60)
    assert whole.status_code == 408
    assert whole.json()["error"]["code"] == "timeout"
    streamed = httpx.post(
        f"{small.url}/v1/chat/completions", json=long | {"stream": True}, timeout=60
    )
    events = [line for line in streamed.text.split("\n\n") if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
    assert events[-1] == "data: [DONE]"
    assert small.wait_until_idle()
    assert small.engine.stats().num_pages_used == 0


def test_a_failed_engine_answers_and_turns_unhealthy(checkpoint):
    llm = LLM(checkpoint, device="cpu", num_kv_tokens=4096)
    with running_server(llm) as running:

        def fail(*_: object) -> list[int]:
            raise RuntimeError("the device is gone")

        llm.engine.sampler.sample = fail
        first = httpx.post(f"{running.url}/v1/chat/completions", json=chat_body(), timeout=60)
        assert first.status_code == 500
        assert first.json()["error"]["code"] == "engine_dead"
        assert httpx.get(f"{running.url}/health").status_code == 503
        assert httpx.get(f"{running.url}/ready").status_code == 503
        again = httpx.post(f"{running.url}/v1/chat/completions", json=chat_body(), timeout=60)
        assert again.json()["error"]["code"] == "engine_dead"


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_with_broken_logits_fails_alone(checkpoint, stream):
    llm = LLM(checkpoint, device="cpu", num_kv_tokens=4096)
    run, broken = llm.engine.runner.run, chat_body("Break!", stream=stream)
    num_prompt = len(llm.prompt_ids(broken["messages"]))

    def break_one(backend, batch, plan, *rest):
        logits = run(backend, batch, plan, *rest)
        for row, sequence in enumerate(plan.sampling):
            if len(sequence.prompt_ids) == num_prompt and len(sequence.sampled_ids) == 5:
                logits[row] = float("nan")
        return logits

    llm.engine.runner.run = break_one
    with running_server(llm) as running:
        url = f"{running.url}/v1/chat/completions"
        answers = {}

        def post(name: str, body: dict) -> None:
            answers[name] = httpx.post(url, json=body, timeout=60)

        threads = [
            threading.Thread(target=post, args=("other", chat_body("A longer question"))),
            threading.Thread(target=post, args=("broken", broken)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers["other"].status_code == 200
        assert "generation_failed" in answers["broken"].text
        assert answers["broken"].status_code == (200 if stream else 500)
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert running.wait_until_idle()


def test_streams_that_take_turns_say_the_same_in_fewer_chunks(checkpoint):
    body = chat_body() | {"lightthinker": {"max_thought_tokens": 9, "events": True}}
    llm = LLM(checkpoint, device="cpu", num_kv_tokens=4096, max_stream_updates_per_s=1e-3)
    with running_server(llm) as running:
        whole = httpx.post(f"{running.url}/v1/chat/completions", json=body).json()
        lines = httpx.post(f"{running.url}/v1/chat/completions", json=body | {"stream": True}).text
    message = whole["choices"][0]["message"]
    chunks = [json.loads(x[6:]) for x in lines.splitlines() if x.startswith("data: {")]
    deltas = [c["choices"][0]["delta"] for c in chunks]
    for name in ("reasoning_content", "content"):
        assert "".join(d.get(name) or "" for d in deltas) == message[name]
    events = [e for c in chunks if "lightthinker" in c for e in c["lightthinker"]["events"]]
    folded = [e["index"] for e in events if e["type"] == "thought_compressed"]
    assert folded == list(range(whole["usage"]["lightthinker"]["thoughts"]))
    # The role, the first token, then the rest at once: one chunk for each thought and an end.
    assert len(chunks) <= len(folded) + 4 < whole["usage"]["completion_tokens"] / 2


def test_an_aborted_requests_tokens_are_counted_once():
    metrics = Metrics("m")
    running = Progress(
        request_id="a", num_prompt_tokens=7, arrived=0.0, scheduled=0.0, num_sampled=0, output=None
    )
    for num_sampled in (0, 1, 1, 3):
        metrics.observe([running._replace(num_sampled=num_sampled)])
    metrics.observe([])  # Its client has left.
    text = generate_latest(metrics.registry).decode()
    assert 'vllm:prompt_tokens_total{model_name="m"} 7.0' in text
    assert 'vllm:generation_tokens_total{model_name="m"} 3.0' in text


def test_metrics_count_what_was_done(checkpoint):
    llm = LLM(checkpoint, device="cpu", num_kv_tokens=4096)
    with running_server(llm, ServerSettings(model_name="m", metrics_prefix="x:")) as running:
        usage = httpx.post(f"{running.url}/v1/chat/completions", json=chat_body()).json()["usage"]
        httpx.post(f"{running.url}/v1/chat/completions", json={})
        text = httpx.get(f"{running.url}/metrics").text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    label = '{model_name="m"}'
    expected = {
        f"x:prompt_tokens_total{label}": usage["prompt_tokens"],
        f"x:generation_tokens_total{label}": 90,
        f"x:num_requests_running{label}": 0,
        f"x:kv_cache_usage_perc{label}": 0,
        'x:request_success_total{finished_reason="length",model_name="m"}': 1,
        f"x:time_to_first_token_seconds_count{label}": 1,
        f"x:inter_token_latency_seconds_count{label}": 89,
        f"x:e2e_request_latency_seconds_count{label}": 1,
        f"lightthinker:compactions_total{label}": 4,
        f"lightthinker:kv_tokens_freed_total{label}": usage["lightthinker"]["kv_tokens_freed"],
        f"lightthinker:request_thoughts_sum{label}": 4,
        'lightthinker:requests_refused_total{model_name="m",status="400"}': 1,
    }
    assert {name: values.get(name) for name in expected} == expected
    names = {name.partition("{")[0] for name in values}
    dashboard = (ROOT / "deploy" / "grafana" / "lightthinker.json").read_text()
    asked = set(re.findall(r"(?:vllm|lightthinker):[a-z0-9_]+", dashboard))
    assert len(asked) > 12
    assert {name.replace("vllm:", "x:") for name in asked} <= names
