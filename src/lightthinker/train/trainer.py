"""transformers' Trainer, with lifetimes around each forward.

Everything else is the Trainer's: optimisers, schedules, accumulation, checkpoints, resume.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from lightthinker.data.packing import VARIANT_VECTORS
from lightthinker.masks import LifetimeBatch, lifetimes


class LightThinkerTrainer(Trainer):  # type: ignore[misc]
    """Trains on packed rows; batches carry `expires` (`first`, `last`, `skip` if the rules do)."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Cross-entropy on the labels under the rows' lifetimes."""
        inputs = dict(inputs)
        vectors = {
            name: inputs.pop(name) for name in ("expires", *VARIANT_VECTORS) if name in inputs
        }
        with lifetimes(LifetimeBatch(**vectors)):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def save_interrupted(self) -> None:
        """Write a checkpoint of the last finished step, outside the training loop."""
        self._save_checkpoint(self.model, trial=None)


class StopOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C and SIGTERM end training after the current step, with a checkpoint.

    A second Ctrl-C ends it at once.
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
        """Save and stop if asked to."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Put the old handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


class Throughput(TrainerCallback):  # type: ignore[misc]
    """Logs tokens per second; processed tokens, padding included."""

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self._mark: tuple[int, float] | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add `tokens_per_second` since the last log."""
        now = time.perf_counter()
        if self._mark is not None and logs is not None and state.global_step > self._mark[0]:
            steps = state.global_step - self._mark[0]
            logs["tokens_per_second"] = round(steps * self.tokens_per_step / (now - self._mark[1]))
            if state.log_history:
                state.log_history[-1]["tokens_per_second"] = logs["tokens_per_second"]
        self._mark = (state.global_step, now)


def compile_layers(model: torch.nn.Module) -> int:
    """Compile every decoder layer in place; return how many.

    Layers share one compiled program, the masks stay outside.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=False)
    return len(layers)
