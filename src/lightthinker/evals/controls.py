"""A control that the gists carry the information: give every problem another problem's gists.

Problem A runs with compression, and what is left of each of its thoughts (the KV of gists and
continue token) is kept. Then problem B of the same family runs, and what is left of its i-th
thought is overwritten by A's i-th (A's are used again from the first if B has more). If the
gists carry the thoughts, B goes wrong; where A's answer comes out, it was in them. The token
sampled at the continue token of the same step has still seen B's own gists. Keys keep A's
positions.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError
from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.statistics import wilson_interval
from lightthinker.layout import Role

if TYPE_CHECKING:
    import torch

    from lightthinker.engine.engine import LLMEngine
    from lightthinker.engine.llm import LLM
    from lightthinker.engine.sequence import Sequence as EngineSequence

Saved = list["torch.Tensor"]
Pair = tuple[EvalProblem, EvalProblem]


def gists_swapped(
    llm: LLM, problems: Sequence[EvalProblem], sampling: SamplingParams
) -> dict[str, Any]:
    """Answer problems with the gists of others.

    Args:
        llm: A checkpoint that compresses.
        problems: At least two of a family, with different answers; a problem without partner is
            left out.
        sampling: Sampling parameters.

    Returns:
        `num_problems`, `accuracy` against the own answer with its interval, `other_answer_rate`
        (how often the answer of the problem that the gists came from was given), and the same
        under `by_family`.

    Raises:
        ConfigError: The checkpoint does not compress, or no two problems can be paired.
    """
    if llm.compression is None or llm.compression.method == "full":
        raise ConfigError("gists_swapped needs a checkpoint trained with LightThinker.")
    pairs = _pairs(problems)
    if not pairs:
        raise ConfigError("gists_swapped needs two problems of a family with different answers.")
    params = dataclasses.replace(sampling, compression=True)
    left: dict[str, list[Saved]] = defaultdict(list)
    engine = llm.engine

    def record(sequence: EngineSequence, gist_slots: list[int]) -> None:
        left[sequence.request_id].append(engine.pool.read(_remains(engine, sequence, gist_slots)))

    donors = {donor.id: donor for _, donor in pairs}
    _run(llm, list(donors.values()), params, record)

    donor_of = {receiver.id: donor.id for receiver, donor in pairs}
    seen: dict[str, int] = defaultdict(int)

    def overwrite(sequence: EngineSequence, gist_slots: list[int]) -> None:
        name = sequence.request_id
        kept = left[donor_of[name]]
        if kept:
            slots = _remains(engine, sequence, gist_slots)
            _write(engine, slots, kept[seen[name] % len(kept)])
        seen[name] += 1

    texts = _run(llm, [receiver for receiver, _ in pairs], params, overwrite)
    families = dict.fromkeys(receiver.family for receiver, _ in pairs)
    return {
        **_rates(pairs, texts),
        "by_family": {
            family: _rates([pair for pair in pairs if pair[0].family == family], texts)
            for family in families
        },
    }


def _rates(pairs: Sequence[Pair], texts: Mapping[str, str]) -> dict[str, Any]:
    correct = sum(receiver.grade(texts[receiver.id]) for receiver, _ in pairs)
    other = sum(donor.grade(texts[receiver.id]) for receiver, donor in pairs)
    accuracy = wilson_interval(correct, len(pairs))
    return {
        "num_problems": len(pairs),
        "accuracy": accuracy.estimate,
        "accuracy_ci95": [accuracy.low, accuracy.high],
        "other_answer_rate": other / len(pairs),
    }


def _pairs(problems: Sequence[EvalProblem]) -> list[Pair]:
    """Pair each problem with the next of its family whose answer differs."""
    families: dict[str, list[EvalProblem]] = defaultdict(list)
    for problem in problems:
        families[problem.family].append(problem)
    pairs = []
    for family in families.values():
        for index, receiver in enumerate(family):
            others = family[index + 1 :] + family[:index]
            donor = next((p for p in others if p.reference != receiver.reference), None)
            if donor is not None:
                pairs.append((receiver, donor))
    return pairs


def _run(
    llm: LLM, problems: Sequence[EvalProblem], params: SamplingParams, hook: Any
) -> dict[str, str]:
    """Answer the problems with a hook on compression; returns texts by problem id."""
    engine, texts = llm.engine, {}
    engine.on_compress = hook
    try:
        for problem in problems:
            prompt = llm.prompt_ids(problem.messages)
            engine.add_request(problem.id, prompt, params, stream=False)
        while engine.has_unfinished_requests():
            for output in engine.step():
                texts[output.request_id] = output.outputs[0].text
    finally:
        engine.on_compress = None
        for problem in problems:
            engine.abort_request(problem.id)
    return texts


def _remains(engine: LLMEngine, sequence: EngineSequence, gist_slots: Sequence[int]) -> list[int]:
    """Return the slots of the newest gists and of the continue token after them."""
    role = sequence.builder.role
    last = len(sequence.live) - 1
    if role[sequence.live[last]] != Role.CONTINUE:
        return list(gist_slots)
    return [*gist_slots, *engine.scheduler.slots(sequence, [last])]


def _write(engine: LLMEngine, slots: list[int], saved: Saved) -> None:
    """Overwrite keys and values, not token indices; unequal groups share what they can."""
    count = min(len(slots), len(saved[-1]))
    if not count:
        return
    own = engine.pool.read(slots[-count:])[-1]
    engine.pool.write(slots[-count:], [*(tensor[-count:] for tensor in saved[:-1]), own])
