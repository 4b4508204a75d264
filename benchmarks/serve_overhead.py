"""What the server costs over the bare engine: tokens per second of concurrent streams.

    python benchmarks/serve_overhead.py --output results/serve_overhead.json

For each model there are two processes on the same device, measured in turns and never at the same
time. One has the engine in itself and generates all requests (`bare`: nothing is reported before
the end, the fastest there is; `bare_streaming`: every state of every request is reported to
nobody). The other is the server as `lightthinker serve` runs it on a GPU, its engine in a third
process (`served`: this process is the clients, which read streams to the end over HTTP). With
`--compare-in-process` the first process also serves (`served_in_process`: engine and server share
an interpreter). Same requests, same number at once; the first round of each compiles kernels and
does not count; the best of the others does, since what disturbs a round only makes it slower.
`overhead_percent` is served against `bare`.

A model is a checkpoint (`demo`: the bundled one) or a shape of harness.py, with random weights. On
a machine without GPU, `--paced-ms 7` puts a device that only sleeps in place of the model and
leaves everything else as it is: steps run as on a GPU, Python beside them. `--paced-python-ms 3`
lets each step burn so much Python, as launching on a GPU does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import paced_device
from harness import NUM_GISTS, SHAPES, note, parser, report

paced_device.pace_from_environment()  # Engines in processes of their own import this file, too.

KINDS = ("in_process", "engine_process")


def main() -> None:
    options = parse()
    if options.child:
        from served_engine import run

        run(options)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for model in options.models:  # All load and compile at the same time.
            children[model] = [Child(model, kind, options, Path(folder)) for kind in KINDS]
        for model, (bare, served) in children.items():
            try:
                rows.append(note(measure(model, bare, served, options)))
            except Exception as error:  # One model's failure does not take the others' numbers.
                print(f"{model} failed: {error!r}", file=sys.stderr, flush=True)
            finally:
                bare.stop()
                served.stop()
    paced = {"paced_ms": options.paced_ms, "paced_python_ms": options.paced_python_ms}
    report(
        options,
        rows,
        streams=options.streams,
        bare="engine in the measured process",
        served="engine in a process of the server's",
        served_in_process="engine in the server's process",
        **(paced if options.paced_ms else {}),
    )
    if len(rows) < len(options.models):
        sys.exit(1)


def parse() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=["Qwen2.5-7B", "demo"])
    made.add_argument("--streams", type=int, default=64, help="requests at once")
    made.add_argument("--requests", type=int, default=128)
    made.add_argument("--tokens", type=int, nargs=2, default=[448, 512], help="fewest and most")
    made.add_argument("--thought-tokens", type=int, default=64)
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--seconds", type=float, default=600.0, help="begin no round after these")
    made.add_argument("--max-stream-updates-per-s", type=float, help="by default the server's")
    made.add_argument("--paced-ms", type=float, default=0.0, help="no GPU: a step sleeps so long")
    made.add_argument("--paced-python-ms", type=float, default=0.0, help="and burns so much Python")
    made.add_argument(
        "--compare-in-process", action="store_true", help="serve without process, too"
    )
    made.add_argument("--child", help=argparse.SUPPRESS)
    made.add_argument("--child-format", help=argparse.SUPPRESS)
    made.add_argument("--child-kind", choices=KINDS, help=argparse.SUPPRESS)
    options = made.parse_args()
    options.begin = time.monotonic()
    if options.smoke:
        options.models, options.streams, options.requests = ["tiny"], 4, 8
        options.tokens, options.thought_tokens, options.rounds = [8, 16], 6, 1
    return options


class Child:
    """A process with an engine in it or below it; asked by a line, answers with a line of JSON."""

    def __init__(self, model: str, kind: str, options: argparse.Namespace, folder: Path):
        load_format = "dummy" if model in SHAPES else "auto"
        if model in SHAPES:
            model = str(write_folder(model, folder / model))
        child = ["--child", model, "--child-format", load_format, "--child-kind", kind]
        environment = dict(os.environ)
        if options.paced_ms:
            environment |= paced_device.environment(options.paced_ms, options.paced_python_ms)
        self.process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], *child],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """Return its next answer."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the engine's process ended with {self.process.wait()}")

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(model: str, bare: Child, served: Child, options: argparse.Namespace) -> dict[str, Any]:
    """Return a row of the results."""
    for child in (bare, served):
        print(f"{model}: {child.answer()}", file=sys.stderr, flush=True)
    items = requests(options)
    num_tokens = sum(item["max_tokens"] for item in items)
    rates: dict[str, list[float]] = {"bare": [], "served": [], "bare_streaming": []}
    if options.compare_in_process:
        rates["served_in_process"] = []
    chunks = 0
    for number in range(1 + options.rounds):
        if number > 1 and time.monotonic() - options.begin > options.seconds:
            break
        seconds = {"bare": bare.ask("bare")["seconds"]}
        seconds["served"], chunks = serve(served, items, options)
        seconds["bare_streaming"] = bare.ask("bare_streaming")["seconds"]
        if options.compare_in_process:
            seconds["served_in_process"], _ = serve(bare, items, options)
        for name, rate in rates.items() if number else ():
            rate.append(num_tokens / seconds[name])
        print(f"{model}, round {number}: {seconds}", file=sys.stderr, flush=True)
    best = {name: max(each) for name, each in rates.items()}
    return {
        "model": model,
        "requests": len(items),
        "tokens": num_tokens,
        "tokens_per_chunk": round(num_tokens / chunks, 2),
        **{f"{name}_tokens_per_s": [round(x, 1) for x in each] for name, each in rates.items()},
        "overhead_percent": round(100 * (1 - best["served"] / best["bare"]), 2),
    }


