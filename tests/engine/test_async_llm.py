"""AsyncLLM: many tasks, one engine; aborts, drains, failures."""

from __future__ import annotations

import asyncio
import gc
import sys
import time

import pytest

from lightthinker import LLM, AsyncLLM, SamplingParams
from lightthinker.compression import CompressionConfig
from lightthinker.engine.interpreter import (
    SWITCH_INTERVAL_S,
    exempt_what_stays,
    shorten_switch_interval,
)
from lightthinker.engine.request_stream import (
    EngineBusyError,
    EngineDeadError,
    EngineStoppedError,
    RequestAbortedError,
    merged,
)
from lightthinker.errors import RequestError
from lightthinker.testing.models import tiny_checkpoint

LONG = SamplingParams(max_tokens=3000, ignore_eos=True, max_thought_tokens=20)
SHORT = SamplingParams(max_tokens=12, ignore_eos=True, max_thought_tokens=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("async"))


@pytest.fixture
def llm(checkpoint):
    return LLM(checkpoint, device="cpu", num_kv_tokens=8192)


@pytest.fixture
def engine(llm):
    made = AsyncLLM(llm, max_requests=8)
    yield made
    made.shutdown()


async def last(engine, prompt, params):
    states = [output async for output in engine.generate(prompt, params)]
    return states[-1]


def test_answers_are_those_of_the_llm(llm):
    prompts = ["one", "two", [5, 9, 30]]
    expected = [o.outputs[0] for o in llm.generate(prompts, SHORT)]
    engine = AsyncLLM(llm)

    async def run():
        return await asyncio.gather(*(last(engine, p, SHORT) for p in prompts))

    got = asyncio.run(run())
    engine.shutdown()
    assert [o.outputs[0].token_ids for o in got] == [o.token_ids for o in expected]
    assert [o.outputs[0].text for o in got] == [o.text for o in expected]


def test_a_slow_reader_gets_the_newest_state_and_all_text(engine):
    async def run():
        seen, fast = [], asyncio.ensure_future(last(engine, "other", LONG))
        async for output in engine.generate("slow", SamplingParams(max_tokens=60, ignore_eos=True)):
            seen.append(len(output.outputs[0].token_ids))
            await asyncio.sleep(0.05)
        fast.cancel()
        return seen, output

    seen, output = asyncio.run(run())
    assert len(seen) < 60
    assert seen == sorted(set(seen))
    assert seen[-1] == 60
    assert output.finished


def test_leaving_the_iterator_aborts_the_request(engine):
    async def run():
        stream = engine.generate("x", LONG)
        async for _ in stream:
            break
        assert engine.num_unfinished == 1
        await stream.aclose()
        while engine.num_unfinished:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert engine.stats().num_pages_used == 0
    assert not engine.llm.engine.has_unfinished_requests()


def test_a_cancelled_task_aborts_its_request(engine):
    async def run():
        task = asyncio.ensure_future(last(engine, "x", LONG))
        while not engine.stats().num_running:
            await asyncio.sleep(0.005)
        task.cancel()
        while engine.num_unfinished:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert engine.stats().num_pages_used == 0


def test_a_request_that_cannot_be_served_fails_alone(engine):
    async def run():
        other = asyncio.ensure_future(last(engine, "fine", SHORT))
        with pytest.raises(RequestError, match="vocabulary"):
            await last(engine, [10**6], SHORT)
        with pytest.raises(RequestError, match="in use"):
            await asyncio.gather(*(engine.add_request("x", LONG, "same") for _ in range(2)))
        return await other

    assert asyncio.run(run()).finished
    assert engine.is_healthy


def test_more_than_max_requests_are_refused(engine):
    async def run():
        streams = [await engine.add_request("x", LONG) for _ in range(8)]
        with pytest.raises(EngineBusyError):
            await engine.add_request("x", SHORT)
        for stream in streams:
            stream.abort()
        while engine.num_unfinished:
            await asyncio.sleep(0.005)
        return await last(engine, "x", SHORT)

    assert asyncio.run(asyncio.wait_for(run(), 60)).finished


def test_streams_can_be_read_together(engine):
    async def run():
        wake = asyncio.Event()
        streams = [await engine.add_request(p, SHORT, wake=wake) for p in ("a", "b")]
        return {i: output async for i, output in merged(streams)}

    final = asyncio.run(run())
    assert [final[i].finished for i in (0, 1)] == [True, True]
    assert final[0].prompt == "a"


