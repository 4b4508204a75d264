"""Accuracy under compression, measured with the engine while a model is being trained.

The same generated problems every time, answered by a copy of the weights, greedily; training is
not touched: neither its weights nor its random numbers. Results go to the log, the outputs of the
first problems to `transcripts.jsonl`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightthinker.compression import CompressionConfig
from lightthinker.encode import render_prompt
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.outputs import CompletionOutput
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.tasks import FAMILIES, Problem, verify
from lightthinker.train.checkpoint import cast_weights
from lightthinker.train.export import standalone_model
from lightthinker.train.recipe import Recipe
from lightthinker.train.sections import EvaluateConfig
from lightthinker.train.trainer import LightThinkerTrainer

TRANSCRIPTS_FILE = "transcripts.jsonl"


def evaluation_problems(settings: EvaluateConfig) -> list[Problem]:
    """Return the problems: families in turn, each number its own seed."""
    names = settings.families or tuple(FAMILIES)
    return [
        FAMILIES[names[i % len(names)]].generate(
            Random(f"evaluate/{settings.seed}/{i}"), settings.difficulty
        )
        for i in range(settings.num_problems)
    ]


def answer_problems(
    model: Any,
    tokenizer: Any,
    compression: CompressionConfig,
    settings: EvaluateConfig,
    problems: list[Problem],
    *,
    compress: bool,
    at_once: int = 64,
) -> list[CompletionOutput]:
    """Answer problems with the engine, at most `at_once` of them together."""
    params = SamplingParams(max_tokens=settings.max_tokens, compression=compress)
    prompts = [
        tokenizer(
            render_prompt(
                tokenizer, [{"role": "user", "content": p.question}], compression.reasoning_begin
            ),
            add_special_tokens=False,
        )["input_ids"]
        for p in problems
    ]
    longest = max(map(len, prompts)) + 2 * settings.max_tokens + compression.num_gists
    at_once = min(len(problems), at_once)
    config = EngineConfig(max_num_seqs=at_once, num_kv_tokens=at_once * longest, enforce_eager=True)
    engine = LLMEngine(model, tokenizer, compression, config=config)
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params, stream=False)
    done: dict[str, CompletionOutput] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output.outputs[0]
    return [done[str(number)] for number in range(len(problems))]


class EngineEvaluation(TrainerCallback):  # type: ignore[misc]
    """Evaluates every so many steps and at the end; every rank takes part, the first one answers.

    Args:
        trainer: The run.
        recipe: With an `evaluate` section.
        tokenizer: Of the model.
        compression: Resolved settings of the model.
    """

    def __init__(
        self,
        trainer: LightThinkerTrainer,
        recipe: Recipe,
        tokenizer: Any,
        compression: CompressionConfig,
    ):
        assert recipe.evaluate is not None
        self.trainer, self.recipe = trainer, recipe
        self.tokenizer, self.compression = tokenizer, compression
        self.settings = recipe.evaluate
        self.problems = evaluation_problems(recipe.evaluate)
        self._last = -1
        if not tokenizer.chat_template:
            raise ConfigError("evaluate needs a chat template; set model.chat_template.")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate if it is time."""
        if state.global_step % self.settings.every_steps == 0:
            self._evaluate(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate the final weights, unless that has just been done."""
        if state.global_step == state.max_steps and self._last != state.global_step:
            self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        self._last, begin = step, time.perf_counter()
        device = self.trainer.args.device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = standalone_model(self.trainer, self.recipe, dtype=dtype)
        measured: dict[str, float] = {}
        if model is not None:
            cast_weights(model, dtype)
            model = model.to(device).eval()
            modes = {"eval": self.compression.method != "full"}
            if self.settings.full_cot and self.compression.method != "full":
                modes["eval_full_cot"] = False
            for name, compress in modes.items():
                measured |= self._measure(name, model, step, compress=compress)
        self.trainer.accelerator.wait_for_everyone()
        self.trainer.log_apart(measured, seconds=time.perf_counter() - begin)

    def _measure(self, name: str, model: Any, step: int, *, compress: bool) -> dict[str, float]:
        outputs = answer_problems(
            model, self.tokenizer, self.compression, self.settings, self.problems, compress=compress
        )
        stats = [output.stats for output in outputs if output.stats is not None]
        correct = [verify(p, o.text).correct for p, o in zip(self.problems, outputs, strict=True)]
        file = Path(self.recipe.output_dir) / TRANSCRIPTS_FILE
        with file.open("a", encoding="utf-8") as out:
            for i in range(min(self.settings.num_transcripts, len(outputs))):
                entry = {
                    "step": step,
                    "mode": name,
                    "question": self.problems[i].question,
                    "expected": self.problems[i].answer,
                    "text": outputs[i].text,
                    "correct": correct[i],
                    "peak_tokens": stats[i].peak_tokens,
                }
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")
        count = len(outputs)
        return {
            f"{name}_accuracy": sum(correct) / count,
            f"{name}_peak_tokens": sum(s.peak_tokens for s in stats) / count,
            f"{name}_thoughts": sum(s.num_thoughts for s in stats) / count,
            f"{name}_finished": sum(o.finish_reason == "stop" for o in outputs) / count,
        }
