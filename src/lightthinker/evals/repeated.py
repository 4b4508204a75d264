"""Several samples per problem: pass@k and maj@k.

pass@k is the chance that at least one of k samples is right, estimated without bias from n >= k
samples (Chen et al. 2021, arXiv 2107.03374, equation 1). maj@k is the chance that the most frequent
answer among k samples is right (self-consistency, Wang et al. 2022, arXiv 2203.11171); ties go to
the answer that was given first. Knows no records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lightthinker.errors import DataError

MOST_SUBSETS = 500
"""maj@k is exact up to this many subsets; beyond, it is the mean over this many random ones."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k for one problem.

    Args:
        num_samples: Samples of the problem, n.
        num_correct: How many of them are right, c.
        k: From 1 to n.

    Returns:
        `1 - C(n - c, k) / C(n, k)`.

    Raises:
        DataError: k or c is out of range.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise DataError(
            f"pass@{k} of {num_correct} right among {num_samples} samples; allowed: 1 <= k <= "
            "samples, and 0 <= right <= samples."
        )
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Return whether the most frequent answer is right; samples without an answer do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    return bool(correct[list(answers).index(winner)])


def maj_at_k(
    answers: Sequence[str | None], correct: Sequence[bool], k: int, *, seed: int = 0
) -> float:
    """Return maj@k for one problem: the mean over subsets of k samples.

    Args:
        answers: What each sample answered, in the order of sampling; None: nothing readable.
        correct: Whether it is right.
        k: From 1 to the number of samples.
        seed: Of the random subsets, where there are too many.

    Raises:
        DataError: k is out of range, or the lengths differ.
    """
    num = len(answers)
    if not 1 <= k <= num or len(correct) != num:
        raise DataError(f"maj@{k} of {num} answers and {len(correct)} verdicts.")
    if math.comb(num, k) <= MOST_SUBSETS:
        subsets = [list(subset) for subset in combinations(range(num), k)]
    else:
        generator = np.random.default_rng(seed)
        subsets = [
            sorted(generator.choice(num, size=k, replace=False).tolist())
            for _ in range(MOST_SUBSETS)
        ]
    right = [majority([answers[i] for i in s], [correct[i] for i in s]) for s in subsets]
    return sum(right) / len(right)


def powers_of_two(most: int) -> list[int]:
    """Return the k that are reported for n samples: 1, 2, 4, ... and n itself."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
