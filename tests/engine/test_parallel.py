"""Engines in other processes give what one in this process gives."""

from __future__ import annotations

import itertools
from multiprocessing import Pipe
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
import torch

from lightthinker import LLM, SamplingParams
from lightthinker.engine import parallel_worker
from lightthinker.engine.outputs import CompletionOutput, RequestOutput
from lightthinker.engine.parallel import ParallelEngine, WorkerError
from lightthinker.engine.parallel_worker import Answered
from lightthinker.engine.replica import Replica
from lightthinker.errors import CheckpointError, RequestError
from lightthinker.server.settings import ServerSettings
from lightthinker.testing.models import byte_tokenizer, tiny_checkpoint, tiny_model
from lightthinker.testing.serving import running_server

SIZES = {"device": "cpu", "num_kv_tokens": 2048, "page_size": 4}
PROMPTS = [[5, 9, 30, 7], [100] * 3, list(range(10, 40)), [7, 8]]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, max_thought_tokens=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def single(checkpoint):
    return LLM(checkpoint, **SIZES)


@pytest.fixture(scope="module", params=["data", "tensor"])
def parallel(checkpoint, request):
    llm = LLM(checkpoint, **SIZES, **{f"{request.param}_parallel_size": 2})
    yield llm
    llm.shutdown()


def outcome(outputs):
    return [
        (s.token_ids, s.text, s.finish_reason, s.stats.peak_tokens)
        for output in outputs
        for s in output.outputs
    ]


@pytest.mark.parametrize(
    "params",
    [GREEDY, SamplingParams(max_tokens=9, temperature=1.0, seed=3, n=2, ignore_eos=True)],
)
def test_outputs_are_the_same(single, parallel, params):
    assert outcome(parallel.generate(PROMPTS, params)) == outcome(single.generate(PROMPTS, params))
    assert parallel.kv_bytes_per_token * slices(parallel) == single.kv_bytes_per_token
    stats = parallel.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_pages_used) == (0, 0, 0)
    assert stats.num_compactions > 0


def slices(llm):
    """Into how many slices a token's KV is cut."""
    assert isinstance(llm.engine, ParallelEngine)
    return len(llm.engine._replicas[0].processes)


def test_a_vocabulary_that_the_ranks_do_not_divide(tmp_path):
    model, tokenizer = tiny_model("llama", vocab_size=261), byte_tokenizer()
    assert model.config.vocab_size % 2
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    expected = LLM(tmp_path, **SIZES).generate(PROMPTS, params)
    llm = LLM(tmp_path, **SIZES, tensor_parallel_size=2)
    try:
        assert outcome(llm.generate(PROMPTS, params)) == outcome(expected)
    finally:
        llm.shutdown()


def test_streams_refusals_aborts_and_time_limits(single, parallel):
    expected = list(single.stream(PROMPTS[0], GREEDY))[-1]
    states = list(parallel.stream(PROMPTS[0], GREEDY))
    assert outcome([states[-1]]) == outcome([expected])
    assert len(states) > 1
    with pytest.raises(RequestError, match="vocabulary"):
        parallel.generate([[10**6]])
    for _ in parallel.stream(PROMPTS[1], SamplingParams(max_tokens=500, ignore_eos=True)):
        break
    assert not parallel.engine.has_unfinished_requests()
    slow = SamplingParams(max_tokens=100_000, ignore_eos=True, timeout_s=0.3)
    (late,) = parallel.generate([PROMPTS[3]], slow)
    assert (late.outputs[0].finish_reason, late.outputs[0].stop_reason) == ("abort", "timeout")
    assert outcome(parallel.generate(PROMPTS, GREEDY)) == outcome(single.generate(PROMPTS, GREEDY))


@pytest.fixture
def messages(monkeypatch):
    """What goes over the pipes: lists of commands one way, messages the other."""
    sent, received, send, receive = [], [], Replica._send, Replica.receive

    def watched_send(self, commands):
        sent.append((self.number, commands))
        send(self, commands)

    def watched_receive(self):
        received.append((self.number, receive(self)))
        return received[-1][1]

    monkeypatch.setattr(Replica, "_send", watched_send)
    monkeypatch.setattr(Replica, "receive", watched_receive)
    return SimpleNamespace(sent=sent, received=received)


