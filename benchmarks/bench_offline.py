"""Throughput of long reasoning at a fixed KV budget: full chain-of-thought and LightThinker.

    python benchmarks/bench_offline.py --output results/bench_offline.json

Steady state: requests of all ages run at once, each that ends is replaced by a new one, and tokens
are counted over a window of `--window` seconds. A request of some age starts with a prompt as long
as what would be live by then, whose KV is not computed but taken as it is (see harness.py). Of more
requests than the KV budget holds, as many run as fit (`--saturated`). A single request, whose steps
hardly differ, gets a quarter of the window. After each window a few steps are traced for what the
GPU did.
`--compare-generate` adds transformers' `generate`, same prompt and output length, uncompressed.
"""

from __future__ import annotations

import itertools
import random
import time
from functools import partial

import torch
from harness import (
    NUM_GISTS,
    gpu_share,
    make_engine,
    make_model,
    note,
    parser,
    report,
    skip_prefill,
    synchronise,
    waiting_time,
    words,
)

from lightthinker.engine.sampling_params import SamplingParams

GIB = 2**30


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="Qwen2.5-7B")
    options.add_argument("--prompt-tokens", type=int, default=200)
    options.add_argument("--generated-tokens", type=int, default=8192)
    options.add_argument("--thought-tokens", type=int, default=64, help="trigger included")
    options.add_argument("--requests", nargs="+", type=int, default=[1, 256], help="at once")
    options.add_argument("--saturated", type=int, default=1056, help="once more, as many as fit")
    options.add_argument("--window", type=float, default=60.0, help="seconds")
    options.add_argument("--kv-gib", type=float, help="KV budget; by default what the GPU has left")
    options.add_argument("--methods", nargs="+", default=["full_cot", "lightthinker"])
    options.add_argument("--compare-generate", nargs="*", type=int, metavar="BATCH", default=[])
    options.add_argument("--compare-tokens", type=int, default=256)
    options = options.parse_args()
    if options.smoke:
        options.model, options.window, options.generated_tokens = "tiny", 1.0, 64
        options.thought_tokens, options.requests, options.saturated = 12, [4], 6
        options.prompt_tokens, options.kv_gib = 20, 0.001
        options.compare_generate, options.compare_tokens = [1, 2], 8
    model = make_model(options.model)
    counts = sorted({*options.requests, options.saturated} - {0})
    rows = []
    config = {"num_kv_tokens": None, "gpu_memory_utilization": 0.92}
    if options.kv_gib:
        text = model.config
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads
        per_token *= text.hidden_size // text.num_attention_heads * model.dtype.itemsize
        config = {"num_kv_tokens": int(options.kv_gib * GIB / per_token)}
    baseline = [generate_row(model, options, batch) for batch in options.compare_generate]
    engine = make_engine(
        model,
        options.model,
        max_num_seqs=max([*counts, 1, *options.compare_generate]),
        max_graph_live_tokens=options.prompt_tokens + options.generated_tokens + 64,
        enable_prefix_caching=False,
        enforce_eager=options.enforce_eager,
        **config,
    )
    budget = engine.pool.num_slots * engine.pool.bytes_per_token / GIB
    for batch, row in zip(options.compare_generate, baseline, strict=True):
        rows += [note(row), note(engine_row(engine, options, batch, budget))]
    for method, count in itertools.product(options.methods, counts):
        engine.scheduler.max_num_seqs = count
        rows.append(note(steady_row(engine, options, method, count, budget)))
    report(options, rows, window_s=options.window, thought_tokens=options.thought_tokens)


