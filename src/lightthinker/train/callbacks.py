"""Callbacks of a run: stopping on a signal, and writing down how it goes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightthinker.train.flops import ModelSize, peak_flops


class StopOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C and SIGTERM end training after the current step, with a checkpoint.

    All ranks stop after the same step, whichever of them was told first. A second Ctrl-C ends
    training at once.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop if any rank was asked to."""
        if args.world_size > 1:
            flag = torch.tensor(int(self.interrupted), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.interrupted = bool(flag)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Put the old handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A launcher passes Ctrl-C on as SIGTERM to ranks that have had it already.
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = True


class Monitor:
    """Measures speed, MFU, memory and what the rows held; writes log entries as JSON lines.

    Args:
        size: The model, for its flops.
        tokens_per_step: Processed tokens of an optimizer step, padding included, all ranks.
        file: JSON lines are appended here by the main process.
    """

    def __init__(self, size: ModelSize, tokens_per_step: int, file: Path):
        self.size = size
        self.tokens_per_step = tokens_per_step
        self.file = file
        self._mark: tuple[int, float] | None = None

    def measure(
        self, args: TrainingArguments, step: int, counts: Mapping[str, int]
    ) -> dict[str, Any]:
        """Return what was measured since the last call; `counts` are of all ranks since then."""
        now, measured = time.perf_counter(), dict[str, Any]()
        if self._mark is not None and step > self._mark[0]:
            seconds = now - self._mark[1]
            processed = (step - self._mark[0]) * self.tokens_per_step
            useful = counts["tokens"] - counts["inserted"]
            measured["tokens_per_second"] = round(processed / seconds)
            measured["useful_tokens_per_second"] = round(useful / seconds)
            peak = peak_flops(args.device)
            if peak is not None:
                flops = self.size.training_flops(processed, counts["attended"])
                measured["mfu"] = round(flops / seconds / peak / args.world_size, 4)
        if counts["documents"]:
            measured["inserted_share"] = round(counts["inserted"] / counts["tokens"], 4)
            measured["thoughts_per_document"] = round(counts["thoughts"] / counts["documents"], 2)
            measured["visible_per_token"] = round(counts["attended"] / counts["tokens"], 1)
        if args.device.type == "cuda":
            peak_bytes = torch.tensor(torch.cuda.max_memory_allocated(), device=args.device)
            if args.world_size > 1:
                torch.distributed.all_reduce(peak_bytes, op=torch.distributed.ReduceOp.MAX)
            measured["peak_memory_gb"] = round(peak_bytes.item() / 1e9, 3)
        self._mark = (step, now)
        return measured

    def pause(self, seconds: float) -> None:
        """Take time that was not spent on training out of the next measurement."""
        if self._mark is not None:
            self._mark = (self._mark[0], self._mark[1] + seconds)

    def write(self, step: int, logs: Mapping[str, Any]) -> None:
        """Append one line to the log."""
        entry = {"step": step, "time": round(time.time(), 3)} | dict(logs)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")


def forget_after(file: Path, *, step: int) -> None:
    """Drop what a log of JSON lines has of steps after `step`, which a resumed run takes again.

    A line that a killed run left half-written goes, too.
    """
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["step"] <= step:
            kept.append(line)
    partial = file.with_name(file.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, file)
