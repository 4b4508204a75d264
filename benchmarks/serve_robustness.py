"""The server under load, fuzz and soak, and what it costs over the bare engine.

    python benchmarks/serve_robustness.py --output results/serve_robustness.json

Starts `lightthinker serve` as its own process and does, in this order: a crowd (concurrent
requests, a tenth leaving, some reading slowly) whose answers must be those of a quiet run; overhead
(tokens per second of concurrent streams over HTTP against the same requests in the bare engine, in
turns, best of each); a soak; schemathesis over the OpenAPI. The last line is one JSON object. With
some of the `--parts` only, the others' numbers stay what the output file says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers

import lightthinker
from lightthinker import SamplingParams
from lightthinker.demo.loading import open_llm
from lightthinker.evals.benchmarks import load_benchmark
from lightthinker.testing.fuzz import fuzz

PAGE_SIZE = 16
NUM_KV_TOKENS = 65_536
MAIN = "import sys; from lightthinker.cli.app import main; main(sys.argv[1:])"
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=None)


class Served:
    """A server process."""

    def __init__(self, model: str, *options: object):
        arguments = ["serve", model, "--port", 0, "--num-kv-tokens", NUM_KV_TOKENS, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving"), "the server did not start"
        self.url = line.split()[-1]
        while True:
            try:
                httpx.get(f"{self.url}/ready").raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.05)

    def metric(self, name: str) -> float:
        """Return the first sample whose name begins so."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return float(next(x for x in lines if x.startswith(name)).split()[-1])

    def pages_held(self) -> int:
        """Return the pages in use once nothing runs any more."""
        for _ in range(600):
            busy = self.metric("vllm:num_requests_running") + self.metric(
                "vllm:num_requests_waiting"
            )
            if not busy:
                break
            time.sleep(0.1)
        share = self.metric("vllm:kv_cache_usage_perc")
        return round(share * NUM_KV_TOKENS / PAGE_SIZE)

    def rss_mb(self) -> float:
        """Return the process's resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Return the seconds of CPU that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Send SIGTERM and wait for the end."""
        self.process.terminate()
        assert self.process.wait(60) == 0, "the server did not end by itself"


async def ask(client: httpx.AsyncClient, body: dict[str, Any], kind: str, rng: random.Random):
    """Send a request as a client of this kind does; return its text, or None if it left."""
    if kind == "whole":
        answer = await client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        message = answer.json()["choices"][0]["message"]
        return (message["reasoning_content"] or "") + (message["content"] or "")
    leave_after = rng.randint(1, 30) if kind == "leaves" else None
    text, chunks = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as got:
        got.raise_for_status()
        async for line in got.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            delta = event["choices"][0]["delta"]
            text += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
            chunks += 1
            if chunks == leave_after:
                return None
            if kind == "slow":
                await asyncio.sleep(0.05)
    return text


def kind_of(i: int) -> str:
    """Return how request i behaves: a tenth leaves, a tenth reads slowly."""
    return {3: "leaves", 7: "slow"}.get(i % 10, "whole" if i % 2 else "stream")


async def crowd(url: str, bodies: list[dict[str, Any]], seed: int) -> list[Any]:
    """Send all at once."""
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=UNLIMITED) as client:
        return await asyncio.gather(
            *(
                ask(client, body, kind_of(i), random.Random(seed + i))
                for i, body in enumerate(bodies)
            ),
            return_exceptions=True,
        )


async def quiet(url: str, bodies: list[dict[str, Any]]) -> list[str]:
    """Send one after another."""
    async with httpx.AsyncClient(base_url=url, timeout=900) as client:
        return [await ask(client, body, "whole", random.Random()) for body in bodies]


def questions(count: int, seed: int) -> list[list[dict[str, str]]]:
    problems = load_benchmark("tasks", num_problems=count, seed=seed, difficulty="demo")
    return [[dict(m) for m in p.messages] for p in problems]


async def stream_all(url: str, bodies: list[dict[str, Any]]) -> float:
    """Return the seconds that it takes to stream all bodies at once, read to the end."""
    host, port = url.removeprefix("http://").split(":")

    async def one(body: dict[str, Any]) -> None:
        data = json.dumps(body | {"stream": True}).encode()
        reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        tail = b""
        while chunk := await reader.read(65_536):
            tail = (tail + chunk)[-100:]
        assert b"[DONE]" in tail
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(one(body) for body in bodies))
    return time.perf_counter() - begin


def overhead(served: Served, model: str, streams: int, tokens: int, rounds: int, seed: int):
    """Measure tokens per second served and bare, in turns, and the CPU time that each took.

    CPU time says what serving costs on a machine that does other work at times, too; it counts what
    runs beside the engine, on another core, as well.
    """
    llm = open_llm(model, num_kv_tokens=NUM_KV_TOKENS)
    chats = questions(streams, seed)
    bodies = [{"messages": m, "max_tokens": tokens, "ignore_eos": True} for m in chats]
    prompts = [llm.prompt_ids(m) for m in chats]
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    bare, over_http, bare_cpu, http_cpu = [], [], [], []
    for _ in range(rounds):
        begin, used = time.perf_counter(), time.process_time()
        llm.generate(prompts, params)
        bare.append(round(streams * tokens / (time.perf_counter() - begin), 1))
        bare_cpu.append(round(time.process_time() - used, 2))
        used = served.cpu_s()
        seconds = asyncio.run(stream_all(served.url, bodies))
        http_cpu.append(round(served.cpu_s() - used, 2))
        over_http.append(round(streams * tokens / seconds, 1))
    return {
        "streams": streams,
        "tokens": tokens,
        "bare": bare,
        "served": over_http,
        "bare_cpu_s": bare_cpu,
        "served_cpu_s": http_cpu,
    }


