"""Answers the rows of a batch with one engine, continuously batched. Knows no files and no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError, LightThinkerError
from lightthinker.scale.rows import BatchRow

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM
    from lightthinker.engine.outputs import CompletionOutput

OnResult = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How a batch is answered.

    Attributes:
        model: Checkpoint folder or hub name.
        max_tokens: Most tokens per answer.
        temperature: 0 is greedy.
        seed: Each row samples with its own seed, drawn from this one and its place in the input.
        compression: None is whatever the checkpoint was trained for.
        max_thought_tokens: End a thought that gets this long.
        window: Rows in the engine at once.
    """

    model: str
    max_tokens: int = 2048
    temperature: float = 0.0
    seed: int = 0
    compression: bool | None = None
    max_thought_tokens: int | None = None
    window: int = 256

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window is {self.window}; it must be at least 1.")
        self.sampling(0)

    def sampling(self, place: int) -> SamplingParams:
        """Return the sampling parameters of the row at a place of the input."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed + place,
            compression=self.compression, max_thought_tokens=self.max_thought_tokens,
        )  # fmt: skip

    def identity(self, path: Path, digest: str) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one that began."""
        return {
            "input": path.name, "input_sha256": digest, "model": self.model,
            "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed,
            "compression": self.compression, "max_thought_tokens": self.max_thought_tokens,
        }  # fmt: skip


def answer_rows(
    llm: LLM,
    rows: Iterable[tuple[int, BatchRow]],
    settings: BatchSettings,
    on_results: OnResult,
) -> None:
    """Answer rows, and hand over results as they are finished.

    A row that cannot be served (too long, say) becomes a result with an `error`.

    Args:
        llm: The loaded model; nothing else may use its engine meanwhile.
        rows: Places in the input and rows.
        settings: How to answer.
        on_results: Called with the results of each step that finished some.
    """
    engine, waiting, running = llm.engine, iter(rows), 0
    exhausted = False
    while not exhausted or running:
        results: list[dict[str, Any]] = []
        while not exhausted and running < settings.window:
            pair = next(waiting, None)
            if pair is None:
                exhausted = True
                break
            place, row = pair
            try:
                prompt = llm.prompt_ids(list(row.messages))
                engine.add_request(row.id, prompt, settings.sampling(place), stream=False)
            except LightThinkerError as error:
                results.append(failure(row, str(error)))
            else:
                running += 1
        if running:
            for output in engine.step():
                if output.finished:
                    running -= 1
                    results.append(_result(llm, output.request_id, output.outputs[0]))
        if results:
            on_results(results)


def failure(row: BatchRow, message: str) -> dict[str, Any]:
    """Return the result of a row that cannot be answered."""
    return {
        "id": row.id, "reasoning": "", "answer": "", "finish_reason": "error", "error": message,
        "usage": None,
    }  # fmt: skip


def _result(llm: LLM, name: str, completion: CompletionOutput) -> dict[str, Any]:
    reasoning, answer = _split(llm, completion.text)
    stats = completion.stats
    usage: Mapping[str, Any] | None = (
        None
        if stats is None
        else {
            "prompt_tokens": stats.num_prompt_tokens,
            "completion_tokens": stats.num_sampled_tokens,
            "peak_tokens": stats.peak_tokens,
            "dependency": stats.dep_paper,
            "thoughts": stats.num_thoughts,
            "kv_tokens_freed": stats.tokens_freed,
            "kv_bytes_peak": stats.kv_bytes_peak,
        }
    )
    return {
        "id": name, "reasoning": reasoning, "answer": answer,
        "finish_reason": completion.finish_reason, "error": None, "usage": usage,
    }  # fmt: skip


def _split(llm: LLM, text: str) -> tuple[str, str]:
    """Return reasoning and answer; without markers all is answer."""
    end = llm.compression.reasoning_end.strip() if llm.compression else ""
    if not end:
        return "", text.strip()
    reasoning, marker, answer = text.partition(end)
    return (reasoning.strip(), answer.strip()) if marker else (text.strip(), "")


def pending(rows: Sequence[BatchRow], done: set[str]) -> list[tuple[int, BatchRow]]:
    """Return the rows still to be answered, with their places."""
    return [(place, row) for place, row in enumerate(rows) if row.id not in done]
