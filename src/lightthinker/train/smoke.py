"""`--smoke`: a recipe at a size that any CPU finishes in seconds.

A tiny random model of the same architecture, a few traces in the same format, three steps; all
other settings stay, so that what a recipe asks for is tried out before a GPU is rented. The data
itself is not read, but a file that the recipe names must be there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightthinker.tasks import Problem, generate
from lightthinker.train.checkpoint import TASK_TOKENIZER, plan_config
from lightthinker.train.prepare import open_source
from lightthinker.train.recipe import ModelSource, Recipe, TraceSource

NUM_TRACES = 12
NUM_STEPS = 3

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 8192,
}
_TINY_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


def smoke_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe at its smallest; writes tokenizer and traces beside its output folder.

    Raises:
        DataError: A file that the recipe names as a source is not there.
    """
    for source in recipe.data.sources:
        open_source(source)
    root = Path(recipe.output_dir + "_smoke")
    assets = root / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    data = recipe.data
    if data.tasks is not None:
        tasks = dataclasses.replace(data.tasks, difficulty="tiny")
        data = dataclasses.replace(data, tasks=tasks, row_length=min(512, data.row_length))
    else:
        sources = tuple(_tiny_source(source, assets, i) for i, source in enumerate(data.sources))
        data = dataclasses.replace(data, sources=sources, row_length=min(2048, data.row_length))
    dropped = ("num_train_epochs", "gradient_accumulation_steps", "dataloader_prefetch_factor")
    trainer = {key: value for key, value in recipe.trainer.items() if key not in dropped} | {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 1,
        "use_cpu": True,
        "bf16": False,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    changes: dict[str, Any] = {}
    if recipe.evaluate is not None:
        changes["evaluate"] = dataclasses.replace(
            recipe.evaluate, every_steps=NUM_STEPS, num_problems=2, max_tokens=16,
            difficulty="tiny",
        )  # fmt: skip
    if recipe.lora is not None:
        changes["lora"] = dataclasses.replace(recipe.lora, rank=4, quantize=False)
    return dataclasses.replace(
        recipe,
        output_dir=str(root / "run"),
        model=_tiny_model(recipe.model, assets, has_tasks=data.tasks is not None),
        data=data,
        trainer=trainer,
        distributed=dataclasses.replace(recipe.distributed, global_batch_size=None),
        save=dataclasses.replace(recipe.save, dtype="float32"),
        **changes,
    )


def _tiny_model(source: ModelSource, assets: Path, *, has_tasks: bool) -> ModelSource:
    known = plan_config(source, vocab_size=300)
    config = {"model_type": known.model_type, **_TINY}
    config["tie_word_embeddings"] = bool(known.tie_word_embeddings)
    config |= {key: value for key, value in _TINY_EXPERTS.items() if key in known.to_dict()}
    tokenizer = TASK_TOKENIZER
    if has_tasks:
        config.pop("vocab_size")
    else:
        tokenizer = str(_byte_tokenizer(assets))
    return ModelSource(
        config=config,
        tokenizer=tokenizer,
        chat_template=source.chat_template,
        dtype="float32",
        trainable=source.trainable,
    )


def _byte_tokenizer(assets: Path) -> Path:
    from lightthinker.testing.models import byte_tokenizer

    folder = assets / "tokenizer"
    if not folder.exists():
        partial = assets / f"tokenizer.{os.getpid()}"
        byte_tokenizer().save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:  # another rank was first
            shutil.rmtree(partial)
    return folder


def _tiny_source(source: TraceSource, assets: Path, number: int) -> TraceSource:
    format = source.format if source.format in _ROWS else "columns"
    file = assets / f"traces_{number}.jsonl"
    problems = [generate("word_problems", seed=i, difficulty="tiny") for i in range(NUM_TRACES)]
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(
        "".join(json.dumps(_ROWS[format](problem)) + "\n" for problem in problems), encoding="utf-8"
    )
    os.replace(partial, file)
    calculator = source.keep_calculator and format == "gsm8k"
    return TraceSource(path=str(file), format=format, keep_calculator=calculator)


def _sharegpt(problem: Problem) -> dict[str, Any]:
    value = (
        f"<|begin_of_thought|>\n\n{problem.reasoning}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{problem.answer}\n\n<|end_of_solution|>"
    )
    turns = [{"from": "user", "value": problem.question}, {"from": "assistant", "value": value}]
    return {"system": "Think step by step.", "conversations": turns}


def _messages(problem: Problem) -> dict[str, Any]:
    content = f"<think>\n{problem.reasoning}\n</think>\n\n{problem.answer}"
    return {
        "messages": [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": content},
        ]
    }


def _upstream(problem: Problem) -> dict[str, Any]:
    tags = ("<|begin_of_thought|>", "<|end_of_thought|>")
    pieces = [tags[0], *problem.thoughts, tags[1], problem.answer]
    return {
        "system_prompt": "",
        "question": problem.question,
        "gt_output": "\n\n".join(pieces),
        "thoughts_list": pieces,
    }


_ROWS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "sharegpt": _sharegpt,
    "messages": _messages,
    "upstream": _upstream,
    "gsm8k": lambda p: {
        "question": p.question,
        "answer": "\n".join(p.thoughts) + f"\n#### {p.value}",
    },
    "columns": lambda p: {"question": p.question, "reasoning": p.reasoning, "answer": p.answer},
}
