"""The training loss without the logits: cross-entropy in chunks, and self-distillation.

Logits are computed only for labelled tokens, `chunk_tokens` at once, and again in the backward
pass, so that no [tokens, vocabulary] matrix ever lives. Equal to the model's own loss, softcapping
and logit scales included; `install` checks that on a few tokens before anything is trained. The
loss is computed inside one call of the model and one call of its head, because data-parallel
wrappers (DDP, FSDP2, DeepSpeed) gather and reduce around calls of modules.

Shape legend: B rows, S tokens, T labelled tokens, H width, V vocabulary. Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo import maybe_mark_dynamic
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from lightthinker.encode import IGNORE_INDEX
from lightthinker.errors import ConfigError
from lightthinker.masks import LifetimeBatch, lifetimes

DEFAULT_CHUNK = 4096
LOGITS_LIMIT = 2**30
"""Bytes of float32 logits from which `auto` computes the loss in chunks."""

Project = Callable[[torch.Tensor], torch.Tensor]
Sums = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    tuple[torch.Tensor, torch.Tensor],
]
"""Logits [T, V] of the head, targets [T], the teacher's likewise and which tokens have one ->
sums of cross-entropy and of KL over the tokens."""


@dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """What a model with an installed loss returns.

    Attributes:
        loss: What is minimised, over `num_items_in_batch` if given, else over the labelled tokens.
        cross_entropy: Its part of the loss.
        distillation: KL(teacher || model) over the same tokens, before its weight.
    """

    loss: torch.Tensor | None = None
    cross_entropy: torch.Tensor | None = None
    distillation: torch.Tensor | None = None


def resolve_chunk(
    chunk_tokens: int | str | None, *, num_tokens: int, vocab_size: int, distillation: float
) -> int | None:
    """Return the chunk for a batch of `num_tokens` tokens, or None for the model's own loss."""
    if isinstance(chunk_tokens, int):
        return chunk_tokens
    if chunk_tokens is None:
        return None
    is_large = 4 * num_tokens * vocab_size > LOGITS_LIMIT
    return DEFAULT_CHUNK if is_large or distillation else None


