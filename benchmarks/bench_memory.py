"""Memory truth: what the pool holds against what the layouts say is live, at every step.

    python benchmarks/bench_memory.py --output results/bench_memory.json

First the curve: one batch with full chain-of-thought and one with LightThinker, live KV tokens over
the steps. Then the soak: `--requests` requests of mixed settings, one in ten aborted on the way, in
a pool too small for them (so that sequences are swapped out and back); after each step pages held
must equal pages needed, and allocated memory must not grow.
"""

from __future__ import annotations

import random
import resource
import time

import torch
from harness import make_engine, make_model, parser, report, synchronise, words

from lightthinker.engine.sampling_params import SamplingParams


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="Qwen2.5-1.5B")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--generated-tokens", type=int, default=2048)
    options.add_argument("--thought-tokens", type=int, default=64)
    options.add_argument("--soak-model", default="tiny")
    options.add_argument("--requests", type=int, default=10_000)
    options = options.parse_args()
    if options.smoke:
        options.model, options.batch, options.generated_tokens = "tiny", 2, 24
        options.thought_tokens, options.requests = 8, 12
    curves = curve_rows(options)
    soak = soak_summary(options)
    report(options, curves, soak=soak)


def curve_rows(options):
    """Return live tokens and bytes over the steps, for both ways."""
    model = make_model(options.model)
    engine = make_engine(
        model,
        options.model,
        max_num_seqs=options.batch,
        num_kv_tokens=options.batch * (options.generated_tokens + 256),
        enforce_eager=options.enforce_eager,
    )
    rows = []
    for method in ("full_cot", "lightthinker"):
        draw = random.Random(options.seed)
        params = SamplingParams(
            max_tokens=options.generated_tokens,
            ignore_eos=True,
            compression=method == "lightthinker",
            max_thought_tokens=options.thought_tokens - 1 if method == "lightthinker" else None,
        )
        for i in range(options.batch):
            engine.add_request(str(i), words(100, draw), params, stream=False)
        step = 0
        while engine.has_unfinished_requests():
            engine.step()
            live, pages = held(engine)
            if step % max(1, options.generated_tokens // 64) == 0:
                rows.append(
                    {
                        "model": options.model,
                        "method": method,
                        "step": step,
                        "live_tokens": live,
                        "pages_held": pages,
                        "kv_mib": live * engine.pool.bytes_per_token / 2**20,
                        "pages_mib": pages
                        * engine.pool.page_size
                        * engine.pool.bytes_per_token
                        / 2**20,
                    }
                )
            step += 1
    return rows


def soak_summary(options):
    """Run many requests of all kinds through a small pool; returns what was seen."""
    model = make_model(options.soak_model)
    engine = make_engine(
        model,
        options.soak_model,
        max_num_seqs=64,
        num_kv_tokens=2048 if not options.smoke else 256,
        enforce_eager=options.enforce_eager,
    )
    draw = random.Random(options.seed)
    prompts = [words(draw.randrange(4, 60), draw) for _ in range(20)]
    added = finished = steps = 0
    abort_at: dict[int, list[str]] = {}
    allocated: list[int] = []
    begin = time.perf_counter()
    while added < options.requests or engine.has_unfinished_requests():
        while added < options.requests and len(engine.scheduler.waiting) < 16:
            engine.add_request(str(added), draw.choice(prompts), settings(draw), stream=False)
            if draw.random() < 0.1:
                abort_at.setdefault(steps + draw.randrange(1, 40), []).append(str(added))
            added += 1
        for output in engine.step():
            reasons = [sample.finish_reason for sample in output.outputs]
            assert set(reasons) <= {"stop", "length"}, reasons
            finished += 1
        for name in abort_at.pop(steps, []):
            engine.abort_request(name)
        held(engine)
        steps += 1
        if steps % 200 == 0 or options.smoke:
            engine.scheduler.check_integrity()
            allocated.append(memory())
    synchronise()
    engine.step()
    engine.scheduler.check_integrity()
    assert engine.pool.allocator.num_used == 0, "pages are held while nobody runs"
    quarter = len(allocated) // 4
    return {
        "model": options.soak_model,
        "requests": added,
        "finished": finished,
        "aborted": added - finished,
        "preemptions": engine.scheduler.num_preemptions,
        "steps": steps,
        "pages_held_after": engine.pool.allocator.num_used,
        "memory_bytes_first_quarter": max(allocated[: quarter + 1], default=0),
        "memory_bytes_last_quarter": max(allocated[-quarter - 1 :], default=0),
        "memory_of": "CUDA allocator" if torch.cuda.is_available() else "process, largest so far",
        "seconds": time.perf_counter() - begin,
    }


def settings(draw):
    compresses = draw.random() < 0.7
    return SamplingParams(
        n=draw.choice([1, 1, 1, 3]),
        max_tokens=draw.randrange(1, 80),
        temperature=draw.choice([0.0, 1.0]),
        seed=draw.randrange(1000),
        priority=draw.choice([0, 0, 1]),
        compression=compresses,
        max_thought_tokens=draw.choice([5, 12]) if compresses else None,
        ignore_eos=True,
    )


def held(engine):
    """Return live tokens and pages held; raises if pages are held that no live token needs."""
    engine.write_back()
    size = engine.pool.page_size
    sequences = [*engine.scheduler.running, *engine.scheduler.waiting]
    live = sum(len(s.live) for s in sequences if s.saved_kv is None)
    for s in sequences:
        needed = -(-len(s.live) // size) if s.saved_kv is None else 0
        # Pages for the next step's tokens may be there already if the step was then cut short.
        assert len(s.pages) == needed or (not s.live and not s.pages), (len(s.pages), len(s.live))
    pages = {page for s in sequences for page in s.pages}
    assert engine.pool.allocator.num_used == len(pages), "a page has no owner"
    return live, len(pages)


def memory():
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
