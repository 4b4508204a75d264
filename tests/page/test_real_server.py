"""Page, terminal chat and load generator against the real server with a real engine."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from conftest import PROBLEM
from rich.console import Console

from lightthinker.bench.load import Load, run_load
from lightthinker.bench.metrics import summarize
from lightthinker.bench.workload import BenchRequest
from lightthinker.demo.chat_sources import RemoteSource
from lightthinker.demo.conversation import Conversation
from lightthinker.engine.async_llm import AsyncLLM
from lightthinker.engine.llm import LLM
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.server.app import create_app
from lightthinker.server.settings import ServerSettings
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.scripted import TraceSampler


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose engine answers `PROBLEM` by the book."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    llm = LLM(str(folder), device="cpu", num_kv_tokens=4096)
    TraceSampler(llm, [PROBLEM])
    engine = AsyncLLM(llm)
    config = uvicorn.Config(
        create_app(engine, ServerSettings(model_name="tiny")), port=0, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ready = threading.Event()
    for _ in range(1200):
        if server.started or ready.wait(0.05):
            break
    assert server.started
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def test_the_load_generator_measures_it(url: str) -> None:
    load = Load(base_url=url, num_warmups=0, extra_body={"lightthinker": {"compression": True}})
    request = BenchRequest(
        messages=({"role": "user", "content": PROBLEM.question},), max_tokens=500
    )

    measured = asyncio.run(run_load(load, [request] * 3))
    summary = summarize(measured, load, {})

    assert summary["completed"] == 3, summary["errors"]
    assert summary["model_id"] == "tiny"
    assert summary["lightthinker"]["mean_thoughts"] == len(PROBLEM.thoughts)
    assert summary["total_output_tokens"] > summary["total_input_tokens"] > 0
    assert summary["mean_itl_ms"] > 0


@pytest.mark.parametrize("compression", [True, False])
def test_the_terminal_chat_talks_with_it(url: str, compression: bool) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    params = SamplingParams(max_tokens=500, compression=compression)
    chat = Conversation(RemoteSource(url), params, console)

    chat.ask(PROBLEM.question)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert chat.messages[-1] == {"role": "assistant", "content": PROBLEM.answer}
    assert text.count(" gists)") == (len(PROBLEM.thoughts) if compression else 0)
    assert (chat.costs[0].tokens_freed > 0) == compression
    for thought in PROBLEM.thoughts:
        assert thought[:30] in text


def test_the_page_shows_it_both_ways(url: str, browser) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    page.goto(url)
    page.wait_for_selector("#model-name:has-text('tiny')")
    page.check("input[name=mode][value=both]", force=True)
    page.fill("#question", PROBLEM.question)
    page.press("#question", "Enter")
    page.locator(".run.ours .cost").wait_for()
    page.locator(".run.full .cost").wait_for()

    for kind in ("ours", "full"):
        shown = page.locator(f".run.{kind} .thought .text").all_text_contents()
        assert tuple(shown) == PROBLEM.thoughts
        assert page.inner_text(f".run.{kind} .answer .text") == PROBLEM.answer
    assert page.locator(".run.ours .thought.folded.closed").count() == len(PROBLEM.thoughts)
    assert page.locator(".run.full .thought.kept").count() == len(PROBLEM.thoughts)
    assert troubles == []
    page.close()
