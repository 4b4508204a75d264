"""Which requests a step reports: at once, or in turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lightthinker import LLM, SamplingParams
from lightthinker.engine import reports as module
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.reports import Reports
from lightthinker.errors import RequestError
from lightthinker.testing.models import tiny_checkpoint


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(module, "monotonic", lambda: self.now)


def make_requests(reports, count, *, stream=True, num_known=1):
    made = {}
    for i in range(count):
        made[str(i)] = SimpleNamespace(
            request_id=str(i),
            stream=stream,
            was_reported=False,
            finished=False,
            sequences=[SimpleNamespace(num_known=num_known)],
        )
        reports.follow(made[str(i)])
    return made


def steps(reports, requests, clock, count, step_s):
    """Return the names that each of some steps reports."""
    told = []
    for _ in range(count):
        clock.now += step_s
        told.append([r.request_id for r in reports.due(requests, num_finished=0)])
    return told


def test_without_a_limit_every_stream_is_told_of_at_every_step(monkeypatch):
    clock, reports = Clock(monkeypatch), Reports()
    requests = make_requests(reports, 3)
    assert steps(reports, requests, clock, 2, 0.001) == [["0", "1", "2"]] * 2


def test_turns_are_kept_and_spread_over_the_steps(monkeypatch):
    clock = Clock(monkeypatch)
    reports = Reports(max_per_s=1000)
    requests = make_requests(reports, 64)
    assert len(steps(reports, requests, clock, 1, 0.007)[0]) == 64  # The first of each at once,
    assert not any(steps(reports, requests, clock, 8, 0.007))  # which they have to make up for.
    told = steps(reports, requests, clock, 900, 0.007)
    assert 0.98 * 6300 <= sum(map(len, told)) <= 6301
    assert max(map(len, told)) <= 8
    order = [name for names in told for name in names]
    assert all(order[i] == order[i - 64] for i in range(64, len(order)))


def test_one_stream_alone_is_told_of_at_every_step(monkeypatch):
    clock, reports = Clock(monkeypatch), Reports(max_per_s=200)
    requests = make_requests(reports, 1)
    assert steps(reports, requests, clock, 50, 0.0051) == [["0"]] * 50


def test_time_without_streams_earns_no_burst(monkeypatch):
    clock, reports = Clock(monkeypatch), Reports(max_per_s=100)
    requests = make_requests(reports, 4)
    steps(reports, requests, clock, 1, 60.0)
    told = steps(reports, requests, clock, 100, 0.01)
    assert all(len(names) <= 1 for names in told)


def test_a_first_token_does_not_wait_and_a_finished_request_is_told_of_at_once(monkeypatch):
    clock = Clock(monkeypatch)
    reports = Reports(max_per_s=1e-6)
    requests = make_requests(reports, 2)
    steps(reports, requests, clock, 1, 0.01)
    late = SimpleNamespace(
        request_id="late",
        stream=True,
        was_reported=False,
        finished=False,
        sequences=[SimpleNamespace(num_known=0)],
    )
    requests["late"] = late
    reports.follow(late)
    assert steps(reports, requests, clock, 1, 0.01) == [[]]  # It has nothing to tell.
    late.sequences[0].num_known = 1
    assert steps(reports, requests, clock, 2, 0.01) == [["late"], []]
    requests["0"].finished = True
    assert [r.request_id for r in reports.due(requests, num_finished=1)] == ["0"]


def test_who_does_not_stream_is_told_of_when_finished(monkeypatch):
    clock, reports = Clock(monkeypatch), Reports()
    requests = make_requests(reports, 2, stream=False)
    assert steps(reports, requests, clock, 1, 0.01) == [[]]
    requests["1"].finished = True
    assert [r.request_id for r in reports.due(requests, num_finished=1)] == ["1"]
    reports.forget(requests.pop("1"))
    assert not reports.due(requests, num_finished=1)


def test_a_limited_engine_tells_less_often_and_the_same_in_the_end(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    params = SamplingParams(max_tokens=60, ignore_eos=True, max_thought_tokens=15)
    states = {}
    for limit in (float("inf"), 1e-3):
        llm = LLM(folder, device="cpu", num_kv_tokens=4096, max_stream_updates_per_s=limit)
        states[limit] = list(llm.stream("What is 2 + 2?", params))
    full, limited = states.values()
    assert len(full) >= 60
    assert len(limited) == 2
    assert limited[-1].outputs == full[-1].outputs
    assert limited[0].outputs[0].token_ids == full[-1].outputs[0].token_ids[:1]


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_is_positive(limit):
    with pytest.raises(RequestError, match="max_stream_updates_per_s"):
        EngineConfig(max_stream_updates_per_s=limit)
