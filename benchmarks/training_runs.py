"""Training runs of random models of real shapes, as users start them: recipe, traces, launcher.

Speed, memory and resuming depend on shapes and lengths, not on what tokens say: weights and letters
are random, trace lengths log-normal (median 2,500 tokens of a row of 4,096).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bench_train import NUM_GISTS, PROMPT, SHAPES, THOUGHT
from transformers import AutoConfig, AutoModelForCausalLM

from lightthinker.testing.models import byte_tokenizer
from lightthinker.train.run import JSON_LINES_FILE

ROOT = Path(__file__).parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_model(folder: Path, shape: str) -> None:
    """Save a random bf16 checkpoint of this shape with a byte tokenizer."""
    device = "cuda" if torch.cuda.is_available() and shape != "smoke" else "cpu"
    config = AutoConfig.for_model("qwen2", **SHAPES[shape], max_position_embeddings=8192)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    byte_tokenizer().save_pretrained(folder)
    del model
    if device == "cuda":  # The run that follows needs the memory.
        torch.cuda.empty_cache()


def make_traces(file: Path, count: int, row_length: int) -> None:
    """Write traces whose tokens are their letters; thoughts end at blank lines."""
    rng, lengths = random.Random(0), np.random.default_rng(0)
    scale = row_length / 4096
    thought = max(6, int(THOUGHT * min(1.0, 4 * scale)))
    inserted = (thought + NUM_GISTS + 2) / thought
    with file.open("w", encoding="utf-8") as out:
        for length in lengths.lognormal(np.log(2500 * scale), 0.5, count):
            room = min(int(length), int(0.9 * row_length)) - int(PROMPT * scale)
            thoughts = max(1, int(room / inserted / thought))
            pieces = ["".join(rng.choices(LETTERS, k=thought - 2)) for _ in range(thoughts)]
            question = "".join(rng.choices(LETTERS, k=max(4, int(PROMPT * scale) - 40)))
            trace = {"question": question, "reasoning": "\n\n".join(pieces), "answer": "done"}
            out.write(json.dumps(trace) + "\n")


def write_recipe(
    folder: Path, checkpoint: Path, traces: Path, *, row_length: int, on_cpu: bool, **sections: Any
) -> Path:
    """Write the recipe of a run into `folder.yaml`; `sections` are merged into it."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "model": {"path": str(checkpoint)},
        "compression": {"num_gists": NUM_GISTS},
        "data": {
            "row_length": row_length,
            "segment": {"by": "paragraph", "min_tokens": 1},
            "sources": [{"path": str(traces)}],
            "num_proc": 1,
        },
        "trainer": {
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": on_cpu,
        },
        "save": {"dtype": "bfloat16"},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    file = folder.with_name(folder.name + ".yaml")
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


class Run:
    """A training process and its ranks, its output in `FOLDER.log`.

    Args:
        recipe: Its recipe file.
        gpus: CUDA devices by number, one rank each.
        flags: More flags of `python -m lightthinker.train`.
    """

    def __init__(self, recipe: Path, gpus: list[int], *flags: str):
        self.recipe = recipe
        self.folder = recipe.with_suffix("")
        self.command = [
            sys.executable, "-m", "lightthinker.train", str(recipe), "--num-gpus", str(len(gpus)),
            *flags,
        ]  # fmt: skip
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self.began = time.perf_counter()
        with recipe.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def log(self) -> list[dict[str, Any]]:
        """Return the log entries written so far."""
        file = self.folder / JSON_LINES_FILE
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def said(self, length: int = 1500) -> str:
        """Return the end of what it printed."""
        return self.recipe.with_suffix(".log").read_text(errors="replace")[-length:]

    def kill(self) -> None:
        """Kill -9 the launcher and every rank: they live in sessions of their own."""
        everyone = [self.process.pid]
        for pid in everyone:
            for file in Path(f"/proc/{pid}/task").glob("*/children"):
                everyone += [int(child) for child in file.read_text().split()]
        for pid in everyone:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
