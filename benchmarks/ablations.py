"""Ablations on the task laboratory: what each setting of the method costs and brings.

Every setting is stage 2 of the bundled recipe with overrides, from the same stage-1 checkpoint,
evaluated with the engine on the same held-out problems. Settings that are done are not run again:
stop and start as you like, each run resumes from its newest checkpoint. With --devices, every
setting is a process of its own; one that fails takes no other with it. One JSON line ends the
output.

    python benchmarks/ablations.py --base runs/bundled_stage1 --output results/ablations.json
    python benchmarks/ablations.py --base runs/bundled_stage1 --only C=1,C=4 --max-steps 1500
    python benchmarks/ablations.py --devices cuda:0,cuda:1 --per-device 2 --time-limit 3600
    python benchmarks/ablations.py --smoke                 # a minute on a CPU, trains nothing real
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from lightthinker import CompressionConfig
from lightthinker.engine.loading import load_checkpoint
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
        "data.full_cot_share=0",  # Else the model guesses at the first thought whether to anchor.
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


def slug(name: str) -> str:
    """A setting's name as a file name."""
    return "".join(c if c.isalnum() else "_" for c in name)


def recipe_for(name: str, options: argparse.Namespace) -> Recipe:
    """The recipe of one setting; fewer steps warm up in proportion."""
    overrides = [
        f"output_dir={options.runs / slug(name)}", f"model.path={options.base}",
        "trainer.save_strategy=steps", "trainer.save_steps=500", "trainer.save_total_limit=1",
    ]  # fmt: skip
    if options.max_steps is not None:
        trainer = load_recipe(RECIPE).trainer
        warmup = round(trainer["warmup_steps"] * options.max_steps / trainer["max_steps"])
        overrides += [
            f"trainer.max_steps={options.max_steps}", f"trainer.warmup_steps={max(1, warmup)}",
        ]  # fmt: skip
    if options.num_workers is not None:
        overrides.append(f"trainer.dataloader_num_workers={options.num_workers}")
    recipe = load_recipe(RECIPE, [*overrides, *SETTINGS[name]])
    return smoke_recipe(recipe) if options.smoke else recipe


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one setting, or go on with it, and evaluate it."""
    recipe, begin = recipe_for(name, options), time.perf_counter()
    folder = Path(recipe.output_dir)
    if not (folder / "config.json").is_file():
        resume = last_complete_checkpoint(folder / "checkpoints") is not None
        train(recipe, resume=resume, overwrite=not resume)
    trained = time.perf_counter()
    settings = EvaluateConfig(
        every_steps=1,
        num_problems=options.num_problems,
        difficulty="tiny" if options.smoke else "standard",
        max_tokens=8 if options.smoke else options.max_tokens,
        seed=options.seed,
    )
    on_gpu = options.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model, tokenizer = load_checkpoint(folder, dtype=dtype)
    model.to(options.device).eval()
    problems = evaluation_problems(settings)
    Random(options.seed).shuffle(problems)
    compression = CompressionConfig.from_pretrained(folder)
    outputs = answer_problems(
        model, tokenizer, compression, settings, problems, compress=True, at_once=512
    )
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
        "training_s": trained - begin,
        "evaluation_s": time.perf_counter() - trained,
        "device": torch.cuda.get_device_name(0) if on_gpu else platform.machine(),
    }


def result_file(name: str, options: argparse.Namespace) -> Path:
    """Where the row of a setting is kept once it is there."""
    return Path(options.runs) / ("rows_smoke" if options.smoke else "rows") / f"{slug(name)}.json"


def keep(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Write a row, whole or not at all."""
    file = result_file(row["setting"], options)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(row, indent=1), encoding="utf-8")
    partial.replace(file)


def rows(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that are there."""
    files = [result_file(name, options) for name in names]
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]


def run_on_devices(names: list[str], options: argparse.Namespace) -> dict[str, str]:
    """Run each setting in a process of its own; returns why some have no row."""
    deadline = time.monotonic() + (options.time_limit or float("inf"))
    free = options.devices.split(",") * options.per_device
    workers = options.num_workers or max(1, (os.cpu_count() or 1) // len(free) - 1)
    waiting, failed = list(names), {}
    running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
    try:
        while waiting or running:
            while waiting and free:
                name, device = waiting.pop(0), free.pop(0)
                running[name] = (start(name, device, workers, options), device)
            time.sleep(0.2)
            for name, (process, device) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                free.append(device)
                if process.returncode:
                    failed[name] = f"exit code {process.returncode}, see {log_file(name, options)}"
                print(f"{name}: {failed.get(name, 'done')}", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                late = [*running, *waiting]
                return failed | dict.fromkeys(late, "not finished when time was up")
    finally:
        for process, _ in running.values():
            os.killpg(process.pid, signal.SIGKILL)  # Loading processes too.
    return failed


def start(
    name: str, device: str, workers: int, options: argparse.Namespace
) -> subprocess.Popen[bytes]:
    """Start one setting on one device."""
    given = [
        "--base", options.base, "--runs", options.runs, "--num-problems", options.num_problems,
        "--max-tokens", options.max_tokens, "--seed", options.seed, "--num-workers", workers,
    ]  # fmt: skip
    if options.max_steps is not None:
        given += ["--max-steps", options.max_steps]
    environment = dict(os.environ)
    kind, _, index = device.partition(":")
    if kind == "cuda":
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        place = int(index or 0)
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
    flags = ["--only", name, *map(str, given), *(["--smoke"] if options.smoke else [])]
    with log_file(name, options).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, *flags], env=environment, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def log_file(name: str, options: argparse.Namespace) -> Path:
    """What a setting's process prints."""
    return Path(options.runs) / f"{slug(name)}.log"


def settings_in(text: str) -> list[str]:
    """The settings in a list separated by commas, which names may have too."""
    names: list[str] = []
    rest = ""
    for piece in text.split(","):
        rest = f"{rest},{piece}" if rest else piece
        if rest in SETTINGS:
            names.append(rest)
            rest = ""
    if rest:
        raise SystemExit(f"--only has {rest!r}; allowed: {', '.join(SETTINGS)}")
    return names


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
    parser.add_argument("--devices", help="separated by commas: settings side by side")
    parser.add_argument("--per-device", type=int, default=1, help="settings on one device at once")
    parser.add_argument("--num-workers", type=int, help="processes that load data, per setting")
    parser.add_argument("--time-limit", type=float, help="seconds for --devices")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.num_problems = 4
    on_gpu = torch.cuda.is_available() and not options.smoke
    options.device = torch.device("cuda" if on_gpu else "cpu")
    return options


def main() -> None:
    options = parse()
    names = list(SETTINGS) if options.only is None else settings_in(options.only)
    options.runs.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not result_file(name, options).is_file()]
    failed: dict[str, str] = {}
    if options.devices:
        failed = run_on_devices(missing, options)
    else:
        for name in missing:
            keep(run(name, options), options)
    found = rows(names, options)
    for row in found:
        low, high = row["accuracy_ci95"]
        print(f"{row['setting']:<34}{row['accuracy']:>8.1%} ({low:.1%}-{high:.1%})"
              f"{row['peak_tokens']:>9.1f}{row['dep_full']:>12,.0f}", flush=True)  # fmt: skip
    content = {
        "rows": found,
        "failed": failed,
        "device": "; ".join(dict.fromkeys(row["device"] for row in found)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]]),
        "seed": options.seed,
    }
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