def test_a_drain_lets_requests_finish_and_takes_no_new_ones(engine):
    async def run():
        running = asyncio.ensure_future(last(engine, "x", SamplingParams(max_tokens=50)))
        while not engine.stats().num_running:
            await asyncio.sleep(0.005)
        draining = asyncio.ensure_future(engine.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(EngineStoppedError):
            await engine.add_request("y", SHORT)
        return await draining, await running

    drained, output = asyncio.run(run())
    assert drained
    assert output.finished


def test_a_drain_out_of_time_aborts_the_rest(engine):
    async def run():
        running = asyncio.ensure_future(last(engine, "x", LONG))
        while not engine.stats().num_running:
            await asyncio.sleep(0.005)
        assert not await engine.drain(0.05)
        with pytest.raises(RequestAbortedError):
            await running

    asyncio.run(asyncio.wait_for(run(), 60))
    assert engine.stats().num_pages_used == 0


def test_a_failing_engine_tells_everybody(engine):
    async def run():
        tasks = [asyncio.ensure_future(last(engine, "x", LONG)) for _ in range(3)]
        while engine.stats().num_running < 3:
            await asyncio.sleep(0.005)

        def fail(*_):
            raise RuntimeError("the device is gone")

        engine.llm.engine.sampler.sample = fail
        for task in tasks:
            with pytest.raises(EngineDeadError):
                await task
        with pytest.raises(EngineDeadError):
            await engine.add_request("y", SHORT)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert not engine.is_healthy
    assert isinstance(engine.failure, RuntimeError)


def test_an_observer_sees_every_token_and_may_fail(llm):
    counts = {}

    def observe(progress):
        for p in progress:
            counts[p.request_id] = p.num_sampled
            assert p.arrived <= (p.scheduled or time.monotonic())
        raise ValueError("observers may fail")

    engine = AsyncLLM(llm, on_step=observe)
    asyncio.run(last(engine, "x", SHORT))
    engine.shutdown()
    assert list(counts.values()) == [12]


def test_waiting_ends_when_the_first_step_begins(llm, monkeypatch):
    seen, begun = [], []
    engine = AsyncLLM(llm, on_step=lambda progress: seen.extend(progress))
    step = llm.engine.step

    def slow_step():
        begun.append(time.monotonic())
        time.sleep(0.05)
        return step()

    monkeypatch.setattr(llm.engine, "step", slow_step)
    asyncio.run(last(engine, "x", SHORT))
    engine.shutdown()
    assert seen[0].num_sampled == 1
    assert {p.scheduled for p in seen} == {seen[0].scheduled}
    assert seen[0].arrived <= seen[0].scheduled <= begun[0]


@pytest.mark.parametrize("budget", [0, 7, 30])
@pytest.mark.parametrize("compression", [None, False])
def test_a_thinking_budget_ends_reasoning(llm, budget, compression):
    params = SamplingParams(
        max_tokens=60, ignore_eos=True, max_thought_tokens=10, thinking_token_budget=budget,
        compression=compression,
    )  # fmt: skip
    output = llm.generate("x", params)[0].outputs[0]
    _, _, after = output.text.partition("</think>\n\n")
    ids = output.token_ids
    trigger = llm.compression.trigger_id
    marker = llm.tokenizer("</think>\n\n", add_special_tokens=False)["input_ids"]
    ends_thought = budget % 11 > 0
    assert ids[budget : budget + ends_thought] == [trigger] * ends_thought
    assert ids[budget + ends_thought :][: len(marker)] == marker
    assert len(ids) == 60
    assert after


def test_a_budget_needs_a_marker(tmp_path):
    folder = tiny_checkpoint(tmp_path, compression=CompressionConfig(num_gists=2, reasoning_end=""))
    with pytest.raises(RequestError, match="how reasoning ends"):
        LLM(folder, device="cpu").generate("x", SamplingParams(thinking_token_budget=4))
    with pytest.raises(RequestError, match="thinking_token_budget"):
        SamplingParams(thinking_token_budget=-1)


def test_a_budget_forces_nothing_where_reasoning_is_over(llm):
    """The marker was sampled before the budget was spent: everything after is the model's."""
    marker = llm.tokenizer("</think>\n\n", add_special_tokens=False)["input_ids"]
    script = [*marker, *[40] * 50]
    llm.engine.sampler.sample = lambda logits, seqs: [script[len(s.sampled_ids)] for s in seqs]
    params = SamplingParams(max_tokens=40, ignore_eos=True, thinking_token_budget=20)
    assert llm.generate("x", params)[0].outputs[0].token_ids == script[:40]


def test_the_interpreter_is_shared_finely_and_never_more_coarsely():
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        shorten_switch_interval()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S, abs=2e-6)
        sys.setswitchinterval(SWITCH_INTERVAL_S / 2)
        shorten_switch_interval()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S / 2, abs=2e-6)
    finally:
        sys.setswitchinterval(before)


def test_what_is_there_when_the_engine_is_ready_is_never_collected_again():
    before = gc.get_freeze_count()
    try:
        exempt_what_stays()
        assert gc.get_freeze_count() > before
        assert not gc.get_objects(generation=2), "a full collection still looks through them"
    finally:
        gc.unfreeze()
