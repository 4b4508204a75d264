"""Sends one step through the model and starts sampling: by a graph where one fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightthinker.attention.batch import PagedBatch
from lightthinker.engine.eviction import evict
from lightthinker.engine.lane import Riders
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.scheduler import Scheduled
from lightthinker.engine.sequence import Sequence
from lightthinker.engine.step import InFlight, Samples, StepPlan, plan_step

if TYPE_CHECKING:
    import torch

    from lightthinker.engine.engine import LLMEngine


def launch(
    engine: LLMEngine,
    scheduled: list[Scheduled],
    previous: InFlight | None,
    riders: Riders | None,
) -> InFlight:
    """Send a step's rows through the model and sample."""
    plan = plan_step(scheduled, previous)
    batch = PagedBatch(plan.sequences, engine.pool.page_size, engine.runner.device)
    known = previous.tokens if previous and (plan.unknown_rows or riders) else None
    tokens, logits = _run(engine, plan, batch, known, riders)
    engine.scheduler.publish(s.sequence for s in scheduled)
    evict((s.sequence for s in scheduled), engine.pool, engine.scheduler, engine.tokenizer)
    first = 0 if riders is None else len(riders)
    place = {sequence: i for i, sequence in enumerate(plan.sampling, first)}
    return InFlight(place, tokens, logits)


def _run(
    engine: LLMEngine,
    plan: StepPlan,
    batch: PagedBatch,
    known: Samples | None,
    riders: Riders | None = None,
) -> tuple[Samples, torch.Tensor | None]:
    """Return a step's samples, and its logits if a request wants log-probabilities."""
    backend = engine.observer.watching(engine.backend, batch)
    if engine.graphs is not None and engine.graphs.fits(plan, batch, riders):
        return engine.graphs.run(plan, batch, known, riders), None
    assert riders is None, "riders come with steps that graphs run"
    logits = engine.runner.run(backend, batch, plan, known)
    if not plan.sampling:
        return [], None
    tokens: Samples = engine.sampler.sample(logits, plan.sampling)
    penalised = [i for i, s in enumerate(plan.sampling) if s.params.has_penalties]
    if penalised and isinstance(tokens, PendingTokens):
        tokens = _sample_on_host(engine, tokens.tolist(), logits, plan.sampling, penalised)
    wants_logits = any(s.params.logprobs is not None for s in plan.sampling)
    return tokens, logits if wants_logits else None


def _sample_on_host(
    engine: LLMEngine,
    tokens: list[int],
    logits: torch.Tensor,
    sequences: list[Sequence],
    rows: list[int],
) -> list[int]:
    """Return the device's samples, those of some rows drawn again by the host's sampler."""
    drawn = engine.host_sampler.sample(logits[rows], [sequences[row] for row in rows])
    assert isinstance(drawn, list)
    for row, token in zip(rows, drawn, strict=True):
        tokens[row] = token
    return tokens
