"""Ablations on the task laboratory: what each setting of the method costs and brings.

Every setting is stage 2 of the bundled recipe with overrides, from the same stage-1 checkpoint,
evaluated with the engine on the same held-out problems. Settings that are done are not run again:
stop and start as you like, each run resumes from its newest checkpoint. One JSON line ends the
output.

    python benchmarks/ablations.py --base runs/bundled_stage1 --output results/ablations.json
    python benchmarks/ablations.py --base runs/bundled_stage1 --only C=1,C=4 --max-steps 1500
    python benchmarks/ablations.py --smoke                 # a minute on a CPU, trains nothing real
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from lightthinker import CompressionConfig
from lightthinker.engine.llm import load_checkpoint
from lightthinker.evals.statistics import wilson_interval
from lightthinker.tasks import verify
from lightthinker.train.evaluation import answer_problems, evaluation_problems
from lightthinker.train.recipe import Recipe, load_recipe
from lightthinker.train.resume import last_complete_checkpoint
from lightthinker.train.run import train
from lightthinker.train.sections import EvaluateConfig
from lightthinker.train.smoke import smoke_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "bundled_stage2.yaml"

SETTINGS: dict[str, list[str]] = {
    "C=1": ["compression.num_gists=1"],
    "C=2": ["compression.num_gists=2"],
    "C=4": [],
    "C=8": ["compression.num_gists=8"],
    "4 gists at most, 1 for 16 tokens": ["compression.tokens_per_gist=16"],
    "token level, 6 to 2": [
        "compression.method=token",
        "compression.segment_tokens=6",
        "compression.num_gists=2",
    ],
    "AnLLM": [
        "compression.method=anllm",
        "compression.num_gists=1",
        "compression.see_current=true",
    ],
    "see_current": ["compression.see_current=true"],
    "bi_directional": ["compression.bi_directional=true"],
    "diagonal": ["compression.diagonal=true"],
    "retain 1": ["compression.retain_thoughts=1"],
    "retain 4": ["compression.retain_thoughts=4"],
    "retention mixed 0/1/4, run at 1": [
        "data.retain_thoughts=[0, 1, 4]",
        "compression.retain_thoughts=1",
    ],
    "positions compact": ["compression.position_mode=compact"],
    "positions spread": ["compression.position_mode=spread"],
    "one gist id": ['compression.gist_tokens=["<|gist|>"]'],
    "full-CoT share 0": ["data.full_cot_share=0"],
    "full-CoT share 0.5": ["data.full_cot_share=0.5"],
    "reconstruction": ['compression.recover_token="<|recover|>"', "data.recover_share=0.5"],
    "distillation": ["loss.distillation=0.5"],
}
"""Name -> overrides of the recipe, which itself is C=4 at thought level, nothing retained, absolute
positions, distinct gist ids and 0.4 full chain-of-thought."""


def recipe_for(name: str, options: argparse.Namespace) -> Recipe:
    """The recipe of one setting."""
    folder = options.runs / "".join(c if c.isalnum() else "_" for c in name)
    steps = [] if options.max_steps is None else [f"trainer.max_steps={options.max_steps}"]
    saving = ["trainer.save_strategy=steps", "trainer.save_steps=500", "trainer.save_total_limit=1"]
    overrides = [f"output_dir={folder}", f"model.path={options.base}", *saving, *steps]
    recipe = load_recipe(RECIPE, [*overrides, *SETTINGS[name]])
    return smoke_recipe(recipe) if options.smoke else recipe


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one setting, or go on with it, and evaluate it."""
    recipe = recipe_for(name, options)
    folder = Path(recipe.output_dir)
    if not (folder / "config.json").is_file():
        resume = last_complete_checkpoint(folder / "checkpoints") is not None
        train(recipe, resume=resume, overwrite=not resume)
    settings = EvaluateConfig(
        every_steps=1,
        num_problems=options.num_problems,
        difficulty="tiny" if options.smoke else "standard",
        max_tokens=8 if options.smoke else options.max_tokens,
        seed=options.seed,
    )
    model, tokenizer = load_checkpoint(folder, dtype=torch.float32)
    model.to(options.device).eval()
    problems = evaluation_problems(settings)
    Random(options.seed).shuffle(problems)
    compression = CompressionConfig.from_pretrained(folder)
    outputs = answer_problems(model, tokenizer, compression, settings, problems, compress=True)
    right = sum(verify(p, o.text).correct for p, o in zip(problems, outputs, strict=True))
    count = len(problems)
    interval = wilson_interval(right, count)
    return {
        "setting": name,
        "accuracy": right / count,
        "accuracy_ci95": [interval.low, interval.high],
        "peak_tokens": sum(o.stats.peak_tokens for o in outputs) / count,
        "dep_full": sum(o.stats.dep_full for o in outputs) / count,
        "num_problems": count,
        "overrides": SETTINGS[name],
        "steps": recipe.trainer["max_steps"],
    }


def parse() -> argparse.Namespace:
    """Command line, with the smoke size filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=Path("runs/bundled_stage1"))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", help="names of settings, separated by commas")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--num-problems", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.num_problems = 4
    on_gpu = torch.cuda.is_available() and not options.smoke
    options.device = torch.device("cuda" if on_gpu else "cpu")
    return options


def main() -> None:
    options = parse()
    names = list(SETTINGS) if options.only is None else options.only.split(",")
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        raise SystemExit(f"--only has {unknown[0]!r}; allowed: {', '.join(SETTINGS)}")
    options.runs.mkdir(parents=True, exist_ok=True)
    done_file = options.runs / ("done_smoke.json" if options.smoke else "done.json")
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.is_file() else {}
    for name in names:
        if name not in done:
            done[name] = run(name, options)
            partial = done_file.with_suffix(".partial")
            partial.write_text(json.dumps(done, indent=1), encoding="utf-8")
            partial.replace(done_file)
        row = done[name]
        low, high = row["accuracy_ci95"]
        print(f"{name:<34}{row['accuracy']:>8.1%} ({low:.1%}-{high:.1%})"
              f"{row['peak_tokens']:>9.1f}{row['dep_full']:>12,.0f}", flush=True)  # fmt: skip
    on_gpu = options.device.type == "cuda"
    content = {
        "rows": [done[name] for name in names],
        "device": torch.cuda.get_device_name(0) if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]]),
        "seed": options.seed,
    }
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))


if __name__ == "__main__":
    main()
