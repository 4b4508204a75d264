"""The command itself: drains on SIGTERM, comes back after kill -9, says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from lightthinker.testing.serving import chat_body

MAIN = "import sys; from lightthinker.cli.app import main; main(sys.argv[1:])"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", MAIN, "serve", *map(str, arguments)]


def start(checkpoint: Path, *options: object, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        command(checkpoint, "--port", port, "--num-kv-tokens", 8192, "--log-json", *options),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Serving "), process.communicate()[1]
    url = line.split()[-1]
    while True:
        try:
            assert httpx.get(f"{url}/ready").status_code == 200
            return process, url
        except httpx.TransportError:
            time.sleep(0.02)


def num_running(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    line = next(x for x in lines if x.startswith("vllm:num_requests_running"))
    return float(line.split()[-1])


def test_kill_9_and_restart_then_sigterm_drains(checkpoint):
    process, url = start(checkpoint)
    process.kill()
    process.communicate(timeout=30)

    process, again = start(checkpoint, port=int(url.rpartition(":")[2]))
    assert again == url
    secret = "the secret of the prompt"
    body = chat_body(secret, max_tokens=1500, thinking_token_budget=1400)
    answers: list[httpx.Response] = []
    post = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        )
    )
    post.start()
    while num_running(url) < 1:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    refusals = []
    while post.is_alive():
        try:
            ready = httpx.get(f"{url}/ready")
            new = httpx.post(f"{url}/v1/chat/completions", json=chat_body())
            refusals.append((ready.status_code, new.status_code))
        except httpx.TransportError:
            break
        time.sleep(0.05)
    post.join()
    _, log = process.communicate(timeout=60)

    assert process.returncode == 0, log
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 1500
    assert (503, 503) in refusals
    records = [json.loads(line) for line in log.splitlines()]
    assert any(r.get("path") == "/v1/chat/completions" and r["status"] == 200 for r in records)
    assert secret not in log


def test_a_port_in_use_ends_in_one_line(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(
            command(checkpoint, "--port", taken.getsockname()[1]),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: Cannot listen on 127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_extra_is_named():
    hide = (
        "import importlib.util; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda n, *a: None if n == 'uvicorn' else find(n, *a); "
    )
    done = subprocess.run(
        [sys.executable, "-c", hide + MAIN, "serve", "demo"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'lightthinker[serve]'" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--max-n", "0"],
        ["--api-key-file", "missing"],
        ["--max-stream-updates-per-s", "0"],
        ["--load-format", "gguf"],
    ],
)
def test_wrong_settings_end_in_one_line(checkpoint, options):
    done = subprocess.run(
        command(checkpoint, *options), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
