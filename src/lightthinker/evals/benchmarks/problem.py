"""EvalProblem: a question with a grader; what every benchmark is made of. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightthinker.evals.graders import Grade

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class EvalProblem:
    """A question with a grader.

    Attributes:
        id: Unique in its benchmark.
        family: Task family, or the benchmark's name.
        messages: The conversation to answer.
        reference: The expected answer.
        grade: Judges everything the model wrote, reasoning included.
        judge: The same with both verdicts and what was read as answer, where the grader tells
            them apart; `grade(text)` is `judge(text).flexible`.
        num_thoughts: Thoughts of the reference trace, if there is one.
        chance: Accuracy of the best constant guess, if known.
        subset: Subject (MMLU) or task (BBH) within the benchmark.
        prompt: Which prompt and version, e.g. `gsm8k:r1@1`, if it has one.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    reference: str
    grade: Callable[[str], bool]
    judge: Callable[[str], Grade] | None = None
    num_thoughts: int | None = None
    chance: float | None = None
    subset: str | None = None
    prompt: str | None = None

    @property
    def question(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]
