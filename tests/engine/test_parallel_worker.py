"""What a worker tells of requests that were sent together: answers, progress, whose turn it was."""

from __future__ import annotations

from multiprocessing import Pipe
from threading import Thread

import pytest

from lightthinker import SamplingParams
from lightthinker.engine import parallel_worker
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.engine import LLMEngine
from lightthinker.engine.parallel_worker import Added, Answered, Loading, Ready, Refused, Stepped
from lightthinker.errors import RequestError
from lightthinker.testing.models import byte_tokenizer, tiny_model


def make_engine(**sizes):
    settings = {"num_kv_tokens": 2048, "page_size": 4, **sizes}
    return LLMEngine(tiny_model("llama"), byte_tokenizer(), None, config=EngineConfig(**settings))


def params(num_tokens, **others):
    return SamplingParams(max_tokens=num_tokens, ignore_eos=True, **others)


@pytest.fixture
def pipe(monkeypatch):
    """The asking end of a worker's pipe, whose engine runs one sequence at a time."""
    engine = make_engine(max_num_seqs=1)
    monkeypatch.setattr(parallel_worker, "_load", lambda *_: engine)
    ours, theirs = Pipe()
    worker = Thread(target=parallel_worker.serve, args=(theirs, 0, 1, 0, "cpu", {}), daemon=True)
    worker.start()
    message = ours.recv()
    while isinstance(message, Loading):
        message = ours.recv()
    assert isinstance(message, Ready)
    yield ours
    ours.close()
    worker.join(60)
    assert not worker.is_alive()


def test_a_batch_is_answered_at_once_and_served_by_priority(pipe):
    asked = {"low": 2, "wrong": 0, "high": 0, "aborted": 0, "middle": 1}
    prompts = {"wrong": [10**6]}
    commands = [
        ("add", key, prompts.get(key, [5, 9]), params(3, priority=priority), 1, False)
        for key, priority in asked.items()
    ]
    pipe.send([*commands, ("abort", "aborted")])
    answered = pipe.recv()
    assert isinstance(answered, Answered)
    assert [(type(a), a.key) for a in answered.answers] == [
        (Refused if key == "wrong" else Added, key) for key in asked
    ]
    assert isinstance(answered.answers[1].error, RequestError)
    order, aborted = [], []
    while len(order) < 3:
        message = pipe.recv()
        assert isinstance(message, Stepped)
        assert len(message.num_sampled) <= 1, "requests that wait make no progress"
        aborted += message.aborted
        order += [delta.key for delta in message.deltas if delta.finished]
    assert (order, aborted) == (["high", "middle", "low"], ["aborted"])


@pytest.mark.parametrize("is_async", [False, True])
def test_progress_that_is_told_adds_up_to_what_the_engine_knows(is_async):
    engine = make_engine(num_kv_tokens=64, max_num_seqs=4, async_scheduling=is_async)
    worker = parallel_worker._Worker(engine, None, 1)
    keys = [str(i) for i in range(9)]
    for i, key in enumerate(keys):
        engine.add_request(key, [5 + i] * 6, params(8 + 3 * i, seed=i), stream=False)
        worker.unscheduled.add(key)
    told, scheduled = dict.fromkeys(keys, 0), []
    while engine.has_unfinished_requests():
        report = worker._report(engine.step())
        told |= report.num_sampled
        scheduled += report.scheduled
        now = engine.num_sampled_tokens()
        assert {key: told[key] for key in now} == now
        started = {key for key in now if engine.is_scheduled(key)}
        assert started == set(scheduled) & now.keys()
    assert sorted(scheduled) == keys
    assert engine.stats().num_preemptions > 0