def serve(
    child: Child, items: list[dict[str, Any]], options: argparse.Namespace
) -> tuple[float, int]:
    """Let a child serve the requests; return the seconds it took and the chunks that came."""
    port = child.ask("serve")["port"]
    measured = asyncio.run(clients(port, items, options))
    child.ask("stop")
    return measured


def requests(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return bodies of chat requests of various lengths."""
    draw = random.Random(options.seed)
    names = "abcdefghij"
    made = []
    for _ in range(options.requests):
        facts = "; ".join(f"{name}={draw.randrange(100)}" for name in draw.sample(names, 6))
        made.append(
            {
                "messages": [
                    {"role": "user", "content": f"{facts}; what is {draw.choice(names)}?"}
                ],
                "max_tokens": draw.randint(*options.tokens),
                "ignore_eos": True,
                "lightthinker": {"max_thought_tokens": options.thought_tokens},
            }
        )
    return made


async def clients(
    port: int, items: list[dict[str, Any]], options: argparse.Namespace
) -> tuple[float, int]:
    """Stream all requests, so many at once; return the seconds it took and the chunks that came.

    Plain sockets: a client library would cost more than the server, on the same machine.
    """
    waiting = iter(items)

    async def worker() -> int:
        return sum([await stream(port, item) for item in waiting])

    begin = time.perf_counter()
    counts = await asyncio.gather(*(worker() for _ in range(options.streams)))
    return time.perf_counter() - begin, sum(counts)


async def stream(port: int, item: dict[str, Any]) -> int:
    """Read one stream to its end; return the number of its chunks."""
    data = json.dumps(item | {"stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    tail, count = b"", 0
    while part := await reader.read(65_536):
        count += part.count(b"data: ")
        tail = (tail + part)[-100:]
    writer.close()
    assert b"[DONE]" in tail, tail
    return count


def write_folder(shape: str, folder: Path) -> Path:
    """Write a checkpoint without weights: config, compression settings and tokenizer of a shape.

    Every id is a token with a text, so that a stream has as much to say as a real model's.
    """
    from transformers import Qwen2Config

    from lightthinker.compression import CONFIG_KEY, CompressionConfig
    from lightthinker.tokens import resolve_tokens

    settings = CompressionConfig(num_gists=NUM_GISTS)
    # One more: loaded as Qwen2, the tokenizer gets an <|endoftext|> if it has none.
    tokenizer = wordy_tokenizer(SHAPES[shape]["vocab_size"] - len(settings.special_tokens) - 1)
    tokenizer.add_tokens(list(settings.special_tokens), special_tokens=True)
    config = Qwen2Config(
        **SHAPES[shape], max_position_embeddings=65_536, dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"],
        **{CONFIG_KEY: resolve_tokens(tokenizer, settings).to_dict()},
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def wordy_tokenizer(size: int) -> Any:
    """Return the byte tokenizer, filled up with words that no text is split into."""
    from transformers import PreTrainedTokenizerFast

    from lightthinker.testing.models import byte_tokenizer

    plain = byte_tokenizer()
    content = json.loads(plain.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for number in range(len(vocabulary), size):
        vocabulary[f"Ġw{number}"] = number
    wordy = PreTrainedTokenizerFast(
        tokenizer_object=type(plain.backend_tokenizer).from_str(json.dumps(content)),
        pad_token=plain.pad_token, bos_token=plain.bos_token, eos_token=plain.eos_token,
    )  # fmt: skip
    wordy.chat_template = plain.chat_template
    return wordy


if __name__ == "__main__":
    main()
