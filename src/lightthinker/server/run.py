"""Runs the application under uvicorn, and ends it gently.

On SIGTERM or SIGINT `/ready` turns 503 and new requests are refused, while running ones finish up
to `drain_timeout_s`; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import logging
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from lightthinker.engine.async_llm import AsyncLLM
from lightthinker.server.settings import ServerSettings

logger = logging.getLogger("lightthinker.server")


class DrainingServer(uvicorn.Server):  # type: ignore[misc]
    """A uvicorn server that lets running requests finish before it closes its socket."""

    def __init__(self, config: uvicorn.Config, engine: AsyncLLM, drain_timeout_s: float):
        super().__init__(config)
        self.engine = engine
        self.drain_timeout_s = drain_timeout_s
        self._drain: asyncio.Task[None] | None = None
        self._signalled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; end at once when signalled again."""
        if self._signalled:
            self.should_exit = self.force_exit = True
        self._signalled = True

    async def on_tick(self, counter: int) -> bool:
        """Start the drain that a signal asked for."""
        if self._signalled and self._drain is None:
            self._drain = asyncio.create_task(self._drain_and_exit())
        stop: bool = await super().on_tick(counter)
        return stop

    async def _drain_and_exit(self) -> None:
        num_running = self.engine.num_unfinished
        logger.info("draining %d requests, at most %g s", num_running, self.drain_timeout_s)
        if not await self.engine.drain(self.drain_timeout_s):
            logger.warning("some requests did not finish in time and were aborted")
        self.should_exit = True


def make_server(
    app: FastAPI, engine: AsyncLLM, settings: ServerSettings, **options: Any
) -> DrainingServer:
    """Return a server that is ready to run; `options` go to `uvicorn.Config`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        **options,
    )
    return DrainingServer(config, engine, settings.drain_timeout_s)
