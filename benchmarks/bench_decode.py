"""Time of a decode step against its floor: weights and live KV read once at 3.0 TB/s.

    python benchmarks/bench_decode.py --output results/bench_decode.json

Full chain-of-thought, 1024 live tokens a sequence, whole engine steps (scheduling and sampling
included), as many as it takes for the clock. `host_ms` is a step's time less its waiting for the
GPU: what Python needs, and hides behind the GPU as long as it is less than the step.
"""

from __future__ import annotations

import random
import time

import torch
from harness import (
    BANDWIDTH,
    make_engine,
    make_model,
    parser,
    report,
    say_kernels,
    skip_prefill,
    synchronise,
    waiting_time,
    weight_bytes,
    words,
)

from lightthinker.engine.sampling_params import SamplingParams


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=["Qwen2.5-1.5B", "Qwen2.5-7B"])
    options.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128])
    options.add_argument("--live-tokens", type=int, default=1024)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--page-size", type=int, default=16)
    options.add_argument("--profile", action="store_true", help="print where GPU time goes")
    options = options.parse_args()
    if options.smoke:
        options.models, options.batches, options.live_tokens, options.steps = (
            ["tiny"],
            [1, 4],
            64,
            8,
        )
    rows = []
    for shape in options.models:
        model = make_model(shape)
        engine = make_engine(
            model,
            shape,
            max_num_seqs=max(options.batches),
            num_kv_tokens=max(options.batches) * (options.live_tokens + options.steps + 64),
            page_size=options.page_size,
            max_graph_live_tokens=options.live_tokens + options.steps + 64,
            enforce_eager=options.enforce_eager,
        )
        for batch in options.batches:
            step_ms, host_ms, live = measure(engine, batch, options)
            kv_bytes = batch * live * engine.pool.bytes_per_token
            floor_ms = (weight_bytes(model) + kv_bytes) / BANDWIDTH * 1e3
            rows.append(
                {
                    "model": shape,
                    "batch": batch,
                    "live_tokens": live,
                    "step_ms": step_ms,
                    "floor_ms": floor_ms,
                    "ratio": step_ms / floor_ms,
                    "host_ms": host_ms,
                    "tokens_per_s": batch / step_ms * 1e3,
                }
            )
        del engine, model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    report(options, rows, page_size=options.page_size, enforce_eager=options.enforce_eager)


def measure(engine, batch, options):
    """Return milliseconds per step, those of Python, and a sequence's mean live tokens."""
    draw = random.Random(options.seed)
    num_warm = max(4, options.steps // 10)
    num_prompt = options.live_tokens - num_warm - options.steps // 2
    params = SamplingParams(
        max_tokens=2 * (num_warm + options.steps), ignore_eos=True, compression=False
    )
    for i in range(batch):
        engine.add_request(str(i), words(max(2, num_prompt), draw), params, stream=False)
    skip_prefill(engine)
    for _ in range(num_warm):
        engine.step()
    synchronise()
    engine.write_back()
    before = sum(len(s.live) for s in engine.scheduler.running)
    with waiting_time() as waits:
        begin = time.perf_counter()
        for _ in range(options.steps):
            engine.step()
        host_duration = time.perf_counter() - begin - sum(waits)
        synchronise()
        duration = time.perf_counter() - begin
    engine.write_back()
    after = sum(len(s.live) for s in engine.scheduler.running)
    if options.profile:
        profile_steps(engine, batch)
    assert len(engine.scheduler.running) == batch, "a sequence was swapped out or has ended"
    for i in range(batch):
        engine.abort_request(str(i))
    engine.step()
    engine.scheduler.check_integrity()
    per_step = 1e3 / options.steps
    return duration * per_step, host_duration * per_step, (before + after) / 2 / batch


def profile_steps(engine, batch, num_steps=10):
    """Print which kernels a step's GPU time goes to."""
    with torch.profiler.profile() as profile:
        for _ in range(num_steps):
            engine.step()
        synchronise()
    say_kernels(profile, num_steps, f"batch {batch}")


if __name__ == "__main__":
    main()
