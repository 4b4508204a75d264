"""A real server on a free port of this machine, in a thread: for tests and benchmarks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightthinker.engine.async_llm import AsyncLLM
from lightthinker.engine.llm import LLM
from lightthinker.server.address import bind
from lightthinker.server.app import create_app
from lightthinker.server.run import DrainingServer, make_server
from lightthinker.server.settings import ServerSettings
from lightthinker.server.tracing import Tracing

START_TIMEOUT_S = 60.0

FORCED_REASONING: dict[str, Any] = {
    "thinking_token_budget": 40,
    "ignore_eos": True,
    "lightthinker": {"max_thought_tokens": 12},
}
"""Fields that make a random model think in thoughts of 12 tokens, stop thinking, and answer."""


def chat_body(text: str = "What is 2 + 2?", **fields: Any) -> dict[str, Any]:
    """Return a chat request that a random model answers with thoughts and an answer."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 90}
    return body | FORCED_REASONING | fields


@dataclass
class RunningServer:
    """A server that answers.

    Attributes:
        url: Its address, without path.
        engine: Its engine.
        server: uvicorn.
    """

    url: str
    engine: AsyncLLM
    server: DrainingServer

    def wait_until_idle(self, timeout_s: float = 60.0) -> bool:
        """Wait until no request is unfinished; whether that happened in time."""

        def idle() -> bool:
            stats = self.engine.stats()
            return not (stats.num_running or stats.num_waiting or self.engine.num_unfinished)

        return _wait(idle, timeout_s)

    def wait_until_no_tasks(self, timeout_s: float = 60.0) -> bool:
        """Wait until no HTTP request is being served; whether that happened in time."""
        return _wait(lambda: not self.server.server_state.tasks, timeout_s)


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@contextmanager
def running_server(
    llm: LLM,
    settings: ServerSettings | None = None,
    *,
    max_requests: int | None = None,
    tracing: Tracing | None = None,
) -> Iterator[RunningServer]:
    """Serve a model over real HTTP on 127.0.0.1 while the block runs.

    Args:
        llm: The model; not used by anything else meanwhile.
        settings: Of the server.
        max_requests: Of the engine.
        tracing: Of the server.
    """
    settings = settings or ServerSettings()
    engine = AsyncLLM(llm, max_requests=max_requests)
    sock = bind("127.0.0.1", 0)
    server = make_server(create_app(engine, settings, tracing), engine, settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield RunningServer(f"http://127.0.0.1:{sock.getsockname()[1]}", engine, server)
    finally:
        server.should_exit = True
        thread.join(30)