def steady_row(engine, options, method, count, budget):
    """Count useful tokens per second while `count` requests of all ages run."""
    draw = random.Random(options.seed)
    compresses = method == "lightthinker"
    names = itertools.count()

    def add(age):
        live = live_at(age, options) if compresses else options.prompt_tokens + age
        params = SamplingParams(
            max_tokens=options.generated_tokens - age,
            ignore_eos=True,
            compression=compresses,
            max_thought_tokens=options.thought_tokens - 1 if compresses else None,
        )
        engine.add_request(f"{method}-{next(names)}", words(live, draw), params, stream=False)

    for _ in range(count):
        add(draw.randrange(options.generated_tokens - 1))
    skip_prefill(engine)
    for sequence in list(engine.scheduler.waiting):  # What does not fit now would only wait.
        engine.abort_request(sequence.request_id)
    warm_until = time.perf_counter() + options.window / 6
    while time.perf_counter() < warm_until:
        replace_finished(engine, add)
    synchronise()
    before, begin, steps, samples = num_sampled(engine), time.perf_counter(), 0, []
    finished, preempted = 0, engine.scheduler.num_preemptions
    thoughts = engine.scheduler.num_compactions
    window = options.window / (4 if count == 1 else 1)
    with waiting_time() as waits:
        while time.perf_counter() < begin + window:
            finished += replace_finished(engine, add)
            steps += 1
            if steps % 50 == 1:
                samples.append((len(engine.scheduler.running), engine.pool.allocator.num_used))
    synchronise()
    duration = time.perf_counter() - begin
    useful = num_sampled(engine) + finished - before
    running = sum(n for n, _ in samples) / len(samples)
    pages = sum(p for _, p in samples) / len(samples)
    preempted = engine.scheduler.num_preemptions - preempted
    thoughts = engine.scheduler.num_compactions - thoughts
    share = gpu_share(partial(replace_finished, engine, add), f"{method}, {count} requests")
    for request in [s.request_id for s in engine.scheduler.running + engine.scheduler.waiting]:
        engine.abort_request(request)
    engine.step()
    engine.scheduler.check_integrity()
    return {
        "model": options.model,
        "method": method,
        "requests": count,
        "generated_tokens": options.generated_tokens,
        "kv_budget_gb": budget,
        "useful_tokens_per_s": useful / duration,
        "mean_running": running,
        "mean_kv_tokens": pages * engine.pool.page_size,
        "step_ms": duration / steps * 1e3,
        "preemptions": preempted,
        "python_ms": (duration - sum(waits)) / steps * 1e3,
        "gpu_idle_percent": share["idle_percent"],
        "compaction_percent": share["compaction_percent"],
        "extra_steps_per_thought": (steps * running - useful) / thoughts if thoughts else None,
    }


def live_at(age, options):
    """Return what is live of a compressed request that has written `age` tokens."""
    thoughts, rest = divmod(age, options.thought_tokens)
    return options.prompt_tokens + thoughts * (NUM_GISTS + 1) + rest


def replace_finished(engine, add):
    """Run a step; returns how many tokens ended requests had sampled, which nobody counts else."""
    total = 0
    for output in engine.step():
        total += len(output.outputs[0].token_ids)
        add(0)
    return total


def num_sampled(engine):
    engine.write_back()
    sequences = engine.scheduler.running + engine.scheduler.waiting
    return sum(len(s.sampled_ids) for s in sequences)


def engine_row(engine, options, batch, budget):
    """Time what `generate_row` times: prompts in, all tokens out."""
    draw = random.Random(options.seed)
    engine.scheduler.max_num_seqs = batch
    params = SamplingParams(max_tokens=options.compare_tokens, ignore_eos=True, compression=False)
    for attempt in range(2):
        begin = time.perf_counter()
        for i in range(batch):
            prompt = words(options.prompt_tokens, draw)
            engine.add_request(f"{attempt}-{i}", prompt, params, stream=False)
        while engine.has_unfinished_requests():
            engine.step()
        synchronise()
        duration = time.perf_counter() - begin
    return short_row(options, "full_cot", batch, duration, budget)


@torch.no_grad()
def generate_row(model, options, batch):
    """Time transformers' `generate`, greedy, with its default cache and SDPA attention."""
    model.set_attn_implementation("sdpa")
    draw = random.Random(options.seed)
    ids = torch.tensor(
        [words(options.prompt_tokens, draw) for _ in range(batch)], device=model.device
    )
    for num_tokens in (8, options.compare_tokens):
        synchronise()
        begin = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        synchronise()
        duration = time.perf_counter() - begin
    return short_row(options, "hf_generate", batch, duration, None)


def short_row(options, method, batch, duration, budget):
    return {
        "model": options.model,
        "method": method,
        "requests": batch,
        "generated_tokens": options.compare_tokens,
        "kv_budget_gb": budget,
        "useful_tokens_per_s": batch * options.compare_tokens / duration,
        "mean_running": batch,
        "mean_kv_tokens": None,
        "step_ms": duration / options.compare_tokens * 1e3,
        "preemptions": 0,
    }


if __name__ == "__main__":
    main()
