"""Latency under load: requests arrive at random (Poisson); time to first and between tokens.

    python benchmarks/bench_latency.py --output results/bench_latency.json

The engine alone, no server. A token's time is when the host learns of it. Percentiles over all
requests that began in the window, and over all their tokens.
"""

from __future__ import annotations

import random
import statistics
import time

from harness import make_engine, make_model, parser, report, synchronise, words

from lightthinker.engine.sampling_params import SamplingParams


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="Qwen2.5-7B")
    options.add_argument("--rates", nargs="+", type=float, default=[1.0, 4.0], help="per second")
    options.add_argument("--prompt-tokens", type=int, default=512)
    options.add_argument("--generated-tokens", type=int, default=512)
    options.add_argument("--thought-tokens", type=int, default=64)
    options.add_argument("--window", type=float, default=30.0, help="seconds of arrivals")
    options.add_argument("--max-num-seqs", type=int, default=256)
    options = options.parse_args()
    if options.smoke:
        options.model, options.rates, options.window = "tiny", [2.0], 1.0
        options.prompt_tokens, options.generated_tokens, options.thought_tokens = 12, 12, 6
        options.max_num_seqs = 4
    engine = make_engine(
        make_model(options.model),
        options.model,
        max_num_seqs=options.max_num_seqs,
        num_kv_tokens=4096 if options.smoke else None,
        enable_prefix_caching=False,  # Both methods get the same prompts.
        enforce_eager=options.enforce_eager,
    )
    rows = []
    for rate in options.rates:
        for method in ("full_cot", "lightthinker"):
            rows.append(measure(engine, options, method, rate))
    report(options, rows)


def measure(engine, options, method, rate):
    """Serve arrivals for a window and all that began in it to the end."""
    draw = random.Random(options.seed)
    compresses = method == "lightthinker"
    params = SamplingParams(
        max_tokens=options.generated_tokens,
        ignore_eos=True,
        compression=compresses,
        max_thought_tokens=options.thought_tokens - 1 if compresses else None,
    )
    arrivals, moment = [], 0.0
    while (moment := moment + draw.expovariate(rate)) < options.window:
        arrivals.append(moment)
    arrivals = arrivals or [0.0]
    prompts = [words(options.prompt_tokens, draw) for _ in arrivals]
    arrived: dict[str, float] = {}
    sequences, seen = {}, {}
    first, between, last_time, whole = [], [], {}, []
    begin, added = time.perf_counter(), 0
    while added < len(arrivals) or engine.has_unfinished_requests():
        now = time.perf_counter() - begin
        while added < len(arrivals) and arrivals[added] <= now:
            name = f"{method}-{rate}-{added}"
            engine.add_request(name, prompts[added], params, stream=False)
            arrived[name] = arrivals[added]
            sequences[name] = engine.scheduler.waiting[-1]
            added += 1
        if not engine.has_unfinished_requests():
            time.sleep(min(0.01, max(0.0, arrivals[added] - now)))
            continue
        engine.step()
        engine.write_back()
        now = time.perf_counter() - begin
        for name, sequence in list(sequences.items()):
            count = len(sequence.known_ids)
            if count == seen.get(name, 0):
                continue
            if name not in seen:
                first.append(now - arrived[name])
            else:
                between.append(now - last_time[name])
            seen[name], last_time[name] = count, now
            if sequence.finish_reason is not None:
                whole.append(now - arrived[name])
                del sequences[name]
    synchronise()
    duration = time.perf_counter() - begin
    row = {
        "model": options.model,
        "method": method,
        "requests_per_s": rate,
        "requests": len(arrivals),
        "output_tokens_per_s": len(arrivals) * options.generated_tokens / duration,
    }
    for name, values in (("ttft", first), ("itl", between), ("e2el", whole)):
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            row[f"{label}_{name}_ms"] = quantile(values, share) * 1e3
        row[f"mean_{name}_ms"] = statistics.fmean(values) * 1e3
    return row


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    main()
