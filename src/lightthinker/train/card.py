"""The model card written beside a trained checkpoint.

What it is, how it was made, and only numbers that were measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightthinker.bundled import model_path
from lightthinker.errors import CheckpointError
from lightthinker.train.recipe import Recipe, load_recipe

RECIPE_FILE = "recipe.yaml"
LOG_FILE = "training_log.json"

_METHOD_COLUMNS = (
    ("accuracy", "accuracy"),
    ("peak_tokens", "peak tokens"),
    ("mean_live_tokens", "mean live tokens"),
    ("dep_paper", "Dep"),
    ("kv_bytes_peak", "KV bytes, peak"),
    ("wall_time_s", "time, s"),
)


def write_card(
    folder: Path,
    recipe: Recipe,
    log: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md into a checkpoint folder.

    Args:
        folder: The checkpoint.
        recipe: The recipe that made it.
        log: The Trainer's log history.
        results: Result file of `lightthinker eval`, if the checkpoint has been evaluated.
    """
    base = recipe.model.path or "random initialisation"
    compression = recipe.compression
    losses = [entry["loss"] for entry in log if "loss" in entry]
    front = {
        "library_name": "lightthinker",
        "tags": ["lightthinker", "reasoning", "kv-cache-compression"],
    }
    if recipe.model.path and not Path(model_path(recipe.model.path)).exists():
        front["base_model"] = [recipe.model.path]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {folder.name}",
        "",
        "A causal language model that compresses its own finished thoughts into gist tokens "
        "([LightThinker](https://arxiv.org/abs/2502.15589)).",
        "",
        f"- Trained from: {base}",
        f"- Method: {compression.method}, {compression.num_gists} gist tokens"
        + (", with a continue token" if compression.has_continue else ""),
        f"- Share of full chain-of-thought examples: {recipe.data.full_cot_share:g}",
        *([f"- Final training loss: {losses[-1]:.4g}"] if losses else []),
        "",
        "```python",
        "from lightthinker import LLM, SamplingParams",
        f'llm = LLM("{folder.name}")',
        'llm.chat([{"role": "user", "content": "..."}], SamplingParams(compression=True))',
        "```",
        "",
    ]
    if results:
        lines += _results_table(results)
    lines += [
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(recipe.to_dict(), sort_keys=False).strip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def update_card(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the card of a checkpoint that `train` made again, now with measured results.

    Raises:
        CheckpointError: The folder holds no recipe, so it was not made by `train`.
    """
    recipe_file, log_file = folder / RECIPE_FILE, folder / LOG_FILE
    if not recipe_file.is_file() or not log_file.is_file():
        raise CheckpointError(
            f"{folder} has no {RECIPE_FILE} and {LOG_FILE}: a card is only written for checkpoints "
            "that `lightthinker train` made."
        )
    log = json.loads(log_file.read_text(encoding="utf-8"))["log_history"]
    write_card(folder, load_recipe(recipe_file), log, results)


def _results_table(results: Mapping[str, Any]) -> list[str]:
    head = "| method | " + " | ".join(title for _, title in _METHOD_COLUMNS) + " |"
    lines = [
        "## Results",
        "",
        f"{results['num_problems']} problems, {results['device']}; `{results['command']}`",
        "",
        head,
        "|---" * (len(_METHOD_COLUMNS) + 1) + "|",
    ]
    for method, values in results["methods"].items():
        low, high = values["accuracy_ci95"]
        cells = [f"{values['accuracy']:.1%} ({low:.1%}-{high:.1%})"]
        cells += [f"{values[key]:,.1f}" for key, _ in _METHOD_COLUMNS[1:]]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]
