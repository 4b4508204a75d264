"""The load generator: what it sends, when, and how it counts."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean, stdev

import pytest

from lightthinker.bench.load import Load, Measured, arrival_times, run_load
from lightthinker.bench.metrics import parse_goodput, summarize
from lightthinker.bench.send import RequestResult
from lightthinker.bench.workload import Workload, random_text
from lightthinker.cli.app import main
from lightthinker.errors import ConfigError, DataError, RequestError
from lightthinker.tasks import count_tokens
from lightthinker.testing.fake_server import FakeServer, Script

SCRIPT = Script(["one two three", "four five"], "The answer is 9.")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(lambda _: SCRIPT, pause_s=0.0005) as server:
        yield server


def load(server: FakeServer, **changes) -> Load:  # type: ignore[no-untyped-def]
    return Load(base_url=server.url, **changes)


def test_counts_are_the_servers_and_times_add_up(server: FakeServer) -> None:
    settings = load(server, max_concurrency=3)
    requests = Workload(num_prompts=7, input_len=20, output_len=30).requests()

    measured = asyncio.run(run_load(settings, requests))
    summary = summarize(measured, settings, {"e2el": 60_000})

    tokens = count_tokens("one two three") + count_tokens("four five") + 2
    tokens += count_tokens(SCRIPT.answer)
    assert summary["completed"] == 7
    assert summary["failed"] == 0
    assert summary["total_output_tokens"] == 7 * tokens
    assert summary["request_goodput"] == pytest.approx(summary["request_throughput"])
    assert 1 <= summary["max_concurrent_requests"] <= 3
    assert summary["lightthinker"]["mean_thoughts"] == 2
    for result in measured.results:
        assert len(result.itl) == tokens - 3  # two separators bring no text
        assert result.latency >= result.ttft + sum(result.itl)
        assert result.ttft > 0
    body = server.requests[-1]
    assert body["ignore_eos"] is True
    assert body["max_tokens"] == 30
    assert body["stream_options"] == {"include_usage": True}
    assert len(server.requests) == 8


def test_statistics_are_vllms() -> None:
    results = [
        RequestResult(
            success=True, started=float(i), ttft=0.1 * (i + 1), itl=[0.02, 0.04], latency=1.0 + i,
            prompt_tokens=10, output_tokens=3,
        )
        for i in range(4)
    ]  # fmt: skip
    results.append(RequestResult(error="refused"))
    measured = Measured(model="m", results=results, duration=2.0)

    summary = summarize(
        measured, Load(base_url="http://x"), parse_goodput(["ttft:250", "e2el:1500"])
    )

    assert summary["completed"] == 4
    assert summary["errors"] == {"refused": 1}
    assert summary["request_throughput"] == 2.0
    assert summary["request_goodput"] == 0.5
    assert summary["output_throughput"] == 6.0
    assert summary["mean_ttft_ms"] == pytest.approx(250)
    assert summary["median_e2el_ms"] == pytest.approx(2500)
    assert summary["mean_itl_ms"] == pytest.approx(30)
    assert summary["mean_tpot_ms"] == pytest.approx(
        mean((1 + i - 0.1 * (i + 1)) / 2 for i in range(4)) * 1000
    )
    assert summary["p99_e2el_ms"] == pytest.approx(3970)
    assert summary["max_concurrent_requests"] == 2


def test_arrivals_are_poisson_unless_told_otherwise() -> None:
    def gaps(**changes) -> list[float]:  # type: ignore[no-untyped-def]
        moments = arrival_times(Load(base_url="http://x", request_rate=5.0, **changes), 4000)
        assert moments[0] == 0.0
        return [b - a for a, b in pairwise(moments)]

    poisson, even = gaps(), gaps(burstiness=25.0)

    assert mean(poisson) == pytest.approx(0.2, rel=0.05)
    assert stdev(poisson) == pytest.approx(0.2, rel=0.1)
    assert mean(even) == pytest.approx(0.2, rel=0.05)
    assert stdev(even) == pytest.approx(0.04, rel=0.1)
    assert gaps() == poisson
    assert arrival_times(Load(base_url="http://x"), 3) == [0.0] * 3


def test_time_is_limited(server: FakeServer) -> None:
    server.answer = lambda _: Script([" ".join(["more"] * 20)], "", endless=True)
    settings = load(server, max_seconds=1.0, num_warmups=0)

    measured = asyncio.run(run_load(settings, Workload(num_prompts=2, input_len=1).requests()))

    assert [r.success for r in measured.results] == [False, False]
    assert measured.results[0].error == "not finished in time"
    assert server.aborted.wait(30)


def test_a_server_that_refuses_is_an_error_at_once(server: FakeServer) -> None:
    requests = Workload(num_prompts=2, input_len=1).requests()

    with pytest.raises(RequestError, match="model `gone` does not exist"):
        asyncio.run(run_load(load(server, model="gone"), requests))
    with pytest.raises(RequestError, match="cannot be reached"):
        asyncio.run(run_load(Load(base_url="http://127.0.0.1:9"), requests))


def test_random_prompts_have_the_length_asked_for() -> None:
    settings = Workload(num_prompts=50, input_len=40, output_len=10, range_ratio=0.5, seed=3)

    requests = settings.requests()

    lengths = [len(r.messages[0]["content"].split()) for r in requests]
    assert min(lengths) >= 20
    assert max(lengths) <= 60
    assert len(set(lengths)) > 10
    assert settings.requests() == requests
    text = random_text(Random(1), 30, lambda t: 2 * len(t.split()))
    assert len(text.split()) == 15


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    second = {"messages": [{"role": "user", "content": "b"}], "output_len": 7}
    path.write_text(f'{{"prompt": "a"}}\n\n{json.dumps(second)}\n')

    requests = Workload(dataset="jsonl", path=path, num_prompts=3, output_len=5).requests()

    assert [r.messages[0]["content"] for r in requests] == ["a", "b", "a"]
    assert [r.max_tokens for r in requests] == [5, 7, 5]
    assert not requests[0].exact
    path.write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="line 1: expected an object with `prompt`"):
        Workload(dataset="jsonl", path=path).requests()


def test_tasks_are_problems_of_the_family() -> None:
    requests = Workload(dataset="tasks", family="multiplication", num_prompts=2).requests()

    assert all(r.messages[0]["content"].startswith("What is") for r in requests)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload(dataset="randon"), "Did you mean 'random'"),
        (lambda: Workload(num_prompts=0), "num_prompts is 0"),
        (lambda: Workload(dataset="jsonl"), "takes a file"),
        (lambda: Workload(family="program"), "Did you mean 'programs'"),
        (lambda: Load(base_url="x", backend="openai_chat"), "Did you mean 'openai-chat'"),
        (lambda: Load(base_url="x", request_rate=0), "request_rate is 0"),
        (lambda: Load(base_url="x", burstiness=math.nan), "burstiness is nan"),
        (lambda: parse_goodput(["itl:3"]), "goodput is 'itl:3'"),
        (lambda: parse_goodput(["ttft:fast"]), "goodput is 'ttft:fast'"),
    ],
)
def test_settings_are_checked(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_command_prints_a_table_and_one_json_line(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    main(
        ["bench", "serve", "--base-url", server.url, "--num-prompts", "3",
         "--dataset-name", "tasks", "--goodput", "ttft:60000",
         "--extra-body", '{"lightthinker": {"compression": false}}',
         "--result", str(path)]
    )  # fmt: skip

    text = capsys.readouterr().out
    summary = json.loads(text.splitlines()[-1])
    assert "Time to first token (ms)" in text
    assert summary["completed"] == 3
    assert summary["request_rate"] == "inf"
    assert json.loads(path.read_text()) == summary
    assert server.requests[-1]["lightthinker"] == {"compression": False}
