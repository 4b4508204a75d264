"""`lightthinker generate`."""

from __future__ import annotations


def generate(
    model: str,
    question: str,
    /,
    *,
    no_compression: bool = False,
    max_tokens: int = 1024,
    max_thought_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    raw: bool = False,
    device: str | None = None,
    dtype: str = "auto",
) -> None:
    """Answer a question; thoughts fold away as they finish.

    On a terminal each thought streams and folds into its gists. Into a pipe or file goes the
    model's text alone, as it comes; the costs go to stderr.

    Args:
        model: Checkpoint folder or hub name; `demo` is the bundled model.
        question: What to ask.
        no_compression: Reason with full chain-of-thought.
        max_tokens: Most tokens to sample.
        max_thought_tokens: End a thought that gets this long.
        temperature: 0 is greedy.
        seed: Makes sampling reproducible.
        raw: Pass the question as it is, without the chat template.
        device: cpu, cuda, cuda:1, ...; by default CUDA if there is one.
        dtype: auto, float32, bfloat16 or float16.
    """
    import sys

    from rich.console import Console

    from lightthinker.demo.loading import open_llm
    from lightthinker.demo.meter import costs, glyphs_for, printable
    from lightthinker.demo.view import show
    from lightthinker.engine.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, max_thought_tokens=max_thought_tokens, temperature=temperature,
        seed=seed, compression=False if no_compression else None,
    )  # fmt: skip
    llm = open_llm(model, device=device, dtype=dtype)
    stream = llm.stream(question if raw else [{"role": "user", "content": question}], params)
    if sys.stdout.isatty():
        config = llm.compression
        hidden = (config.reasoning_begin, config.reasoning_end) if config else ()
        show(stream, Console(), hidden=hidden)
        return
    shown, stats = 0, None
    for output in stream:
        completion = output.outputs[0]
        sys.stdout.write(printable(completion.text[shown:]))
        sys.stdout.flush()
        shown, stats = len(completion.text), completion.stats
    sys.stdout.write("\n")
    if stats is not None:
        console = Console(stderr=True)
        print(costs(stats, glyphs_for(console)), file=sys.stderr)