def soak(served: Served, minutes: float, seed: int) -> tuple[float, int]:
    """Send crowds for so long; return the growth of memory in MB, and the requests sent."""
    bodies = [{"messages": m, "max_tokens": 100} for m in questions(32, seed)]
    for _ in range(2):
        asyncio.run(crowd(served.url, bodies, seed))
    before, sent, end = served.rss_mb(), 0, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        asyncio.run(crowd(served.url, bodies, seed + sent))
        sent += len(bodies)
    return served.rss_mb() - before, sent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--fuzz-cases", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--overhead-tokens", type=int, default=200)
    parser.add_argument("--overhead-rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def run_crowd(args: argparse.Namespace) -> dict[str, Any]:
    """Compare a crowd's answers with those of a quiet run."""
    served = Served(args.model)
    bodies = [
        {"messages": m, "max_tokens": args.max_tokens} for m in questions(args.requests, args.seed)
    ]
    loud = asyncio.run(crowd(served.url, bodies, args.seed))
    stayed = [i for i in range(len(bodies)) if kind_of(i) != "leaves"]
    failed = [i for i in range(len(bodies)) if isinstance(loud[i], BaseException)]
    pages = served.pages_held()
    expected = asyncio.run(quiet(served.url, [bodies[i] for i in stayed]))
    mismatched = [i for i, text in zip(stayed, expected, strict=True) if loud[i] != text]
    pages = max(pages, served.pages_held())
    served.stop()
    return {
        "requests": len(bodies),
        "aborted": len(bodies) - len(stayed),
        "failed": len(failed),
        "mismatched": len(mismatched),
        "pages_held_after": pages,
    }


def run_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what serving costs."""
    served = Served(args.model)
    speeds = overhead(
        served, args.model, args.streams, args.overhead_tokens, args.overhead_rounds, args.seed
    )
    served.stop()
    percent = 100 * (1 - max(speeds["served"]) / max(speeds["bare"]))
    cpu = 100 * (min(speeds["served_cpu_s"]) / min(speeds["bare_cpu_s"]) - 1)
    return {
        "overhead_percent": round(percent, 1),
        "overhead_cpu_percent": round(cpu, 1),
        "overhead_tokens_per_s": speeds,
    }


def run_soak(args: argparse.Namespace) -> dict[str, Any]:
    """Keep crowds coming."""
    served = Served(args.model)
    growth, sent = soak(served, args.minutes, args.seed)
    pages = served.pages_held()
    served.stop()
    return {
        "pages_held_after": pages,
        "rss_growth_mb": round(growth, 1),
        "soak_minutes": args.minutes,
        "soak_requests": sent,
    }


def run_fuzz(args: argparse.Namespace) -> dict[str, Any]:
    """Send what the schema allows and what it does not."""
    served = Served(args.model, "--max-output-tokens", 16)
    found = fuzz(served.url, max_cases=args.fuzz_cases, seed_value=args.seed)
    for error in found.server_errors[:5]:
        print(error[:1000], file=sys.stderr)
    pages = served.pages_held()
    served.stop()
    return {
        "pages_held_after": pages,
        "fuzz_cases": found.cases,
        "fuzz_5xx": len(found.server_errors),
        "fuzz_statuses": {str(k): v for k, v in sorted(found.statuses.items())},
    }


PARTS = {"crowd": run_crowd, "overhead": run_overhead, "soak": run_soak, "fuzz": run_fuzz}


def main() -> None:
    args = parse()
    result: dict[str, Any] = {}
    for part in args.parts:
        found = PARTS[part](args)
        print(f"{part}: {found}", flush=True)
        result = merged(result, part, found, args)
        if args.output:
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def merged(
    result: dict[str, Any], part: str, found: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Return the results with a part's; other parts may be measured by other runs."""
    if args.output and args.output.exists() and len(args.parts) < len(PARTS):
        result = json.loads(args.output.read_text())
    pages = result.get("pages_held_by_part", {})
    if "pages_held_after" in found:
        pages = pages | {part: found.pop("pages_held_after")}
    commands = result.get("commands", {}) | {part: shlex.join(["python", *sys.argv])}
    about = {
        "pages_held_after": max(pages.values(), default=0),
        "pages_held_by_part": pages,
        "commands": commands,
        "command": " && ".join(dict.fromkeys(commands.values())),
        "device": f"{platform.machine()} {'GPU' if torch.cuda.is_available() else 'CPU'}",
        "versions": {
            "lightthinker": lightthinker.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seed": args.seed,
    }
    return result | found | about


if __name__ == "__main__":
    main()
