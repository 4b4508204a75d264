"""`lightthinker chat`."""

from __future__ import annotations


def chat(
    model: str,
    /,
    *,
    served_model: str | None = None,
    no_compression: bool = False,
    max_tokens: int = 2048,
    max_thought_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> None:
    """Talk with a model or a server; thoughts fold as they are compressed.

    /help lists the commands. Ctrl-C stops an answer, Ctrl-D ends the chat. A server's API key
    comes from the environment: LIGHTTHINKER_API_KEY or OPENAI_API_KEY.

    Args:
        model: Checkpoint folder or hub name, `demo` for the bundled model, or the http(s) address
            of a server.
        served_model: Which model of the server; by default its first.
        no_compression: Begin with full chain-of-thought.
        max_tokens: Most tokens to sample per answer.
        max_thought_tokens: End a thought that gets this long.
        temperature: 0 is greedy.
        seed: Makes sampling reproducible.
        device: cpu, cuda, cuda:1, ...; by default CUDA if there is one.
        dtype: auto, float32, bfloat16 or float16.
    """
    from contextlib import suppress
    from pathlib import Path

    from rich.console import Console

    from lightthinker.demo.chat_sources import ChatSource, LocalSource, RemoteSource
    from lightthinker.demo.conversation import Conversation
    from lightthinker.engine.sampling_params import SamplingParams
    from lightthinker.errors import ConfigError

    params = SamplingParams(
        max_tokens=max_tokens, max_thought_tokens=max_thought_tokens, temperature=temperature,
        seed=seed, compression=False if no_compression else None,
    )  # fmt: skip
    source: ChatSource
    if model.startswith(("http://", "https://")):
        source = RemoteSource(model, served_model)
    elif served_model is not None:
        raise ConfigError("--served-model names a model of a server; give the server's address.")
    else:
        from lightthinker.bundled import model_path
        from lightthinker.demo.loading import open_llm

        llm = open_llm(model, device=device, dtype=dtype)
        source = LocalSource(llm, Path(model_path(model)).name)
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing and history, where the platform has it
    Conversation(source, params, Console()).run()
