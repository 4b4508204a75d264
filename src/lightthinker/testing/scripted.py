"""A model that reasons by the book: a real engine that samples the reference trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from lightthinker.encode import Encoder
from lightthinker.engine.llm import LLM
from lightthinker.engine.sequence import Sequence
from lightthinker.tasks import Problem


class TraceSampler:
    """Samples the trace that belongs to the prompt.

    Args:
        llm: Its tokenizer and settings encode the traces; its engine gets this sampler.
        problems: Problems that it can be asked.
        answers: Values to answer in place of the right ones, by question.
    """

    def __init__(
        self, llm: LLM, problems: Iterable[Problem], answers: Mapping[str, str] | None = None
    ):
        assert llm.compression is not None
        encoder = Encoder(llm.tokenizer, llm.compression)
        self.scripts: dict[tuple[int, ...], list[int]] = {}
        for problem in problems:
            messages = [{"role": "user", "content": problem.question}]
            value = (answers or {}).get(problem.question, problem.value)
            answer = f"The answer is {value}."
            example = encoder.encode(messages, problem.thoughts, answer, compress=False)
            start = example.layout.output_start
            ids = [int(i) for i in example.input_ids]
            self.scripts[tuple(ids[:start])] = ids[start:]
        llm.engine.sampler = self

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """Return each sequence's next scripted token; the last one again beyond the end."""
        scripts = [self.scripts[tuple(s.prompt_ids)] for s in sequences]
        return [
            script[min(len(s.sampled_ids), len(script) - 1)]
            for script, s in zip(scripts, sequences, strict=True)
        ]
