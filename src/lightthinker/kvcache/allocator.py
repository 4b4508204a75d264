"""Which pages are free, who holds the others, and which still hold the start of a known prompt.

A page may be held several times: requests with the same prompt share its full pages. Such a page
has a *key*; once nobody holds it, it stays findable until its memory is needed, the page released
longest ago first (automatic prefix caching). Invariant: every page is free, idle (findable, held by
nobody) or used; the three add up to the total.

Knows nothing of tensors, tokens or sequences.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence


class PageAllocator:
    """Hands out page numbers and takes them back.

    Args:
        num_pages: Pages in all.
        on_evict: Told of each idle page whose content is given up.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] | None = None):
        self.num_pages = num_pages
        self._on_evict = on_evict
        self._free: deque[int] = deque(range(num_pages))
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Pages that can be allocated now, idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Pages that somebody holds."""
        return len(self._holders)

    @property
    def num_idle(self) -> int:
        """Pages that nobody holds and that a prompt may still find."""
        return len(self._idle)

    def allocate(self, num_pages: int) -> list[int]:
        """Take `num_pages` pages; the caller has checked `num_free`."""
        assert num_pages <= self.num_free, f"{num_pages} pages asked for, {self.num_free} free"
        pages = [self._free.popleft() if self._free else self._evict() for _ in range(num_pages)]
        self._holders.update(dict.fromkeys(pages, 1))
        return pages

    def release(self, pages: Sequence[int]) -> list[int]:
        """Let go of pages; a page that nobody holds is a bug.

        Returns:
            Those that became free: nobody else holds them and no prompt can find them.
        """
        freed = []
        # The end of a prompt becomes idle first: fewer requests have use for it than its beginning.
        for page in reversed(pages):
            if page not in self._holders:
                raise AssertionError(f"page {page} released twice")
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)
                freed.append(page)
        return freed

    def publish(self, page: int, key: bytes) -> None:
        """Make a held page findable; the first page with a key keeps it."""
        assert page in self._holders, "only a page in use can be published"
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def num_found(self, keys: Iterable[bytes]) -> tuple[int, int]:
        """Return how many of these keys, from the first on, are there; and how many are idle."""
        found = idle = 0
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            found += 1
            idle += page in self._idle
        return found, idle

    def hold(self, keys: Iterable[bytes]) -> list[int]:
        """Hold the pages of these keys, which are all there."""
        pages = [self._page_of[key] for key in keys]
        for page in pages:
            self._idle.pop(page, None)
            self._holders[page] = self._holders.get(page, 0) + 1
        return pages

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless `held` are exactly the used pages, each as often as held."""
        expected = Counter(held)
        for page, count in expected.items():
            if count > 1 and page not in self._key_of:
                raise AssertionError("a page has two owners")
        if dict(expected) != self._holders:
            raise AssertionError(f"pages leaked or stolen: {expected} held, {self._holders} known")
        parts = (set(self._free), set(self._idle), set(self._holders))
        if len(set().union(*parts)) != self.num_pages or sum(map(len, parts)) != self.num_pages:
            raise AssertionError("free, idle and used pages do not add up to the total")
        if any(page not in self._key_of for page in self._idle):
            raise AssertionError("an idle page cannot be found")
        if {page: key for key, page in self._page_of.items()} != self._key_of:
            raise AssertionError("a page and its key disagree")

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        if self._on_evict is not None:
            self._on_evict(page)
        return page
