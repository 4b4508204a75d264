"""One engine in a process of its own serves as one in the server's process does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import httpx
import pytest

from lightthinker import LLM, AsyncLLM, SamplingParams
from lightthinker.engine import parallel
from lightthinker.engine.device import wants_engine_process
from lightthinker.engine.replica import Replica
from lightthinker.engine.request_stream import EngineDeadError, RequestAbortedError
from lightthinker.errors import RequestError
from lightthinker.server.settings import ServerSettings
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.serving import chat_body, running_server

SIZES = {"device": "cpu", "num_kv_tokens": 8192, "page_size": 4}
LONG = SamplingParams(max_tokens=3000, ignore_eos=True, max_thought_tokens=20)
KINDS = [
    SamplingParams(max_tokens=30, ignore_eos=True, max_thought_tokens=4),
    SamplingParams(max_tokens=20, temperature=1.0, seed=3, n=3, logprobs=2),
    SamplingParams(max_tokens=60, temperature=1.5, seed=4, stop=["e", "ab"]),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def single(checkpoint):
    return LLM(checkpoint, **SIZES)


@pytest.fixture(scope="module")
def remote(checkpoint):
    llm = LLM(checkpoint, **SIZES, engine_process=True)
    yield llm
    llm.shutdown()


@pytest.mark.parametrize("params", KINDS)
def test_outputs_are_the_same_in_every_field(single, remote, params):
    for prompt in ("one", [5, 9, 30]):
        (here,) = single.generate(prompt, params)
        (there,) = remote.generate(prompt, params)
        assert fields(there) == fields(here)
        assert fields(list(remote.stream(prompt, params))[-1]) == fields(here)
    assert remote.kv_bytes_per_token == single.kv_bytes_per_token
    assert remote.vocab_size == single.vocab_size


def fields(output):
    """All fields but the name, and what an earlier prompt left in the cache."""
    return {k: v for k, v in vars(output).items() if k not in ("request_id", "num_cached_tokens")}


def test_a_burst_is_sent_without_waiting_for_one_answer(remote, monkeypatch):
    engine = remote.engine
    engine.add_request("running", [7, 8], LONG)

    def receive(self):
        raise AssertionError("submitting waited for the engine")

    with monkeypatch.context() as patched:
        patched.setattr(Replica, "receive", receive)
        for number in range(64):
            engine.submit_request(f"r{number}", [5, 6 + number], KINDS[0])
        engine.submit_request("wrong", [10**6], KINDS[0])
        with pytest.raises(RequestError, match="in use"):
            engine.submit_request("r1", [5], KINDS[0])
    answers = {}
    while len(answers) < 65:
        engine.step()
        answers |= {answer.request_id: answer for answer in engine.take_answers()}
    assert isinstance(answers.pop("wrong").error, RequestError)
    assert {(a.num_prompt_tokens, a.error) for a in answers.values()} == {(2, None)}
    for name in ["running", *answers]:
        engine.abort_request(name)
    assert not engine.has_unfinished_requests()
    while not engine.is_quiet():
        engine.step()
    assert engine.stats().num_pages_used == 0


def test_progress_is_told_of_requests_that_do_not_stream(remote):
    engine = remote.engine
    engine.add_request("silent", [7, 8], SamplingParams(max_tokens=300, ignore_eos=True, n=2),
                       stream=False)  # fmt: skip
    seen, scheduled, outputs = [], [], []
    while engine.has_unfinished_requests():
        seen.append(engine.num_sampled_tokens()["silent"])
        scheduled.append(engine.is_scheduled("silent"))
        outputs += engine.step()
    assert len(outputs) == 1
    assert seen == sorted(seen)
    assert len(set(seen)) > 20
    assert (scheduled[0], scheduled[-1]) == (False, True)


def test_a_name_can_be_used_again_at_once(single, remote):
    engine = remote.engine
    expected = single.generate([[9, 10, 11]], KINDS[0])[0].outputs
    for _ in range(5):
        engine.submit_request("again", [7, 8], LONG)
        engine.abort_request("again")
    engine.add_request("again", [9, 10, 11], KINDS[0])
    newest = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            newest = output
    assert newest.outputs == expected


def test_a_step_that_waits_is_woken(remote, monkeypatch):
    monkeypatch.setattr(parallel, "WAIT_S", 60)
    begin = time.monotonic()
    for _ in range(3):
        for _ in range(200_000):  # Never more bytes than the pipe holds.
            remote.engine.wake()
        assert remote.engine.step() == []
    threading.Timer(0.2, remote.engine.wake).start()
    assert remote.engine.step() == []
    assert time.monotonic() - begin < 30


def test_whoever_asks_does_not_wait_for_a_step(remote, monkeypatch):
    """The engine's process is stopped within a step, and requests are ended all the same."""
    monkeypatch.setattr(parallel, "WAIT_S", 60)
    worker = remote.engine._replicas[0].processes[0].pid

    async def run():
        engine = AsyncLLM(remote)
        stream = await engine.add_request([5, 9, 30], LONG)
        os.kill(worker, signal.SIGSTOP)
        begin = time.monotonic()
        assert not await engine.drain(0.1)
        assert time.monotonic() - begin < 30
        with pytest.raises(RequestAbortedError):
            async for _ in stream:
                pass
        engine.shutdown()

    try:
        asyncio.run(run())
    finally:
        os.kill(worker, signal.SIGCONT)


