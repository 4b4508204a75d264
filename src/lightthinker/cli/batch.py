"""`lightthinker batch`."""

from __future__ import annotations

from pathlib import Path


def batch(
    input_path: Path,
    output: Path,
    /,
    *,
    model: str,
    max_tokens: int = 2048,
    temperature: float = 0.0,
    seed: int = 0,
    no_compression: bool = False,
    max_thought_tokens: int | None = None,
    window: int = 256,
    ray_replicas: int = 0,
    ray_gpus: float = 0.0,
    ray_cpus: float = 1.0,
    device: str | None = None,
    dtype: str = "auto",
) -> None:
    """Answer every row of a JSONL or Parquet file, exactly once.

    Kill it and start it again with the same arguments: rows already answered are not asked again.
    The output appears, in the input's order, when all rows are there.

    Args:
        input_path: .jsonl or .parquet with `messages`, or `prompt`, `question` or `problem`; `id`
            if it likes.
        output: .jsonl or .parquet to write.
        model: Checkpoint folder or hub name; `demo` is the bundled model.
        max_tokens: Most tokens per answer.
        temperature: 0 is greedy.
        seed: Makes sampling reproducible, row by row.
        no_compression: Reason with full chain-of-thought.
        max_thought_tokens: End a thought that gets this long.
        window: Rows in an engine at once.
        ray_replicas: Engines on Ray; 0 is one engine in this process, without Ray.
        ray_gpus: GPUs for each engine on Ray.
        ray_cpus: CPUs for each engine on Ray.
        device: cpu, cuda, cuda:1, ...; by default CUDA if there is one.
        dtype: auto, float32, bfloat16 or float16.
    """
    import hashlib
    from typing import Any

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from lightthinker.demo.loading import open_llm
    from lightthinker.scale.batch import BatchSettings, answer_rows, pending
    from lightthinker.scale.journal import Journal
    from lightthinker.scale.ray_batch import run_on_ray
    from lightthinker.scale.rows import read_rows

    settings = BatchSettings(
        model=model, max_tokens=max_tokens, temperature=temperature, seed=seed, window=window,
        compression=False if no_compression else None, max_thought_tokens=max_thought_tokens,
    )  # fmt: skip
    rows = read_rows(input_path)
    digest = hashlib.sha256(input_path.read_bytes()).hexdigest()
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Journal(output, settings.identity(input_path, digest)) as journal,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=len(rows), completed=len(journal.done))

        def write(results: list[dict[str, Any]]) -> None:
            journal.write(results)
            progress.update(task, completed=len(journal.done))

        unanswered = pending(rows, journal.done)
        if unanswered and ray_replicas:
            run_on_ray(
                unanswered, settings, write, num_replicas=ray_replicas, num_gpus=ray_gpus,
                num_cpus=ray_cpus, options=options,
            )  # fmt: skip
        elif unanswered:
            answer_rows(open_llm(model, **options), unanswered, settings, write)
        num_failed = journal.finish([row.id for row in rows])
    failed = f", {num_failed} with an error in place of an answer" if num_failed else ""
    print(f"Rows in {output}: {len(rows)}{failed}")
