"""One tiny model behind a real server for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from lightthinker import LLM
from lightthinker.server.settings import ServerSettings
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.serving import RunningServer, running_server


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[RunningServer]:
    with running_server(
        LLM(checkpoint, device="cpu", num_kv_tokens=32_768), ServerSettings(model_name="tiny")
    ) as running:
        yield running


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened
