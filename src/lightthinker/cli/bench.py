"""`lightthinker bench serve`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

bench = App(name="bench", help="Measure servers under load.")


@bench.command
def serve(
    *,
    base_url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    backend: str = "openai-chat",
    dataset_name: str = "random",
    dataset_path: Path | None = None,
    num_prompts: int = 1000,
    request_rate: float = math.inf,
    burstiness: float = 1.0,
    max_concurrency: int | None = None,
    max_seconds: float = 600.0,
    num_warmups: int = 1,
    random_input_len: int = 256,
    random_output_len: int = 256,
    random_range_ratio: float = 0.0,
    tokenizer: str | None = None,
    family: str = "tasks",
    difficulty: str = "standard",
    output_len: int = 1024,
    goodput: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    extra_body: str = "{}",
    seed: int = 0,
    result: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Send load to any OpenAI-compatible server, and print latency and throughput.

    The last line of the output is one JSON object with vLLM's field names. The server's API key
    comes from the environment: LIGHTTHINKER_API_KEY or OPENAI_API_KEY.

    Args:
        base_url: The server, with or without /v1.
        model: Served name; by default the server's first.
        backend: openai-chat, or openai for text completions.
        dataset_name: random, jsonl (a file of prompts) or tasks (our task families).
        dataset_path: File for jsonl: `prompt` or `messages` per line.
        num_prompts: How many requests.
        request_rate: Requests per second; inf sends all at once.
        burstiness: 1 is Poisson arrivals; less comes in bursts, more is even.
        max_concurrency: Most requests in flight.
        max_seconds: Give up on what is unfinished after this long.
        num_warmups: Requests before measuring.
        random_input_len: Length of random prompts: tokens with --tokenizer, words without.
        random_output_len: Tokens of each answer to a random prompt, exactly.
        random_range_ratio: Random lengths vary by this share either way.
        tokenizer: Folder or hub name of the tokenizer that counts random prompts.
        family: A task family, or tasks for all.
        difficulty: Of the task problems.
        output_len: Most tokens per answer to jsonl and tasks prompts.
        goodput: Objectives such as ttft:200 tpot:50 e2el:5000, in milliseconds.
        extra_body: JSON added to every request, such as '{"lightthinker": {"compression": false}}'.
        seed: Draws prompts and arrivals.
        result: File for the JSON object, too.
        overwrite: Replace an existing result file.
    """
    import asyncio
    import json

    from rich.console import Console

    from lightthinker.bench.load import Load, run_load
    from lightthinker.bench.metrics import parse_goodput, summarize, table
    from lightthinker.bench.workload import Workload
    from lightthinker.demo.meter import printable
    from lightthinker.errors import ConfigError

    try:
        import httpx  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            "`lightthinker bench serve` needs httpx; install it with "
            "`pip install 'lightthinker[serve]'`."
        ) from error
    try:
        extra = json.loads(extra_body)
    except ValueError as error:
        raise ConfigError(f"extra_body is {extra_body!r}, which is not JSON: {error}") from error
    if not isinstance(extra, dict):
        raise ConfigError(f"extra_body is {extra_body!r}; it must be a JSON object.")
    load = Load(
        base_url=base_url, model=model, backend=backend, request_rate=request_rate,
        burstiness=burstiness, max_concurrency=max_concurrency, max_seconds=max_seconds,
        num_warmups=num_warmups, seed=seed, extra_body=extra,
    )  # fmt: skip
    workload = Workload(
        dataset=dataset_name, path=dataset_path, num_prompts=num_prompts, seed=seed,
        input_len=random_input_len, range_ratio=random_range_ratio, family=family,
        output_len=random_output_len if dataset_name == "random" else output_len,
        difficulty=difficulty,
    )  # fmt: skip
    objectives = parse_goodput(goodput)
    if result is not None and result.exists() and not overwrite:
        raise ConfigError(f"{result} exists. Choose another --result, or pass --overwrite.")
    count = None
    if tokenizer is not None:
        from transformers import AutoTokenizer

        from lightthinker.bundled import model_path

        loaded = AutoTokenizer.from_pretrained(model_path(tokenizer), trust_remote_code=False)

        def count(text: str) -> int:
            return len(loaded(text, add_special_tokens=False)["input_ids"])

    measured = asyncio.run(run_load(load, workload.requests(count)))
    summary = summarize(measured, load, objectives)
    console = Console()
    console.print(table(summary))
    for message, times in summary["errors"].items():
        console.print(f"{times} x {printable(message)}", style="red", markup=False)
    line = json.dumps(summary)
    if result is not None:
        result.write_text(f"{line}\n", encoding="utf-8")
    print(line)
