"""Two replicas on Ray, one killed under load: what becomes of the requests?

    python benchmarks/ray_robustness.py --output results/scale/ray_robustness.json

A request may end in three ways: complete; broken off with an error event in OpenAI's form (it was
streaming from the replica that died); lost (anything else). The last line printed is one JSON
object. Lost must be 0, and complete answers to one question must be the same on every replica.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import ray
from ray import serve

from lightthinker import __version__
from lightthinker.client import is_end
from lightthinker.scale.batch import BatchSettings, pending
from lightthinker.scale.journal import Journal
from lightthinker.scale.ray_batch import run_on_ray
from lightthinker.scale.ray_serve import app
from lightthinker.scale.rows import BatchRow
from lightthinker.tasks import generate

APP = "lightthinker"
NUM_QUESTIONS = 4
TIMEOUT_S = 900.0


def start(model: str, num_replicas: int) -> str:
    """Start Ray and the application; return its address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = {
        "model": model, "min_replicas": num_replicas, "max_replicas": num_replicas,
        "num_kv_tokens": 16384, "max_num_seqs": 64, "served_model_name": "model",
    }  # fmt: skip
    serve.run(app(arguments), name=APP)
    return f"http://127.0.0.1:{port}"


async def ask(client: httpx.AsyncClient, number: int, tokens: int, started: asyncio.Event) -> Any:
    """Send one streaming request; return how it ended, its text and whether it had begun."""
    question = generate("programs", seed=number % NUM_QUESTIONS, difficulty="demo").question
    body = {
        "model": "model", "messages": [{"role": "user", "content": question}], "stream": True,
        "max_tokens": tokens, "temperature": 0,
    }  # fmt: skip
    text, begun, end = "", False, "lost"
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return f"status {response.status_code}", text, begun
            async for line in response.aiter_lines():
                begun = True
                if is_end(line):
                    end = "completed"
                elif line.startswith("data:"):
                    chunk = json.loads(line[5:])
                    if "error" in chunk:
                        return chunk["error"]["code"], text, begun
                    for choice in chunk.get("choices", ()):
                        delta = choice["delta"]
                        text += delta.get("reasoning_content") or delta.get("content") or ""
                    if text:
                        started.set()
    except httpx.HTTPError as error:
        return f"lost: {type(error).__name__}", text, begun
    return end, text, begun


def kill_one() -> str:
    """Kill one engine replica at once, without a chance to clean up."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    replica = next(actor for actor in actors if "EngineReplica" in actor["name"])
    ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))
    return str(replica["name"])


async def load(url: str, requests: int, tokens: int) -> dict[str, Any]:
    """Send the requests at once, and more after the kill; return what became of them."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        started = asyncio.Event()
        begin = time.perf_counter()
        tasks = [asyncio.create_task(ask(client, i, tokens, started)) for i in range(requests)]
        await started.wait()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(kill_one)
        later = [asyncio.create_task(ask(client, i, tokens, started)) for i in range(requests)]
        ends = await asyncio.gather(*tasks, *later)
    texts: dict[int, Counter[str]] = {}
    for number, (end, text, _) in enumerate(ends):
        if end == "completed":
            texts.setdefault(number % requests % NUM_QUESTIONS, Counter())[text] += 1
    broken = [end for end, _, _ in ends if end == "replica_lost"]
    lost = [end for end, _, _ in ends if end not in ("completed", "replica_lost")]
    return {
        "requests": len(ends),
        "completed": sum(end == "completed" for end, _, _ in ends),
        "broken_off_with_error_event": len(broken),
        "lost": len(lost),
        "lost_before_streaming": sum(
            not begun for end, _, begun in ends if end not in ("completed", "replica_lost")
        ),
        "lost_how": dict(Counter(lost)),
        "mismatched": sum(sum(c.values()) - max(c.values()) for c in texts.values()),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def batch(model: str, num_rows: int, num_replicas: int, tokens: int) -> dict[str, Any]:
    """Answer a batch on Ray, killing a worker after the first results; count what is written."""
    rows = [
        BatchRow(str(i), ({"role": "user", "content": generate("programs", seed=i).question},))
        for i in range(num_rows)
    ]
    settings = BatchSettings(model=model, max_tokens=tokens)
    with TemporaryDirectory() as folder, Journal(Path(folder) / "out.jsonl", {}) as journal:
        killed: list[str] = []

        def write(results: list[dict[str, Any]]) -> None:
            journal.write(results)
            if not killed:
                killed.append("batch-worker-0")
                ray.kill(ray.get_actor("batch-worker-0"))

        run_on_ray(
            pending(rows, journal.done), settings, write, num_replicas=num_replicas,
            rows_per_job=2, options={"num_kv_tokens": 16384},
        )  # fmt: skip
        journal.finish([row.id for row in rows])
        lines = (Path(folder) / "out.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    return {
        "batch_rows": num_rows,
        "batch_written_once": len({row["id"] for row in written}),
        "batch_lines": len(written),
        "batch_errors": sum(row["error"] is not None for row in written),
        "batch_workers_killed": len(killed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=16, help="before the kill, and again after")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    url = start(options.model, options.replicas)
    try:
        outcome = asyncio.run(load(url, options.requests, options.tokens))
        serve.shutdown()
        outcome |= batch(options.model, options.requests, options.replicas, options.tokens)
    finally:
        ray.shutdown()
    result = {
        **outcome, "replicas": options.replicas, "model": options.model, "tokens": options.tokens,
        "ray": ray.__version__, "lightthinker": __version__, "python": platform.python_version(),
        "machine": f"{platform.machine()} CPU", "command": " ".join(["python", *sys.argv]),
    }  # fmt: skip
    for key, value in result.items():
        print(f"{key:<30}{value}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(f"{json.dumps(result, indent=1)}\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
