"""What `SamplingParams` do to the distribution a token is drawn from."""

from __future__ import annotations

import pytest
import torch

from lightthinker.engine.sampler import (
    Sampler,
    candidate_probabilities,
    penalised,
    token_logprob,
)
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.sequence import Sequence

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


def sequence(*, prompt=(0,), sampled=(), seed=0, **settings):
    params = SamplingParams(**settings)
    made = Sequence("r", 0, list(prompt), params, None)
    made.seed = seed
    made.sampled_ids = list(sampled)
    return made


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": -1}, [0, 1, 2, 3]),
        ({"top_p": 0.75}, [0, 1]),
        ({"top_p": 0.81}, [0, 1, 2]),
        ({"min_p": 0.2}, [0, 1, 2]),
        ({"min_p": 0.7}, [0]),
        ({"top_k": 3, "min_p": 0.4}, [0, 1]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.51, "min_p": 0.2}, [0]),
        ({"top_p": 0.51, "top_k": 3}, [0]),
    ],
)
def test_candidates(settings, kept):
    params = SamplingParams(temperature=1.0, **settings)
    probabilities = candidate_probabilities(torch.log(PROBABILITIES), params)
    assert torch.nonzero(probabilities).flatten().tolist() == kept


def test_temperature_sharpens_before_anything_is_dropped():
    params = SamplingParams(temperature=0.5, min_p=0.2)
    probabilities = candidate_probabilities(torch.log(PROBABILITIES), params)
    squared = PROBABILITIES[:2] ** 2
    assert torch.allclose(probabilities[:2], squared / squared.sum())
    assert probabilities[2:].tolist() == [0, 0]


def test_penalties_count_prompt_and_output_as_their_names_say():
    logits = torch.tensor([2.0, -2.0, 1.0, 1.0])
    both = sequence(prompt=[0], sampled=[1, 1, 2], repetition_penalty=2.0)
    assert penalised(logits, both).tolist() == [1.0, -4.0, 0.5, 1.0]
    present = sequence(prompt=[0], sampled=[1, 1, 2], presence_penalty=0.5)
    assert penalised(logits, present).tolist() == [2.0, -2.5, 0.5, 1.0]
    frequent = sequence(prompt=[0], sampled=[1, 1, 2], frequency_penalty=0.5)
    assert penalised(logits, frequent).tolist() == [2.0, -3.0, 0.5, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 1.0]


def test_penalties_act_on_greedy_requests_too_and_on_nobody_else():
    logits = torch.tensor([[2.0, 1.9, 0.0], [2.0, 1.9, 0.0]])
    tokens = Sampler().sample(
        logits, [sequence(sampled=[0], presence_penalty=1.0), sequence(sampled=[0])]
    )
    assert tokens == [1, 0]


def test_logprobs_are_the_models_own_among_what_may_be_sampled():
    logits = torch.log(PROBABILITIES)[None].clone()
    (token,) = Sampler(never_sampled=(0,)).sample(logits, [sequence()])
    found = token_logprob(logits[0], token, 2)
    assert token == found.token_id == 1
    assert found.logprob == pytest.approx(torch.log(torch.tensor(0.6)).item())
    assert list(found.top) == [1, 2]
    assert found.top[2] == pytest.approx(torch.log(torch.tensor(0.3)).item())
    assert token_logprob(logits[0], 3, 0).top == {}
