"""What is counted over an engine's requests is counted over those that are there."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest

from lightthinker.engine import unfinished as module
from lightthinker.engine.reports import Reports
from lightthinker.engine.unfinished import UnfinishedRequests


def request(name, *, deadline=inf, impatient=False):
    sequence = SimpleNamespace(needs_known_tokens=impatient, num_known=1)
    return SimpleNamespace(
        request_id=name, deadline=deadline, sequences=[sequence], stream=True, finished=False
    )


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


def names(requests):
    return [r.request_id for r in requests]


def test_time_limits_pass_one_after_the_other(clock):
    requests = UnfinishedRequests(Reports())
    for name, deadline in (("late", 120.0), ("early", 110.0), ("never", inf)):
        requests.add(request(name, deadline=deadline))
    assert requests.overdue() == []
    clock.now = 110.0
    assert names(requests.overdue()) == ["early"]
    assert requests.overdue() == []
    requests.remove("early")
    clock.now = 119.0
    assert requests.overdue() == []
    clock.now = 121.0
    assert names(requests.overdue()) == ["late"]
    requests.expire("never")
    requests.expire("unknown")
    assert names(requests.overdue()) == ["late", "never"]


def test_who_has_left_is_neither_counted_nor_told_of():
    requests = UnfinishedRequests(Reports())
    for name in "abc":
        requests.add(request(name, impatient=name != "b"))
    assert (requests.num_impatient, names(requests.due(0))) == (2, ["a", "b", "c"])
    assert requests.remove("a").request_id == "a"
    assert requests.remove("a") is None
    assert (requests.num_impatient, names(requests.due(0))) == (1, ["b", "c"])


def test_a_finished_request_is_due_until_it_was_told_and_then_gone():
    requests = UnfinishedRequests(Reports())
    for name in "ab":
        requests.add(request(name, impatient=True))
    requests.by_id["a"].finished = True
    assert names(requests.due(1)) == names(requests.due(1)) == ["a", "b"]
    outputs = [
        SimpleNamespace(request_id=r.request_id, finished=r.finished) for r in requests.due(1)
    ]
    requests.told(outputs, 1)
    assert (list(requests.by_id), requests.num_impatient) == (["b"], 1)
    assert names(requests.due(1)) == ["b"]
