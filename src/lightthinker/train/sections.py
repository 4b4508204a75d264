"""The optional sections of a recipe: loss, lora, distributed, evaluate.

Checked when read, so that a mistake costs nothing. Knows no model and no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightthinker.errors import ConfigError, suggestion
from lightthinker.tasks import DIFFICULTIES, FAMILIES

DTYPES = ("bfloat16", "float16", "float32")
STRATEGIES = ("fsdp2", "ddp", "deepspeed_zero3")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(
            f"{name} is {value!r}; it must be one of {', '.join(allowed)}."
            f"{suggestion(str(value), allowed)}"
        )


def check_share(name: str, value: float) -> None:
    """Raise ConfigError unless the value is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; it must be between 0 and 1.")


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless the value is above 0."""
    if value <= 0:
        raise ConfigError(f"{name} is {value}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised.

    Attributes:
        chunk_tokens: Compute logits only for labelled tokens, this many at once, again in the
            backward pass. `auto`: 4096 where all logits of a batch, in float32, would take more
            than 1 GiB. null: the model's own loss.
        distillation: Weight of KL(teacher || model) on the visible output tokens. The teacher is
            the model itself, without gradient, on the same tokens as full chain-of-thought.
    """

    chunk_tokens: int | str | None = "auto"
    distillation: float = 0.0

    def __post_init__(self) -> None:
        chunk = self.chunk_tokens
        if chunk not in ("auto", None) and (not isinstance(chunk, int) or chunk < 1):
            raise ConfigError(
                f"loss.chunk_tokens is {chunk!r}; it must be auto, null or a number of 1 or more."
            )
        if self.distillation < 0:
            raise ConfigError(f"loss.distillation is {self.distillation}; it must be 0 or more.")
        if self.distillation and chunk is None:
            raise ConfigError("loss.distillation needs loss.chunk_tokens: auto or a number.")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full fine-tuning (peft's names).

    The rows of the compression tokens are always trained as well.

    Attributes:
        rank: Rank r of the adapters.
        alpha: Scale; the update is alpha / rank times their product.
        dropout: Dropout on the adapters' input.
        target_modules: Names of the linear layers to adapt, or `all-linear`.
        quantize: Hold the frozen weights of linear layers in 4 bits (QLoRA; needs bitsandbytes).
        save_adapter: Keep the adapter beside the merged checkpoint, in `adapter/`.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"
    quantize: bool = False
    save_adapter: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty; name layers, or say all-linear.")
        check_positive("lora.rank", self.rank)
        check_positive("lora.alpha", self.alpha)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; it must be in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How several GPUs share the work; without effect on one.

    Attributes:
        strategy: `fsdp2` shards weights, gradients and optimizer; `ddp` copies them to each GPU;
            `deepspeed_zero3` shards them with DeepSpeed.
        cpu_offload: Keep shards in host memory (fsdp2, deepspeed_zero3).
        reshard_after_forward: For fsdp2: gather a layer's weights again for the backward pass.
        global_batch_size: Rows in an optimizer step over all GPUs. Gradient accumulation follows
            from it, so that the number of GPUs changes nothing but speed. Default: what
            trainer.per_device_train_batch_size and trainer.gradient_accumulation_steps make of it.
    """

    strategy: str = "fsdp2"
    cpu_offload: bool = False
    reshard_after_forward: bool = True
    global_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_choice("distributed.strategy", self.strategy, STRATEGIES)
        if self.cpu_offload and self.strategy == "ddp":
            raise ConfigError("distributed.cpu_offload is for fsdp2 and deepspeed_zero3.")
        if self.global_batch_size is not None:
            check_positive("distributed.global_batch_size", self.global_batch_size)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation with the engine during training: accuracy under compression, and transcripts.

    Attributes:
        every_steps: Evaluate after so many optimizer steps, and at the end.
        num_problems: Problems of each evaluation, the same ones every time.
        families: Task families; empty means all, in turn.
        difficulty: Difficulty of `lightthinker.tasks`.
        seed: Which problems; training never draws from these.
        max_tokens: Most tokens to sample for a problem.
        full_cot: Measure the same problems with compression off as well.
        num_transcripts: Outputs to keep in `transcripts.jsonl` each time.
    """

    every_steps: int
    num_problems: int = 32
    families: tuple[str, ...] = field(default=())
    difficulty: str = "standard"
    seed: int = 0
    max_tokens: int = 1024
    full_cot: bool = False
    num_transcripts: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        for name in ("every_steps", "num_problems", "max_tokens"):
            check_positive(f"evaluate.{name}", getattr(self, name))
        for family in self.families:
            check_choice("evaluate.families", family, tuple(FAMILIES))
        check_choice("evaluate.difficulty", self.difficulty, DIFFICULTIES)
