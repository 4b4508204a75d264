"""How each row of a step samples, as device words that a CUDA graph reads.

`fill` writes one step's parameters and uploads them in one copy (`StagedBuffer`). The history table
(which ids a request has in prompt or output, for the repetition penalty) stays on the device: the
prompt is marked once, sampled ids are marked by the sampling kernel itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from lightthinker.attention.staging import StagedBuffer

NO_HISTORY = -1


class SamplingField(IntEnum):
    """Lines of `SamplingBatch.words`; `FORBIDDEN` is the first of `max_forbidden`."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION_PENALTY = 3
    TOP_K = 4
    SEED_LOW = 5
    SEED_HIGH = 6
    STEP = 7
    HISTORY = 8
    FORBIDDEN = 9


@dataclass(frozen=True, kw_only=True)
class RowSampling:
    """How one row samples.

    Attributes:
        temperature: 0 is greedy.
        top_k: Candidates kept; 0 or less keeps all.
        top_p: Nucleus probability in (0, 1].
        min_p: Least probability relative to the most probable id's, in [0, 1].
        repetition_penalty: Above 1 makes ids of the row's history less likely (CTRL,
            arXiv 1909.05858, section 4.1).
        seed: The request's, 64 bits.
        step: How many ids the request has sampled; seed and step together name the random draw.
        history: Its line in the history table, or `NO_HISTORY`.
        forbidden: Ids that are not sampled here.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    step: int = 0
    history: int = NO_HISTORY
    forbidden: Sequence[int] = ()


class SamplingBatch:
    """Static buffers of one step's sampling parameters.

    Attributes:
        words: int32 [SamplingField.FORBIDDEN + max_forbidden, max_rows] on the device; floats as
            their bits.
        seen: uint8 [num_histories, V] on the device: 1 where a history holds the id.

    Args:
        max_rows: Most rows of a step.
        vocab_size: V.
        device: Where the kernels run.
        max_forbidden: Most forbidden ids of a row.
        num_histories: Requests with a repetition penalty at one time; V bytes each.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
        max_forbidden: int = 32,
        num_histories: int = 0,
    ):
        self.max_rows = max_rows
        self.max_forbidden = max_forbidden
        self._shape = (SamplingField.FORBIDDEN + max_forbidden, max_rows)
        self._buffer = StagedBuffer(self._shape[0] * self._shape[1], device)
        self.words = self._buffer.device_words.view(self._shape)
        # One line more than asked, so that the kernels always have a table to point to.
        self.seen = torch.zeros((num_histories + 1, vocab_size), dtype=torch.uint8, device=device)
        self.num_histories = num_histories

    def fill(self, rows: Sequence[RowSampling]) -> None:
        """Write a step's rows and copy them to the device; rows beyond them sample greedily."""
        assert len(rows) <= self.max_rows, (len(rows), self.max_rows)
        words = self._buffer.next_host().reshape(self._shape)
        floats = words.view(np.float32)
        count, field = len(rows), SamplingField
        floats[field.TEMPERATURE, :count] = [r.temperature for r in rows]
        floats[field.TEMPERATURE, count:] = 0
        floats[field.TOP_P, :count] = [r.top_p for r in rows]
        floats[field.MIN_P, :count] = [r.min_p for r in rows]
        floats[field.REPETITION_PENALTY, :count] = [r.repetition_penalty for r in rows]
        floats[field.REPETITION_PENALTY, count:] = 1
        words[field.TOP_K, :count] = [r.top_k for r in rows]
        seeds = np.array([r.seed % 2**64 for r in rows], dtype=np.uint64)
        words[field.SEED_LOW, :count] = (seeds & np.uint64(2**32 - 1)).astype(np.uint32).view("i4")
        words[field.SEED_HIGH, :count] = (seeds >> np.uint64(32)).astype(np.uint32).view("i4")
        words[field.STEP, :count] = [r.step for r in rows]
        words[field.HISTORY, :count] = [r.history for r in rows]
        words[field.HISTORY, count:] = NO_HISTORY
        words[field.FORBIDDEN :] = -1
        for column, row in enumerate(rows):
            assert row.history < self.num_histories, (row.history, self.num_histories)
            assert len(row.forbidden) <= self.max_forbidden, len(row.forbidden)
            if row.forbidden:
                words[field.FORBIDDEN :, column][: len(row.forbidden)] = row.forbidden
        self._buffer.upload(words.size)

    def begin_history(self, history: int, token_ids: Sequence[int]) -> None:
        """Give a history line to a new request whose prompt holds `token_ids`."""
        assert 0 <= history < self.num_histories, history
        self.seen[history] = 0
        self.seen[history, torch.tensor(sorted(set(token_ids)), device=self.seen.device)] = 1
