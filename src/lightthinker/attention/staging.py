"""A static device buffer that the host fills step by step, without waiting for the GPU.

A CUDA graph replays kernels on fixed addresses, so the device side is allocated once and only its
contents change. The host writes a step into pinned memory and one asynchronous copy brings it over;
several host buffers take turns, each guarded by an event, so that a step can be written while the
copy of the one before still waits in the stream.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

NUM_HOST_BUFFERS = 3


class StagedBuffer:
    """int32 words on the device, and the host buffers that feed them.

    Attributes:
        device_words: int32 [num_words] on the device; its address never changes.

    Args:
        num_words: Size.
        device: Where the kernels run.
    """

    def __init__(self, num_words: int, device: torch.device):
        self.device_words = torch.zeros(num_words, dtype=torch.int32, device=device)
        self._hosts = [_Host(num_words, device) for _ in range(NUM_HOST_BUFFERS)]
        self._turn = 0

    def next_host(self) -> npt.NDArray[np.int32]:
        """Return the host words to write next, old contents included."""
        self._turn = (self._turn + 1) % len(self._hosts)
        host = self._hosts[self._turn]
        if host.copied is not None:
            host.copied.synchronize()
        return host.array

    def upload(self, num_words: int) -> None:
        """Copy the first words of the host buffer given out last to the device."""
        host = self._hosts[self._turn]
        self.device_words[:num_words].copy_(host.tensor[:num_words], non_blocking=True)
        if host.copied is not None:
            host.copied.record()


class _Host:
    def __init__(self, num_words: int, device: torch.device):
        on_cuda = device.type == "cuda"
        self.tensor = torch.zeros(num_words, dtype=torch.int32, pin_memory=on_cuda)
        self.array: npt.NDArray[np.int32] = self.tensor.numpy()
        self.copied = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
