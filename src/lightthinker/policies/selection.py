"""Choosing the best-scored tokens per layer and head; ties go to the oldest, on every device."""

from __future__ import annotations

import torch


def best_and_recent(
    scores_LHn: torch.Tensor, num_kept: int, num_recent: int, num_pinned: int = 0
) -> torch.Tensor:
    """Return which tokens stay: the recent ones, and the best-scored before them.

    Args:
        scores_LHn: Score of each live token but the recent ones, per layer and head, oldest first.
        num_kept: Tokens that stay in each head, the recent ones included.
        num_recent: How many tokens follow the scored ones; they stay.
        num_pinned: How many of the first tokens stay whatever their score.

    Returns:
        Ascending positions, int64 [L, H, num_kept].
    """
    if num_pinned:
        scores_LHn = scores_LHn.clone()
        scores_LHn[..., :num_pinned] = float("inf")
    best = scores_LHn.sort(dim=-1, descending=True, stable=True).indices
    best = best[..., : num_kept - num_recent].sort(dim=-1).values
    begin = scores_LHn.shape[-1]
    recent = torch.arange(begin, begin + num_recent, device=best.device)
    return torch.cat([best, recent.expand(*best.shape[:-1], -1)], dim=-1)