def test_a_server_on_it_answers_counts_and_lets_go(single, remote):
    body = chat_body(n=2, logprobs=True)
    with running_server(single, ServerSettings(model_name="m")) as here:
        expected = httpx.post(f"{here.url}/v1/chat/completions", json=body, timeout=60).json()
    with running_server(remote, ServerSettings(model_name="m")) as server:
        url = f"{server.url}/v1/chat/completions"
        answer = httpx.post(url, json=body, timeout=60).json()
        assert answer["choices"] == expected["choices"]
        refused = httpx.post(url, json=chat_body(max_tokens=10**7), timeout=60)
        assert refused.status_code == 400
        long = chat_body(max_tokens=3000, thinking_token_budget=2900, stream=True)
        with httpx.stream("POST", url, json=long, timeout=60) as leaving:
            next(leaving.iter_raw())
        assert server.wait_until_idle(30)
        assert server.engine.stats().num_pages_used == 0
        text = httpx.get(f"{server.url}/metrics").text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines())
    label = '{model_name="m"}'
    assert float(values[f"vllm:num_requests_running{label}"]) == 0
    assert float(values[f"vllm:time_to_first_token_seconds_count{label}"]) >= 1
    sampled = float(values[f"vllm:generation_tokens_total{label}"])
    assert answer["usage"]["completion_tokens"] <= sampled < 3000


def test_a_dead_process_turns_the_server_unhealthy(checkpoint):
    llm = LLM(checkpoint, **SIZES, engine_process=True)
    with running_server(llm) as server:
        url, (worker,) = f"{server.url}/v1/chat/completions", llm.engine._replicas[0].processes
        long = chat_body(max_tokens=3000, thinking_token_budget=2900)
        answers = []
        post = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=long, timeout=60))
        )
        post.start()
        while not server.engine.stats().num_running:
            time.sleep(0.005)
        assert httpx.get(f"{server.url}/health").status_code == 200
        worker.kill()
        post.join()
        assert answers[0].status_code == 500
        assert answers[0].json()["error"]["code"] == "engine_dead"
        assert httpx.get(f"{server.url}/health").status_code == 503
        again = httpx.post(url, json=chat_body(), timeout=60)
        assert again.json()["error"]["code"] == "engine_dead"
    engine = AsyncLLM(llm)  # Dead before anything is asked of it: seen all the same.
    assert not engine.is_healthy
    with pytest.raises(EngineDeadError, match="restarted"):
        asyncio.run(engine.add_request([5, 9], LONG))
    engine.shutdown()
    llm.shutdown()


def test_ctrl_c_is_left_to_the_process_that_asks(remote):
    os.kill(remote.engine._replicas[0].processes[0].pid, signal.SIGINT)
    assert remote.generate([5, 9, 30], KINDS[0])[0].finished


def test_only_a_gpu_asks_for_it():
    assert not wants_engine_process("cpu")
