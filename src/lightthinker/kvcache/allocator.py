"""Which pages are free.

Invariant: every page is either free or has exactly one owner; free + used = total.

Knows nothing of tensors or sequences.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class PageAllocator:
    """Hands out page numbers and takes them back."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free: deque[int] = deque(range(num_pages))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Pages that can be allocated now."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages that have an owner."""
        return len(self._used)

    def allocate(self, num_pages: int) -> list[int]:
        """Take `num_pages` pages; the caller has checked `num_free`."""
        assert num_pages <= len(self._free), f"{num_pages} pages asked for, {len(self._free)} free"
        pages = [self._free.popleft() for _ in range(num_pages)]
        self._used.update(pages)
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """Give pages back; a page that has no owner is a bug."""
        for page in pages:
            if page not in self._used:
                raise AssertionError(f"page {page} released twice")
            self._used.remove(page)
            self._free.append(page)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Raise AssertionError unless `owned` are exactly the used pages, each once."""
        owned = list(owned)
        if len(set(owned)) != len(owned):
            raise AssertionError("a page has two owners")
        if set(owned) != self._used:
            raise AssertionError(f"pages leaked or stolen: {set(owned) ^ self._used}")
        if len(self._free) + len(self._used) != self.num_pages or self._used & set(self._free):
            raise AssertionError("free + used pages do not add up to the total")
