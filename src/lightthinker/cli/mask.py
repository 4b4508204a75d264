"""`lightthinker mask`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightthinker.errors import ConfigError


def mask(
    *,
    prompt: int = 6,
    thoughts: str = "5,4",
    answer: int = 3,
    num_gists: int = 2,
    method: Literal["thought", "token", "anllm", "full"] = "thought",
    segment_tokens: int = 6,
    tokens_per_gist: float | None = None,
    retain_thoughts: int = 0,
    see_current: bool = False,
    bi_directional: bool = False,
    diagonal: bool = False,
    prompt_chunk_tokens: int | None = None,
    prefill_uncompressed: bool = False,
    drop_continue: bool = False,
    blank_gists: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Draw what sees what: rows are queries, columns are keys.

    Args:
        prompt: Prompt tokens.
        thoughts: Tokens of each thought without its trigger, comma-separated.
        answer: Answer tokens.
        num_gists: Gists per thought (the paper's C).
        method: thought, token, anllm or full.
        segment_tokens: Length of a segment, for method token.
        tokens_per_gist: One gist per this many tokens, at most --num-gists.
        retain_thoughts: Finished thoughts that stay visible in full.
        see_current: Gists see only their own thought.
        bi_directional: Gists of a group see each other both ways.
        diagonal: A gist sees only itself among its group.
        prompt_chunk_tokens: Compress the prompt too, in chunks of this many tokens.
        prefill_uncompressed: Chunks of the prompt expire where the output begins, not before.
        drop_continue: Each continue token goes when the next one comes.
        blank_gists: The control: gists expire with their thought.
        output: PNG, SVG or PDF file; without it the mask is drawn as text.
        overwrite: Replace an existing file.
    """
    from rich.console import Console

    from lightthinker.cli.mask_drawing import HIDDEN, draw_figure, draw_text, example_layout
    from lightthinker.evals.records import check_absent
    from lightthinker.layout import LayoutRules

    try:
        lengths = [int(length) for length in thoughts.split(",") if length.strip()]
    except ValueError:
        raise ConfigError(f"--thoughts is {thoughts!r}; it must be numbers, e.g. 5,4.") from None
    if min([prompt, answer, *lengths], default=0) < 0 or not prompt:
        raise ConfigError("--prompt must be at least 1, --thoughts and --answer at least 0.")
    rules = LayoutRules(
        method=method, num_gists=1 if method == "anllm" else num_gists,
        segment_tokens=segment_tokens, tokens_per_gist=tokens_per_gist,
        retain_thoughts=retain_thoughts, see_current=see_current, bi_directional=bi_directional,
        diagonal=diagonal, prompt_chunk_tokens=prompt_chunk_tokens,
        prefill_compress=not prefill_uncompressed, keep_continue=not drop_continue,
        blank_gists=blank_gists,
    )  # fmt: skip
    layout = example_layout(rules, prompt=prompt, thoughts=lengths, answer=answer)
    if output is None:
        console = Console()
        hidden = "." if console.options.ascii_only else HIDDEN
        console.print(draw_text(layout, hidden=hidden), soft_wrap=True)
        return
    check_absent(output, overwrite=overwrite)
    draw_figure(layout, output)
    print(f"Mask: {output}")
