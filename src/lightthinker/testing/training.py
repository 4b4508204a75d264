"""A recipe that trains a tiny model on generated problems in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightthinker.train.recipe import Recipe, recipe_from_dict

TINY_MODEL: dict[str, Any] = {
    "tokenizer": "tasks",
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}


def tiny_recipe(output: Path, **changes: Any) -> Recipe:
    """Return the recipe; `section__name=value` changes one setting, `section=value` a section."""
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "model": TINY_MODEL,
        "compression": {"num_gists": 2, "thought_suffix": ""},
        "data": {"row_length": 256, "full_cot_share": 0.5, "tasks": {"difficulty": "tiny"}},
        "trainer": {
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "save": {"dtype": "float32"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        settings[section] = {**settings.get(section, {}), name: value} if name else value
    return recipe_from_dict(settings)


def recipe_for_ranks(
    output: Path,
    *,
    strategy: str = "fsdp2",
    cpu_offload: bool = False,
    tied: bool = True,
    use_cpu: bool = False,
    **changes: Any,
) -> Recipe:
    """Return a recipe of four rows a step that sharded ranks and, with `use_cpu`, one can run."""
    model = {**TINY_MODEL, "config": {**TINY_MODEL["config"], "tie_word_embeddings": tied}}
    distributed = {"strategy": strategy, "cpu_offload": cpu_offload, "global_batch_size": 4}
    settings = {"model": model, "distributed": distributed, "trainer__use_cpu": use_cpu}
    recipe = tiny_recipe(output, **(settings | changes))
    recipe.trainer.update(per_device_train_batch_size=1, learning_rate=1e-3, bf16=False)
    return recipe


def training_losses(folder: Path) -> list[float]:
    """Return the loss of each log entry of a finished run."""
    log = json.loads((folder / "training_log.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]
