"""How each row of a step samples, as device words that a CUDA graph reads.

`fill` writes one step's parameters and uploads them in one copy (`StagedBuffer`). The history table
(which ids a request has in prompt or output, for the repetition penalty) stays on the device: the
prompt is marked once, sampled ids are marked by the sampling kernel itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from struct import pack, unpack

import numpy as np
import numpy.typing as npt
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

    @cached_property
    def words(self) -> tuple[int, ...]:
        """The lines of `SamplingField` before `FORBIDDEN`, as uint32."""
        floats = (self.temperature, self.top_p, self.min_p, self.repetition_penalty)
        seed = self.seed % 2**64
        integers = (self.top_k, seed % 2**32, seed >> 32, self.step, self.history)
        return (*unpack("4I", pack("4f", *floats)), *(i % 2**32 for i in integers))


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

    def fill(
        self,
        rows: Sequence[RowSampling],
        steps: Sequence[int] | None = None,
        *,
        packed: npt.NDArray[np.int32] | None = None,
        forbidden: Sequence[int] = (),
    ) -> None:
        """Write a step's rows and copy them to the device; rows beyond them sample greedily.

        Args:
            rows: One for each sample.
            steps: Replaces their `step`, so that the same rows serve step after step.
            packed: `words` of further rows [w, m], which come first.
            forbidden: What is not sampled in those.
        """
        words = self._buffer.next_host().reshape(self._shape)
        if packed is not None:
            num_packed = packed.shape[1]
            words[: SamplingField.FORBIDDEN, :num_packed] = packed
            words[SamplingField.FORBIDDEN :, :num_packed] = -1
            words[SamplingField.FORBIDDEN :][: len(forbidden), :num_packed] = np.array(
                forbidden, dtype=np.int32
            )[:, None]
            self._fill(words[:, num_packed:], rows, steps)
        else:
            self._fill(words, rows, steps)
        self._buffer.upload(words.size)

    def _fill(
        self,
        words: npt.NDArray[np.int32],
        rows: Sequence[RowSampling],
        steps: Sequence[int] | None,
    ) -> None:
        assert len(rows) <= words.shape[1], (len(rows), words.shape)
        floats = words.view(np.float32)
        count, field = len(rows), SamplingField
        floats[field.TEMPERATURE, count:] = 0
        floats[field.REPETITION_PENALTY, count:] = 1
        words[field.HISTORY, count:] = NO_HISTORY
        words[field.FORBIDDEN :] = -1
        if rows:
            settings = np.array([r.words for r in rows], dtype=np.uint32).view(np.int32)
            words[: field.FORBIDDEN, :count] = settings.T
            if steps is not None:
                words[field.STEP, :count] = steps
            assert settings[:, field.HISTORY].max() < self.num_histories, "a history too many"
            self._forbid(words[field.FORBIDDEN :], rows)

    def _forbid(self, words: npt.NDArray[np.int32], rows: Sequence[RowSampling]) -> None:
        first = rows[0].forbidden
        if all(r.forbidden is first for r in rows):  # As it is in an engine.
            assert len(first) <= self.max_forbidden, len(first)
            words[: len(first), : len(rows)] = np.array(first, dtype=np.int32)[:, None]
            return
        for column, row in enumerate(rows):
            assert len(row.forbidden) <= self.max_forbidden, len(row.forbidden)
            words[: len(row.forbidden), column] = row.forbidden

    def begin_history(self, history: int, token_ids: Sequence[int]) -> None:
        """Give a history line to a new request whose prompt holds `token_ids`."""
        assert 0 <= history < self.num_histories, history
        self.seen[history] = 0
        self.seen[history, torch.tensor(sorted(set(token_ids)), device=self.seen.device)] = 1
