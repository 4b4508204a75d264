"""The numbers of the paper's main table, to stand beside ours and clearly as the paper's.

Source: LightThinker, arXiv 2502.15589, main table; averages over GSM8K, MMLU, GPQA and BBH, on
Qwen2.5-7B and Llama3.1-8B. Knows nothing of our results.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "LightThinker, arXiv 2502.15589, main table"
SETTING = "averages over GSM8K, MMLU, GPQA and BBH"
MODELS = ("Qwen2.5-7B", "Llama3.1-8B")


@dataclass(frozen=True, kw_only=True)
class PaperNumbers:
    """One method on one model.

    Attributes:
        accuracy: Share of correct answers.
        hours: Time of the whole evaluation.
        peak_tokens: Peak tokens, a mean over samples.
        dep: Dependency, in tokens, likewise.
    """

    accuracy: float
    hours: float
    peak_tokens: float
    dep: float


def _numbers(accuracy: float, hours: float, peak: float, dep_millions: float) -> PaperNumbers:
    return PaperNumbers(
        accuracy=accuracy / 100, hours=hours, peak_tokens=peak, dep=1e6 * dep_millions
    )


PAPER: dict[str, tuple[PaperNumbers, PaperNumbers]] = {
    "full_cot": (_numbers(62.90, 13.68, 4336, 16.6), _numbers(71.25, 10.42, 3571, 10.5)),
    "lightthinker": (_numbers(62.80, 10.17, 1289, 3.7), _numbers(66.85, 10.34, 1055, 2.7)),
    "lightthinker_token": (_numbers(58.89, 10.62, 1838, 7.2), _numbers(63.13, 11.02, 1826, 4.8)),
    "anllm": (_numbers(51.92, 12.14, 1592, 4.6), _numbers(59.04, 12.86, 659, 1.9)),
    "h2o": (_numbers(61.12, 20.61, 972, 4.4), _numbers(66.79, 17.83, 984, 3.2)),
    "sepllm": (_numbers(12.32, 36.32, 1024, 8.9), _numbers(17.11, 34.98, 1024, 8.0)),
}
"""Our name of a method -> the paper's numbers, one per model of `MODELS`."""


def paper_numbers(method: str) -> tuple[PaperNumbers, PaperNumbers] | None:
    """Return the paper's numbers for a method as written in results, if it has any."""
    name = method.partition(" @ ")[0].partition(":")[0]
    return PAPER.get("lightthinker" if name == "lightthinker_thought" else name)
