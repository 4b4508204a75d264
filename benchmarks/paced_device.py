"""A device that only sleeps: what Python costs beside a GPU, measured without one.

Steps are launched, overlap with Python and are waited for as on a GPU, through the engine's own
graph path, fast lane and asynchronous scheduling; only the model is missing. A step's samples are
there so many seconds after the step before it, or after its launch, whichever is later. An engine
on a GPU has more to do in Python than this one (launches, copies, metadata): so that what shares
the interpreter with it shows, a step can be made to burn some.

`pace_from_environment` is for processes that the one to be measured starts.
"""

from __future__ import annotations

import os
import time
import zlib
from typing import Any

ITERATIONS = 1000
"""Of a loop of Python between two calls into torch: some 20 to 50 us."""

BUFFER = bytes(8192)
"""Long enough for zlib to let go of the interpreter's lock."""

VARIABLE = "LIGHTTHINKER_PACED_DEVICE"


class Device:
    """Knows when the newest launched step will be over."""

    def __init__(self, step_s: float, python_s: float):
        self.step_s = step_s
        self.num_slices = round(python_s / slice_s()) if python_s else 0
        self.over_at = 0.0
        self.num_steps = 0

    def launch(self) -> None:
        """Begin another step, after the ones before it."""
        self.over_at = max(self.over_at, time.perf_counter()) + self.step_s
        self.num_steps += 1
        for _ in range(self.num_slices):
            count(ITERATIONS)
            zlib.crc32(BUFFER)  # Gives the interpreter away for a moment, as calls into torch do.


def count(number: int) -> None:
    """Be busy in Python."""
    for _ in range(number):
        pass


def slice_s() -> float:
    """Return the seconds that a slice of Python takes while nobody disturbs it."""
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(20):
            count(ITERATIONS)
            zlib.crc32(BUFFER)
        times.append(time.perf_counter() - begin)
    return min(times) / 20


class Event:
    """Stands for the CUDA event behind a step's samples."""

    def __init__(self, over_at: float):
        self.over_at = over_at

    def synchronize(self) -> None:
        """Sleep until the step is over, without the interpreter's lock."""
        time.sleep(max(0.0, self.over_at - time.perf_counter()))


def environment(step_ms: float, python_ms: float) -> dict[str, str]:
    """Return what tells `pace_from_environment` of a started process."""
    return {VARIABLE: f"{step_ms} {python_ms}", "TRITON_INTERPRET": "1"}


def pace_from_environment() -> None:
    """Pace this process if the one that started it says so."""
    if VARIABLE in os.environ:
        step_ms, python_ms = map(float, os.environ[VARIABLE].split())
        pace(step_ms / 1e3, python_ms / 1e3)


def pace(step_s: float, python_s: float = 0.0) -> None:
    """Put the sleeping device in place of every engine made from now on, in this process.

    Args:
        step_s: Seconds that a step takes.
        python_s: Seconds of processor time that launching one burns, holding the interpreter.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from lightthinker.engine import config, device_sampler, graphs, llm, loading, pending, runner
    from lightthinker.kvcache import pool

    device = Device(step_s, python_s)

    def settings(**given: Any) -> config.EngineConfig:
        return config.EngineConfig(
            **given | {"async_scheduling": True, "attention_backend": "triton"}
        )

    def draw(self: Any, logits: Any = None) -> None:
        # Letters and digits, which mean nothing to the engine.
        tokens = self.buffer.tokens
        tokens.copy_(torch.arange(len(tokens)) * 7 % 26 + self.letters)

    def compute(self: Any, size: int) -> None:
        device.launch()
        draw(self.sampler)

    def forward(self: Any, backend: Any, batch: Any, plan: Any, known: Any) -> Any:
        device.launch()
        return torch.zeros(max(1, len(plan.wanted_rows)), 1)

    fetch = pending.TokenBuffer.fetch

    def fetch_later(self: Any, num_tokens: int) -> pending.PendingTokens:
        made = fetch(self, num_tokens)
        return pending.PendingTokens(made.device, made._host, Event(device.over_at))

    make_engine = loading.load_engine

    def load_engine(*args: Any, **kwargs: Any) -> Any:
        engine = make_engine(*args, **kwargs)
        ids = [engine.tokenizer.encode(c, add_special_tokens=False) for c in "az"]
        assert ids[1][-1] - ids[0][-1] == 25, "the tokenizer's letters follow each other"
        engine.sampler.letters = ids[0][-1]
        return engine

    llm.EngineConfig = settings  # type: ignore[misc, assignment]
    # Imported by name where engines are made in this process; looked up where in another.
    llm.load_engine = loading.load_engine = load_engine  # type: ignore[attr-defined]
    graphs.GraphRunner._compute = compute  # type: ignore[method-assign]
    device_sampler.DeviceSampler.draw = draw  # type: ignore[method-assign]
    runner.ModelRunner.run = forward  # type: ignore[method-assign]
    pending.TokenBuffer.fetch = fetch_later  # type: ignore[method-assign]
    pool.PagePool.move = lambda self, *args: None  # type: ignore[method-assign]
