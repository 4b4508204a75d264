"""A process that serve_overhead.py measures: one engine, bare or behind its server, here or below.

Commands come as lines on stdin, answers go as lines of JSON to stdout. The `AsyncLLM` of a served
round is shut down before the engine is used directly again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from typing import Any

from serve_overhead import requests


def run(options: argparse.Namespace) -> None:
    """Load, then do what is asked until stdin ends."""
    from lightthinker import SamplingParams
    from lightthinker.demo.loading import open_llm
    from lightthinker.server.settings import MAX_STREAM_UPDATES_PER_S

    begin = time.perf_counter()
    items = requests(options)
    updates = options.max_stream_updates_per_s or MAX_STREAM_UPDATES_PER_S
    llm = open_llm(
        options.child,
        load_format=options.child_format,
        max_num_seqs=options.streams,
        num_kv_tokens=options.streams * (options.tokens[1] + 512),
        enforce_eager=options.enforce_eager,
        max_stream_updates_per_s=updates,
        engine_process=options.child_kind == "engine_process",
    )
    prompts = [llm.prompt_ids(item["messages"]) for item in items]
    params = [
        SamplingParams(
            max_tokens=item["max_tokens"], ignore_eos=True,
            max_thought_tokens=options.thought_tokens,
        )
        for item in items
    ]  # fmt: skip
    say(loaded_s=round(time.perf_counter() - begin, 1), kv_bytes_per_token=llm.kv_bytes_per_token)
    for line in sys.stdin:
        command = line.strip()
        if command == "serve":
            serve(llm, options)
            continue
        begin = time.perf_counter()
        if command == "bare":
            outputs = llm.generate(prompts, params)
            assert [len(o.outputs[0].token_ids) for o in outputs] == [p.max_tokens for p in params]
        else:
            stream_to_nobody(llm.engine, prompts, params)
        say(seconds=time.perf_counter() - begin)
    llm.shutdown()


def stream_to_nobody(engine: Any, prompts: list[list[int]], params: list[Any]) -> None:
    """Run all requests with their states reported as the engine's settings say."""
    for number, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(f"stream-{number}", prompt, param)
    while engine.has_unfinished_requests():
        engine.step()


def serve(llm: Any, options: argparse.Namespace) -> None:
    """Serve until the next line, with the settings of `lightthinker serve`."""
    from lightthinker.engine.async_llm import AsyncLLM
    from lightthinker.engine.interpreter import shorten_switch_interval
    from lightthinker.server.address import bind
    from lightthinker.server.app import create_app
    from lightthinker.server.run import make_server
    from lightthinker.server.settings import ServerSettings

    settings = ServerSettings()
    plain_interval = sys.getswitchinterval()
    shorten_switch_interval()
    engine = AsyncLLM(llm, max_requests=2 * options.requests)
    server = make_server(create_app(engine, settings), engine, settings)
    sock = bind("127.0.0.1", 0)

    def stop_when_told() -> None:
        while not server.started:
            time.sleep(0.01)
        say(port=sock.getsockname()[1])
        sys.stdin.readline()
        server.should_exit = True

    teller = threading.Thread(target=stop_when_told)
    teller.start()
    asyncio.run(server.serve([sock]))
    teller.join()
    sys.setswitchinterval(plain_interval)
    say(stopped=True)


def say(**answer: Any) -> None:
    """Answer with one line."""
    print(json.dumps(answer), flush=True)
