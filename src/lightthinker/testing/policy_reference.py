"""The slow, obvious reference of cache policies: one dense forward per token, nothing paged.

Every token has a lifetime per layer and KV head. After each written token the whole sequence is
forwarded again from scratch under the mask that these lifetimes make; its attention probabilities
and keys are kept, and plain loops over layers, heads and tokens decide who dies next. Each policy's
choice is written here once more, from its paper; nothing is shared with `lightthinker.policies`
but the settings. Shapes: L layers, H KV heads, G query heads per KV head, n tokens, D head size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import AttentionInterface

REFERENCE_ATTENTION = "lt_policy_reference"
NEVER = 10**9


@dataclass
class _Trace:
    """What one forward is told (lifetimes) and tells (logits, probabilities, keys) per layer."""

    expires: list[list[list[int]]]
    logits_LHGnn: dict[int, torch.Tensor]
    keys_LHnD: dict[int, torch.Tensor]

    def probabilities(self, layer: int, head: int) -> torch.Tensor:
        """Return [G, n, n], query by key."""
        return self.logits_LHGnn[layer][head].softmax(dim=-1)


_trace: _Trace | None = None


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Dense attention in which each KV head has a mask of its own."""
    assert _trace is not None
    layer, (num_heads, n) = module.layer_idx, key.shape[1:3]
    window = kwargs.get("sliding_window", getattr(module, "sliding_window", None))
    group = query.shape[1] // num_heads
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    index = torch.arange(n)
    outputs, logits_of_heads = [], []
    for head in range(num_heads):
        expires = torch.tensor(_trace.expires[layer][head][:n])
        hidden = (index[None, :] > index[:, None]) | (index[:, None] >= expires[None, :])
        if window is not None:
            hidden = hidden | (index[None, :] <= index[:, None] - window)
        logits_of_group = []
        for g in range(group):
            logits = scale * query[0, head * group + g] @ key[0, head].T
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logits = logits.masked_fill(hidden, float("-inf"))
            logits_of_group.append(logits)
            outputs.append(logits.softmax(dim=-1) @ value[0, head])
        logits_of_heads.append(torch.stack(logits_of_group))
    _trace.logits_LHGnn[layer] = torch.stack(logits_of_heads)
    _trace.keys_LHnD[layer] = key[0]
    return torch.stack(outputs)[None].transpose(1, 2), None


AttentionInterface.register(REFERENCE_ATTENTION, _attention)


@dataclass(frozen=True)
class ReferenceRun:
    """What the reference did.

    Attributes:
        logits: [V] after each token from the last prompt token on, the last token excluded.
        live: Tokens in the cache when each of all tokens was written, the last one included.
        kept: For each token from the last prompt token on, the tokens that were left, [L][H].
    """

    logits: list[torch.Tensor]
    live: list[int]
    kept: list[list[list[list[int]]]]


@torch.no_grad()
def reference_run(
    model: Any,
    policy: Any,
    prompt: list[int],
    output: list[int],
    *,
    tokenizer: Any,
    num_layers: int,
    num_kv_heads: int,
    sample_index: int = 0,
) -> ReferenceRun:
    """Write a prompt and a scripted output under a policy.

    Args:
        model: A causal LM of its own (its attention implementation is switched).
        policy: One of `lightthinker.policies`; only its settings are used.
        prompt: Token ids.
        output: Token ids sampled after it; the last one is never forwarded.
        tokenizer: Separators are read off it.
        num_layers: L.
        num_kv_heads: H.
        sample_index: Which sample of a request this is.
    """
    model.set_attn_implementation(REFERENCE_ATTENTION)
    ids, num_prompt = [*prompt, *output], len(prompt)
    heads = [(layer, head) for layer in range(num_layers) for head in range(num_kv_heads)]
    expires = [[[NEVER] * len(ids) for _ in range(num_kv_heads)] for _ in range(num_layers)]
    logits, live, kept = [], list(range(1, num_prompt + 1)), []
    for n in range(num_prompt, len(ids)):
        last = n - 1
        trace = _Trace(expires, {}, {})
        with _tracing(trace):
            logits.append(model(torch.tensor([ids[:n]]), use_cache=False).logits[0, -1])
        cache = {
            (layer, head): [k for k in range(n) if expires[layer][head][k] > last]
            for layer, head in heads
        }
        limit = _limit(policy, n + 1, num_prompt)
        if len(cache[0, 0]) >= limit:
            state = _Full(policy, ids[:n], num_prompt, limit, cache, trace, tokenizer, sample_index)
            for layer, head in heads:
                stays = CHOICES[policy.name](state, layer, head)
                for k in set(cache[layer, head]) - set(stays):
                    expires[layer][head][k] = n
                cache[layer, head] = sorted(stays)
        sizes = {len(tokens) for tokens in cache.values()}
        assert len(sizes) == 1, "every head must hold equally many tokens"
        live.append(sizes.pop() + 1)
        kept.append([[cache[layer, h] for h in range(num_kv_heads)] for layer in range(num_layers)])
    return ReferenceRun(logits, live, kept)


