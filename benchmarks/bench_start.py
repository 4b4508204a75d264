"""How long an engine takes to start: the first time, and again with what it compiled at hand.

    python benchmarks/bench_start.py --output results/bench_start.json

Each start is a process of its own. The first finds empty caches of torch.compile and of Triton in a
folder made for it; the second finds what the first left there, as after a restart of a server. With
random weights, made on the device: reading a checkpoint comes on top, and is the disk's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from harness import compression, make_model, note, parser, report, synchronise, words

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
PHASES = {"compiling": "compile_s", "capturing": "graphs_s"}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=["Qwen2.5-1.5B", "Qwen2.5-7B"])
    options.add_argument("--max-num-seqs", type=int, default=256)
    options.add_argument("--child", help="start this model once and say how long it took")
    options = options.parse_args()
    if options.smoke:
        options.models, options.max_num_seqs = ["tiny"], 4
    if options.child:
        print(json.dumps(start(options)))
        return
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("first", "second"):
                rows.append(note({"model": model, "start": name, **start_apart(model, folder)}))
    report(options, rows)


def start_apart(model: str, folder: str) -> dict[str, float]:
    """Start an engine in another process, its caches in a folder."""
    caches = {name: os.path.join(folder, place) for name, place in CACHES.items()}
    command = [sys.executable, *sys.argv, "--child", model]
    done = subprocess.run(
        command, env=os.environ | caches, stdout=subprocess.PIPE, text=True, check=True
    )
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def start(options: Any) -> dict[str, float]:
    """Make a model and an engine, generate one token, and return how long each took, in seconds."""
    import random

    from lightthinker.engine.engine import EngineConfig, LLMEngine
    from lightthinker.engine.sampling_params import SamplingParams
    from lightthinker.testing.models import byte_tokenizer

    model = make_model(options.child)
    synchronise()
    begin = time.perf_counter()
    phases: list[tuple[float, str]] = []
    config = EngineConfig(
        max_num_seqs=options.max_num_seqs,
        num_kv_tokens=4096 if options.smoke else None,
        enforce_eager=options.enforce_eager,
    )
    engine = LLMEngine(model, byte_tokenizer(), compression(options.child), config=config)
    phases.append((begin, "load"))
    engine.warm_up(lambda text: phases.append((time.perf_counter(), text)))
    ready = time.perf_counter()
    prompt = words(64, random.Random(options.seed))
    engine.add_request("0", prompt, SamplingParams(max_tokens=1, ignore_eos=True), stream=False)
    while engine.has_unfinished_requests():
        engine.step()
    first_token = time.perf_counter()
    spent = dict.fromkeys(("engine_s", *PHASES.values()), 0.0)
    ends = [*(moment for moment, _ in phases[1:]), ready]
    for (moment, text), end in zip(phases, ends, strict=True):
        spent[PHASES.get(text.split()[0], "engine_s")] += end - moment
    return {
        **spent,
        "ready_s": ready - begin,
        "first_token_s": first_token - ready,
        "num_graphs": float(sum(text.startswith("capturing") for _, text in phases)),
    }


if __name__ == "__main__":
    main()