def test_prompts_go_together_and_so_do_the_answers(single, parallel, messages):
    prompts = [[5 + i, 9, 30] for i in range(21)]
    expected = outcome(single.generate(prompts, GREEDY))
    assert outcome(parallel.generate(prompts, GREEDY)) == expected
    replicas = list(range(len(parallel.engine._replicas)))
    assert [number for number, _ in messages.sent] == replicas
    sizes = [len(commands) for _, commands in messages.sent]
    assert sum(sizes) == 21
    assert max(sizes) - min(sizes) <= 1
    answered = [(n, m) for n, m in messages.received if isinstance(m, Answered)]
    assert sorted(n for n, _ in answered) == replicas
    assert sum(len(message.answers) for _, message in answered) == 21


def test_those_of_a_batch_that_are_refused_leave_nothing_behind(single, parallel, messages):
    engine = parallel.engine
    engine.add_request("before", PROMPTS[0], GREEDY, stream=False)
    with pytest.raises(RequestError, match="is empty"):
        parallel.generate([[5], [], [10**6], [7, 8]])
    assert engine.num_sampled_tokens().keys() == {"before"}
    num_sent = len(messages.sent)
    twice = [("before", [5], None)], [("new", [5], None), ("new", [6], None)]
    for requests in twice:
        with pytest.raises(RequestError, match="in use"):
            engine.add_requests(requests)
    assert len(messages.sent) == num_sent
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert outcome(outputs) == outcome(single.generate([PROMPTS[0]], GREEDY))
    while not engine.is_quiet():
        engine.step()
    assert engine.stats().num_pages_used == 0


def test_a_server_runs_on_it(single, parallel):
    with running_server(parallel, ServerSettings(model_name="tiny")) as server:
        body = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 8, "ignore_eos": True}
        answers = [
            httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
            for _ in range(2)
        ]
    (expected,) = single.generate([PROMPTS[0]], SamplingParams(max_tokens=8, ignore_eos=True))
    for answer in answers:
        assert answer["choices"][0]["text"] == expected.outputs[0].text
        assert answer["usage"]["prompt_tokens"] == len(PROMPTS[0])


def test_requests_spread_over_replicas_and_a_dead_one_is_named(checkpoint):
    llm = LLM(checkpoint, **SIZES, data_parallel_size=2)
    long = SamplingParams(max_tokens=1000, ignore_eos=True)
    for name in "abcd":
        llm.engine.add_request(name, PROMPTS[0], long, stream=False)
    replicas = llm.engine._replicas
    assert [len(replica.unfinished) for replica in replicas] == [2, 2]
    replicas[1].processes[0].kill()
    with pytest.raises(WorkerError, match="Replica 1"):
        step_to_the_end(llm.engine)
    llm.engine.shutdown()


def step_to_the_end(engine):
    while engine.has_unfinished_requests():
        engine.step()


def test_a_replica_that_cannot_load_says_why(tmp_path):
    options = {"dtype": "auto", "compression": None, "config": None}
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        ParallelEngine(tmp_path, options, device=torch.device("cpu"), data_parallel_size=2)


class TalkativeEngine:
    """Stands for an engine with long streams: each step gives more than a pipe holds."""

    kv_bytes_per_token = max_model_len = vocab_size = 1

    def __init__(self):
        self.aborted = set()
        self.scheduler = SimpleNamespace(running=[])
        self.texts = itertools.cycle(["x" * 4_000_000, "y" * 4_000_000])

    def warm_up(self, on_phase):
        on_phase("warming up")

    def num_sampled_tokens(self, among):
        return {}

    def stats(self):
        return None

    def has_unfinished_requests(self):
        return True

    def step(self):
        sample = CompletionOutput(0, next(self.texts), [])
        return [RequestOutput("long", None, [], [sample], finished=False)]

    def abort_request(self, request_id):
        self.aborted.add(request_id)


def test_many_aborts_do_not_wait_for_outputs_that_nobody_reads(monkeypatch):
    engine = TalkativeEngine()
    monkeypatch.setattr(parallel_worker, "_load", lambda *_: engine)
    ours, theirs = Pipe()
    worker = Thread(target=parallel_worker.serve, args=(theirs, 0, 1, 0, "cpu", {}), daemon=True)
    worker.start()
    assert ours.recv() == parallel_worker.Loading("warming up")
    assert isinstance(ours.recv(), parallel_worker.Ready)
    names = [f"stream-{i}" for i in range(20_000)]
    asking = Thread(target=lambda: [ours.send([("abort", n)]) for n in names], daemon=True)
    asking.start()
    asking.join(60)
    assert not asking.is_alive(), "both ends write, and neither reads"
    while len(engine.aborted) < len(names):
        assert isinstance(ours.recv(), parallel_worker.Stepped)
    ours.close()
    worker.join(60)
    assert not worker.is_alive()
