"""Samples on their way from the device: the next step may use them before the host sees them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

INVALID = -2
"""Stands for a sample whose logits had no finite value: its request fails, and only it."""

NUM_HOST_BUFFERS = 3


class PendingTokens:
    """One step's samples.

    Attributes:
        device: int64 [B]; `INVALID` where a row had no finite logit.
    """

    def __init__(self, device: torch.Tensor, host: torch.Tensor, copied: torch.cuda.Event | None):
        self.device = device
        self._host = host
        self._copied = copied

    def tolist(self) -> list[int]:
        """Return the samples; waits until they are there."""
        tokens: list[int] = self.array().tolist()
        return tokens

    def array(self) -> npt.NDArray[np.int64]:
        """Return the samples; waits until they are there. They are overwritten a few steps on."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens: npt.NDArray[np.int64] = self._host.numpy()
        return tokens


class TokenBuffer:
    """The samples of the newest step on the device, and copies of the last few on the host.

    A step reads the samples before it writes its own, in one stream, so one device buffer is
    enough; on the host a copy may still be read when the next one is under way.

    Args:
        max_rows: Most samples of a step.
        device: Where the model runs.
    """

    def __init__(self, max_rows: int, device: torch.device):
        on_cuda = device.type == "cuda"
        self.tokens = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.valid = torch.ones(max_rows, dtype=torch.bool, device=device)
        self._hosts = [
            torch.zeros(max_rows, dtype=torch.int64, pin_memory=on_cuda)
            for _ in range(NUM_HOST_BUFFERS)
        ]
        self._events = [
            torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
            for _ in range(NUM_HOST_BUFFERS)
        ]
        self._turn = 0

    def fetch(self, num_tokens: int) -> PendingTokens:
        """Start copying the newest samples to the host."""
        self._turn = (self._turn + 1) % NUM_HOST_BUFFERS
        host, event = self._hosts[self._turn][:num_tokens], self._events[self._turn]
        tokens = self.tokens[:num_tokens]
        tokens.masked_fill_(~self.valid[:num_tokens], INVALID)
        host.copy_(tokens, non_blocking=True)
        if event is not None:
            event.record()
        return PendingTokens(tokens, host, event)
