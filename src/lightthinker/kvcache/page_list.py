"""The pages of one sequence: a list that can also be had as an array, without converting it anew.

A step copies every sequence's page numbers into the table that the kernels read; thousands of
Python ints per sequence would cost more than the step itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class PageList(list[int]):
    """Page numbers that grow and shrink at their end only."""

    def __init__(self, pages: Iterable[int] = ()):
        super().__init__(pages)
        self._array = np.empty(max(8, len(self)), dtype=np.int32)
        self._num_known = 0

    def cut(self, length: int) -> list[int]:
        """Drop all pages from `length` on and return them."""
        dropped = self[length:]
        super().__delitem__(slice(length, None))
        self._num_known = min(self._num_known, length)
        return dropped

    def numbers(self) -> npt.NDArray[np.int32]:
        """Return the pages as int32 [n], valid until the list changes."""
        num_pages = len(self)
        if self._num_known < num_pages:
            if num_pages > len(self._array):
                self._array = np.resize(self._array, 2 * num_pages)
            self._array[self._num_known : num_pages] = self[self._num_known :]
            self._num_known = num_pages
        return self._array[:num_pages]

    def __setitem__(self, *_: object) -> None:
        raise TypeError("pages change at their end only: extend the list, or cut it")

    def __delitem__(self, *_: object) -> None:
        raise TypeError("pages change at their end only: extend the list, or cut it")
