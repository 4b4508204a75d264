"""Training speed and memory on several GPUs, as users run it: `--num-gpus N`, FSDP2, the Trainer.

A random checkpoint of the shape is saved, traces of realistic length are prepared, and the run's
own log is read: processed and useful tokens per second, MFU, the fullest GPU's memory against
`--plan`. Steps in which layers are compiled are left out. One JSON line ends the output.

    python benchmarks/bench_train_sharded.py --shape 7b --gpus 0,1
    python benchmarks/bench_train_sharded.py --shape 1.5b --gpus 0           # one GPU, not sharded
    python benchmarks/bench_train_sharded.py --smoke                         # two CPU processes
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_train import SHAPES
from train_results import merge, print_rows, where
from training_runs import Run, make_model, make_traces, write_recipe

from lightthinker.train.plan import make_plan
from lightthinker.train.recipe import load_recipe

WARM_UP = 4
"""Steps that are not counted: in the first ones layers are compiled."""


def parse() -> argparse.Namespace:
    """Command line, with the smoke size filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--gpus", default="0,1", help="CUDA devices, by number")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--no-gradient-checkpointing", action="store_true")
    parser.add_argument("--row-length", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max-seconds", type=float, default=420)
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoint and run; default: a temporary one"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--merge-into", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.row_length, options.steps = "smoke", 512, 8
    options.gpus = [int(number) for number in options.gpus.split(",")]
    return options


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run it, within the time allowed, and return the row."""
    begin = time.perf_counter()
    make_model(work / "model", options.shape)
    rows_needed = options.batch_size * len(options.gpus) * options.steps
    make_traces(work / "traces.jsonl", min(400, rows_needed + 16), options.row_length)
    sections: dict[str, Any] = {"lora": {"rank": 16}} if options.lora else {}
    recipe = write_recipe(
        work / "run", work / "model", work / "traces.jsonl",
        row_length=options.row_length, on_cpu=options.smoke,
        model={"dtype": "bfloat16" if options.lora else "float32"},
        trainer={
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch_size,
            "gradient_checkpointing": not options.no_gradient_checkpointing,
        },
        **sections,
    )  # fmt: skip
    made = time.perf_counter() - begin
    planned = make_plan(load_recipe(recipe), num_gpus=len(options.gpus)).memory_gb
    run, first, last = Run(recipe, options.gpus), None, None
    while run.process.poll() is None and run.seconds < options.max_seconds:
        time.sleep(0.5)
        steps = [entry["step"] for entry in run.log() if "loss" in entry]
        first = first or (run.seconds if steps else None)
        last = last or (run.seconds if steps and steps[-1] >= options.steps else None)
    ended = run.process.poll()
    if ended is None:
        run.kill()
    entries = [e for e in run.log() if e["step"] > WARM_UP and "tokens_per_second" in e]
    if len(entries) < 2:
        print(run.said(6000))
        raise SystemExit(f"the run logged {len(entries)} steps in {run.seconds:.0f} s")
    row = {
        "model": f"qwen2-{options.shape}" + ("-lora" if options.lora else ""),
        "mask": "lifetimes_flex",
        "packing": "best_fit",
        "gpus": 0 if options.smoke else len(options.gpus),
        "compiled": True,
        "through": "trainer",
        "strategy": "fsdp2",
    }
    for name in ("tokens_per_second", "useful_tokens_per_second", "mfu"):
        values = [entry[name] for entry in entries if name in entry]
        row[name] = round(statistics.harmonic_mean(values), 4) if values else None
    row["processed_tokens_per_s"] = row.pop("tokens_per_second")
    row["useful_tokens_per_s"] = row.pop("useful_tokens_per_second")
    peaks = [entry["peak_memory_gb"] for entry in run.log() if "peak_memory_gb" in entry]
    return row | {
        "peak_memory_gb": max(peaks, default=None),
        "planned_memory_gb": round(planned, 3),
        "batch_size": options.batch_size,
        "gradient_checkpointing": not options.no_gradient_checkpointing,
        "steps": len(entries),
        "loss": round(entries[-1]["loss"], 4),
        "making_seconds": round(made, 1),
        "first_step_seconds": first and round(first, 1),
        "last_step_seconds": last and round(last, 1),
        "final_checkpoint_seconds": round(run.seconds - last, 1) if ended == 0 and last else None,
    }


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        row = measure(options, Path(work))
    print_rows([row])
    if row["peak_memory_gb"]:
        print(
            f"planned memory over measured: {row['planned_memory_gb'] / row['peak_memory_gb']:.3f}"
        )
    settings = {"seed": 0, "row_length": options.row_length}
    if options.merge_into:
        merge(options.merge_into, [row], settings)
    content = {"rows": [row]} | where() | settings
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))


if __name__ == "__main__":
    main()