@contextmanager
def _tracing(trace: _Trace) -> Iterator[None]:
    global _trace
    _trace = trace
    try:
        yield
    finally:
        _trace = None


def _limit(policy: Any, num_written: int, num_prompt: int) -> int:
    if policy.budget is not None:
        return int(policy.budget)
    protected = {
        "streaming_llm": ("sinks",),
        "sepllm": ("initial",),
        "snapkv": ("window",),
        "r_kv": ("window",),
        "random": ("recent",),
    }
    least = sum(int(getattr(policy, name)) for name in protected.get(policy.name, ()))
    least += {"sepllm": 1, "h2o": 1, "tova": 1}.get(policy.name, 0)
    least += num_prompt if policy.keep_prompt else 0
    least += int(policy.buffer) + 1
    share: int = math.ceil(policy.ratio * num_written)
    return max(least, share)


@dataclass(frozen=True)
class _Full:
    """A full cache, and everything that a choice may depend on."""

    policy: Any
    ids: list[int]
    num_prompt: int
    limit: int
    cache: dict[tuple[int, int], list[int]]
    trace: _Trace
    tokenizer: Any
    sample_index: int

    @property
    def num_kept(self) -> int:
        return self.limit - int(self.policy.buffer)

    @property
    def num_pinned(self) -> int:
        return self.num_prompt if self.policy.keep_prompt else 0


def _best(full: _Full, scores: dict[int, float], count: int) -> list[int]:
    """Return `count` tokens: a prompt that is kept, then the largest scores, then the oldest."""
    return sorted(scores, key=lambda k: (k >= full.num_pinned, -scores[k], k))[:count]


def _streaming_llm(full: _Full, layer: int, head: int) -> list[int]:
    tokens, first = full.cache[layer, head], max(full.policy.sinks, full.num_pinned)
    num_recent = full.num_kept - first
    return tokens[:first] + tokens[len(tokens) - num_recent :]


def _sepllm(full: _Full, layer: int, head: int) -> list[int]:
    policy, tokens = full.policy, full.cache[layer, head]
    initial = tokens[: max(policy.initial, full.num_pinned)]
    num_neighbours = int(policy.neighbour_fraction * (full.num_kept - full.num_pinned))
    num_neighbours = max(1, min(num_neighbours, full.num_kept - len(initial)))
    neighbours = tokens[len(tokens) - num_neighbours :]
    separators = []
    for token in tokens:
        text = full.tokenizer.decode([full.ids[token]]).replace(" ", "")
        if full.ids[token] in full.tokenizer.all_special_ids or not text:
            continue
        if all(character in policy.separators for character in text):
            separators.append(token)
    between = [t for t in separators if t not in initial and t not in neighbours]
    room = full.num_kept - len(initial) - len(neighbours)
    return initial + between[len(between) - min(room, len(between)) :] + neighbours


