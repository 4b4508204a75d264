"""A pool of math-verify processes with limits: whatever an answer does, a verdict comes in time.

A worker that is not done when the time is up, or that dies, is killed and replaced, and its answer
is wrong. The pool may be used from several threads at once. Knows nothing of what answers mean.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightthinker.errors import ConfigError

_WORKER = Path(__file__).with_name("expression_worker.py")
_START_LIMIT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class ExpressionVerdict:
    """What math-verify says.

    Attributes:
        correct: The answer is equivalent to the reference.
        found: The text that was taken for the answer, or None.
        ended: Whether there was a verdict at all, within the limits.
    """

    correct: bool
    found: str | None
    ended: bool


def check_math_verify() -> None:
    """Refuse to grade expressions without math-verify.

    Raises:
        ConfigError: It is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "Grading mathematical expressions needs math-verify: pip install 'lightthinker[eval]'. "
            "Tasks with numeric, multiple-choice or word answers do without."
        )


class ExpressionPool:
    r"""Compares expressions in processes of their own.

    Args:
        num_workers: Most processes; each is started when first needed.
        limit_s: Seconds for one answer.

    Raises:
        ConfigError: math-verify is not installed.

    Example:
        >>> with ExpressionPool(num_workers=1) as pool:
        ...     pool.verify(r"\frac{1}{2}", "The answer is 0.5.").correct
        True
    """

    def __init__(self, *, num_workers: int = 2, limit_s: float = 10.0):
        check_math_verify()
        self.limit_s = limit_s
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._num_workers = num_workers
        for _ in range(num_workers):
            self._idle.put(None)

    def verify(self, reference: str, answer: str) -> ExpressionVerdict:
        r"""Compare an answer with a reference.

        Args:
            reference: LaTeX of the right answer.
            answer: Any text that holds an answer, or `\boxed{...}`; bounding its length is up to
                the caller.
        """
        worker = self._idle.get()
        reply = None
        try:
            worker = worker or _Worker(self.limit_s)
            reply = worker.ask({"reference": reference, "answer": answer})
        finally:
            alive = worker if reply is not None else None
            self._idle.put(alive)
            if worker is not alive and worker is not None:
                worker.kill()
        if reply is None:
            return ExpressionVerdict(correct=False, found=None, ended=False)
        return ExpressionVerdict(correct=bool(reply["correct"]), found=reply["found"], ended=True)

    def close(self) -> None:
        """End all processes; the pool starts new ones if it is used again."""
        for _ in range(self._num_workers):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
        for _ in range(self._num_workers):
            self._idle.put(None)

    def __enter__(self) -> ExpressionPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """One process, and its end of the conversation."""

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        # Inner limits are whole seconds (SIGALRM); they end most slow answers without a restart.
        inner = max(1, int(limit_s / 4))
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(inner)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if self._read_line(_START_LIMIT_S) is None:
            self.kill()
            raise ConfigError(
                "A math-verify process did not start. Does `python -c 'import math_verify'` work?"
            )

    def ask(self, request: dict[str, str]) -> dict[str, Any] | None:
        """Return the reply, or None if the process died or was not done in time."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._read_line(self.limit_s)
        return None if line is None else json.loads(line)

    def _read_line(self, limit_s: float) -> bytes | None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + limit_s
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 65536) if ready else b""
            if not chunk:
                return None
            line += chunk
        return line

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


_shared: ExpressionPool | None = None
_lock = threading.Lock()


def shared_pool() -> ExpressionPool:
    """Return the pool that `grade_expression` uses unless given another; it ends with the program.

    Raises:
        ConfigError: math-verify is not installed.
    """
    global _shared
    with _lock:
        if _shared is None:
            _shared = ExpressionPool()
            atexit.register(_shared.close)
        return _shared