def install(
    model: Any, *, chunk_tokens: int, distillation: float = 0.0, compiled: bool = False
) -> None:
    """Make a causal LM return its loss computed in chunks; everything else of it stays.

    Afterwards `model(..., labels=labels)` returns a `LossOutput`. Without labels the model is as
    before.

    Args:
        model: Any Hugging Face causal LM, before it is wrapped.
        chunk_tokens: Labelled tokens whose logits exist at once.
        distillation: Weight of KL(teacher || model); batches then carry `teacher`.
        compiled: What follows the head is one compiled program: a chunk's logits are then read a
            few times in their own dtype, and never written in float32.

    Raises:
        ConfigError: The model's logits are more than head, scale and softcap of its last state.
    """
    head = model.get_output_embeddings()
    project, original, finish = head.forward, model.forward, _finish(model)
    sums = _sums(finish)
    if compiled:
        sums = torch.compile(sums)

    def head_forward(hidden: torch.Tensor, job: _LossJob | None = None) -> Any:
        return project(hidden) if job is None else job(project, sums)

    def forward(
        *args: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        teacher: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return original(*args, **kwargs)
        taught = None if teacher is None else _teacher_states(model, teacher)
        hidden = model.base_model(*args, **kwargs).last_hidden_state
        job = _LossJob.of(hidden, labels, taught, teacher, chunk_tokens)
        entropy, divergence = head(hidden, job=job)
        items = num_items_in_batch if num_items_in_batch is not None else len(job.targets)
        entropy, divergence = entropy / items, divergence / items
        return LossOutput(
            loss=entropy + distillation * divergence if distillation else entropy,
            cross_entropy=entropy.detach(),
            distillation=divergence.detach() if distillation else None,
        )

    _check_logits(model, finish)
    head.forward = head_forward
    model.forward = forward


@dataclass
class _LossJob:
    """The labelled tokens of a batch: states [T, H], targets [T], the teacher's states or none."""

    states: torch.Tensor
    targets: torch.Tensor
    teacher: torch.Tensor | None
    has_teacher: torch.Tensor | None
    chunk_tokens: int

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        taught: torch.Tensor | None,
        teacher: Mapping[str, torch.Tensor] | None,
        chunk_tokens: int,
    ) -> _LossJob:
        row, query = torch.nonzero(labels[:, 1:] != IGNORE_INDEX, as_tuple=True)
        states, targets = hidden[row, query], labels[row, query + 1]
        if taught is None or teacher is None:
            return cls(states, targets, None, None, chunk_tokens)
        teacher_query = teacher["query"][row, query + 1]
        aligned = taught[row, teacher_query.clamp(min=0)]
        return cls(states, targets, aligned, teacher_query >= 0, chunk_tokens)

    def __call__(self, project: Project, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of cross-entropy and of KL over the labelled tokens."""
        entropy = self.states.new_zeros((), dtype=torch.float32)
        divergence = entropy.clone()
        begin = 0
        for states in torch.split(self.states, self.chunk_tokens):
            end = begin + len(states)
            taught = None
            if self.teacher is not None and self.has_teacher is not None:
                taught = (self.teacher[begin:end], self.has_teacher[begin:end])
            parts = checkpoint(
                _chunk_sums,
                project,
                sums,
                states,
                self.targets[begin:end],
                taught,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            entropy, divergence = entropy + parts[0], divergence + parts[1]
            begin = end
        return entropy, divergence


def _chunk_sums(
    project: Project,
    sums: Sums,
    states: torch.Tensor,
    targets: torch.Tensor,
    taught: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    expected, has_teacher = None, None
    if taught is not None:
        teacher_states, has_teacher = taught
        with torch.no_grad():
            expected = project(teacher_states)
    logits = project(states)
    for tensor in (logits, targets, expected, has_teacher):
        if tensor is not None:
            maybe_mark_dynamic(tensor, 0)  # Compiled once: the last chunk has any number of tokens.
    return sums(logits, targets, expected, has_teacher)


def _sums(finish: Project) -> Sums:
    """What follows the head: the losses' sums over the tokens of a chunk."""

    def sums(
        logits: torch.Tensor,
        targets: torch.Tensor,
        expected: torch.Tensor | None,
        has_teacher: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = finish(logits).float()
        entropy = cross_entropy(found, targets, reduction="sum")
        if expected is None or has_teacher is None:
            return entropy, entropy.new_zeros(())
        known = log_softmax(finish(expected).float(), dim=-1)
        divergence = kl_div(log_softmax(found, dim=-1), known, reduction="none", log_target=True)
        return entropy, (divergence.sum(dim=-1) * has_teacher).sum()

    return sums


@torch.no_grad()
def _teacher_states(model: Any, teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
    ids = teacher["input_ids"]
    was_training = model.training
    model.eval()
    try:
        with lifetimes(LifetimeBatch(teacher["expires"])):
            states: torch.Tensor = model.base_model(
                input_ids=ids,
                position_ids=teacher["position_ids"],
                attention_mask=torch.ones_like(ids),
                use_cache=False,
            ).last_hidden_state
    finally:
        model.train(was_training)
    return states


def _finish(model: Any) -> Project:
    """What lies between the head and the logits, by transformers' own names for it."""
    config = model.config
    multiply = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    softcap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: torch.Tensor) -> torch.Tensor:
        if multiply is not None:
            logits = logits * multiply
        if divide is not None:
            logits = logits / divide
        return softcap * torch.tanh(logits / softcap) if softcap is not None else logits

    return finish


@torch.no_grad()
def _check_logits(model: Any, finish: Project) -> None:
    weight = model.get_output_embeddings().weight
    if weight.device.type == "meta":
        return
    ids = torch.arange(1, 9, device=weight.device)[None] % weight.shape[0]
    was_training = model.training
    model.eval()
    own = model(input_ids=ids, use_cache=False).logits.float()
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = finish(model.get_output_embeddings()(states)).float()
    model.train(was_training)
    if not torch.allclose(own, ours, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        raise ConfigError(
            f"The logits of {type(model).__name__} are not its head applied to its last hidden "
            "state; set loss.chunk_tokens to null to train with the model's own loss."
        )