def _h2o(full: _Full, layer: int, head: int) -> list[int]:
    tokens = full.cache[layer, head]
    num_recent = max(1, int(full.policy.recent_fraction * (full.num_kept - full.num_pinned)))
    recent = tokens[len(tokens) - num_recent :]
    paid_Gnn = full.trace.probabilities(layer, head)
    scores = {k: float(paid_Gnn[:, :, k].sum()) for k in tokens if k not in recent}
    return _best(full, scores, full.num_kept - num_recent) + recent


def _tova(full: _Full, layer: int, head: int) -> list[int]:
    num_heads = len(full.trace.logits_LHGnn[layer])
    scores = dict.fromkeys(full.cache[layer, head], 0.0)
    for other in range(num_heads):
        for row_n in full.trace.probabilities(layer, other)[:, -1]:
            for k in scores:
                scores[k] += float(row_n[k])
    return _best(full, scores, full.num_kept)


def _snapkv(full: _Full, layer: int, head: int) -> list[int]:
    policy, tokens = full.policy, full.cache[layer, head]
    past, window = tokens[: -policy.window], tokens[-policy.window :]
    paid_Gnn = full.trace.probabilities(layer, head)
    votes = [sum(float(paid_Gnn[:, q, k].mean()) for q in window) for k in past]
    reach = policy.kernel // 2
    scores = {
        k: sum(votes[j] for j in range(max(0, i - reach), min(len(past), i + reach + 1)))
        for i, k in enumerate(past)
    }
    return _best(full, scores, full.num_kept - policy.window) + window


def _r_kv(full: _Full, layer: int, head: int) -> list[int]:
    policy, tokens = full.policy, full.cache[layer, head]
    past, window = tokens[: -policy.window], tokens[-policy.window :]
    importance = [0.0] * len(past)
    for q in window:
        logits = full.trace.logits_LHGnn[layer][head][:, q, past].amax(dim=0)
        for i, p in enumerate(logits.softmax(dim=0).tolist()):
            importance[i] += p / policy.window
    reach = policy.kernel // 2
    pooled = [max(importance[max(0, i - reach) : i + reach + 1]) for i in range(len(past))]
    redundancy = _redundancy(full.trace.keys_LHnD[layer][head][tokens], policy.threshold)
    scores = {
        k: policy.mix_lambda * pooled[i] - (1 - policy.mix_lambda) * redundancy[i]
        for i, k in enumerate(past)
    }
    return _best(full, scores, full.num_kept - policy.window) + window


def _redundancy(keys_nD: torch.Tensor, threshold: float) -> list[float]:
    n = len(keys_nD)
    cosine = torch.nn.functional.cosine_similarity
    similarity = [
        [float(cosine(keys_nD[i], keys_nD[j], dim=0)) for j in range(n)] for i in range(n)
    ]
    for i in range(n):
        similarity[i][i] = 0.0
        resembling = [j for j in range(n) if similarity[i][j] > threshold]
        if resembling:
            similarity[i][resembling[-1]] = 0.0
    mean = [sum(similarity[i][j] for i in range(n)) / n for j in range(n)]
    total = sum(math.exp(m) for m in mean)
    return [math.exp(m) / total for m in mean]


def _random(full: _Full, layer: int, head: int) -> list[int]:
    policy, tokens = full.policy, full.cache[layer, head]
    prompt = list(full.ids[: full.num_prompt])
    draw = random.Random(f"{policy.seed} {full.sample_index} {len(full.ids)} {prompt}")
    recent = tokens[len(tokens) - policy.recent :]
    between = tokens[full.num_pinned : len(tokens) - policy.recent]
    # Drawn as places in the cache, as anyone who knows no token index would.
    places = range(full.num_pinned, full.num_pinned + len(between))
    drawn = draw.sample(places, full.num_kept - full.num_pinned - policy.recent)
    return tokens[: full.num_pinned] + [tokens[i] for i in drawn] + recent


CHOICES: dict[str, Callable[[_Full, int, int], list[int]]] = {
    "streaming_llm": _streaming_llm,
    "sepllm": _sepllm,
    "h2o": _h2o,
    "tova": _tova,
    "snapkv": _snapkv,
    "r_kv": _r_kv,
    "random": _random,
}
"""What each policy leaves in one head of a full cache: token indices."""
