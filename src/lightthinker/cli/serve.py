"""`lightthinker serve`."""

from __future__ import annotations

from pathlib import Path

from lightthinker.server.settings import MAX_STREAM_UPDATES_PER_S


def serve(
    model: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
    served_model_name: str | None = None,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 4096,
    num_kv_tokens: int | None = None,
    max_queued_requests: int = 256,
    max_body_bytes: int = 4 * 1024 * 1024,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    max_n: int = 16,
    request_timeout: float = 600.0,
    drain_timeout: float = 30.0,
    allow_origin: tuple[str, ...] = (),
    allow_host: tuple[str, ...] = (),
    metrics_prefix: str = "vllm:",
    log_json: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    enforce_eager: bool = False,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    engine_process: bool | None = None,
    max_stream_updates_per_s: float = MAX_STREAM_UPDATES_PER_S,
    load_format: str = "auto",
) -> None:
    """Serve a model to OpenAI clients, with a page to watch it think.

    API keys also come from the environment variable LIGHTTHINKER_API_KEY. SIGTERM drains: running
    requests finish, new ones are refused. Traces go to OTEL_EXPORTER_OTLP_ENDPOINT if it is set.

    Args:
        model: Checkpoint folder or hub name; `demo` is the bundled model.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen on; 0 picks a free one.
        api_key_file: File of accepted API keys, one a line.
        served_model_name: Name that clients ask for; by default the folder's.
        max_num_seqs: Most sequences running at once.
        max_num_batched_tokens: Most tokens forwarded in one step.
        num_kv_tokens: Tokens the KV pool holds.
        max_queued_requests: Requests that may wait; more get 429.
        max_body_bytes: Largest request body.
        max_prompt_tokens: Longest prompt; by default what the model takes.
        max_output_tokens: Largest max_tokens; by default what the model takes.
        max_n: Most choices of one request.
        request_timeout: Seconds after which a request is ended.
        drain_timeout: Seconds that running requests may take after SIGTERM.
        allow_origin: Origin that browsers may call from (CORS); may be repeated.
        allow_host: Host name accepted in the Host header; by default this machine's own on a
            loopback address, else all. May be repeated.
        metrics_prefix: Put before vLLM's metric names.
        log_json: Log one JSON object a line.
        device: cpu, cuda, cuda:1, ...; by default CUDA if there is one.
        dtype: auto, float32, bfloat16 or float16.
        enforce_eager: On a GPU, start quickly and run slower: no compiling, no CUDA graphs.
        tensor_parallel_size: Devices that share each copy of the model.
        data_parallel_size: Copies of the model.
        engine_process: Run the engine in a process of its own, so that it and the server do not
            wait for each other; by default on CUDA.
        max_stream_updates_per_s: Most chunks a second over all streams, beyond which each carries
            several tokens; `inf` for one per token.
        load_format: `dummy` draws random weights, to measure speed without a checkpoint.
    """
    import asyncio
    from importlib.util import find_spec

    from lightthinker.bundled import model_path
    from lightthinker.demo.loading import open_llm
    from lightthinker.errors import ConfigError
    from lightthinker.server.address import bind, is_loopback
    from lightthinker.server.settings import ServerSettings, read_api_keys

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise ConfigError(
                f"`lightthinker serve` needs {package}; install it with "
                "`pip install 'lightthinker[serve]'`."
            )
    local = ("localhost", "127.0.0.1", "::1", host)
    settings = ServerSettings(
        model_name=served_model_name or Path(model_path(model)).name,
        api_keys=read_api_keys(api_key_file),
        max_queued_requests=max_queued_requests, max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens, max_output_tokens=max_output_tokens, max_n=max_n,
        request_timeout_s=request_timeout, drain_timeout_s=drain_timeout,
        allowed_origins=allow_origin,
        allowed_hosts=allow_host or (local if is_loopback(host) else ()),
        metrics_prefix=metrics_prefix,
    )  # fmt: skip
    sock = bind(host, port)

    from lightthinker.engine.async_llm import AsyncLLM
    from lightthinker.engine.device import wants_engine_process
    from lightthinker.engine.interpreter import exempt_what_stays, shorten_switch_interval
    from lightthinker.server.app import create_app
    from lightthinker.server.logs import configure_logging
    from lightthinker.server.run import make_server
    from lightthinker.server.tracing import tracing_from_environment

    configure_logging(as_json=log_json)
    llm = open_llm(
        model, device=device, dtype=dtype, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, num_kv_tokens=num_kv_tokens,
        enforce_eager=enforce_eager, tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size, load_format=load_format,
        engine_process=wants_engine_process(device) if engine_process is None else engine_process,
        max_stream_updates_per_s=max_stream_updates_per_s,
    )  # fmt: skip
    shorten_switch_interval()
    engine = AsyncLLM(llm, max_requests=max_num_seqs + max_queued_requests)
    tracing = tracing_from_environment(settings.model_name)
    server = make_server(create_app(engine, settings, tracing), engine, settings)
    exempt_what_stays()
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving {settings.model_name} on http://{shown}:{sock.getsockname()[1]}", flush=True)
    asyncio.run(server.serve([sock]))
    llm.shutdown()
