"""Reports: which requests a step tells of.

A finished request is told of at once. Streams are told of as they grow, at each step or, where the
number of reports is limited, in turns: whoever waited longest comes first, and the turns are spread
over the steps, so that no step has to tell of all. Every report costs time that the next step
waits for (a text to decode, an event to write and send), and at 64 streams and a hundred steps a
second that is more than the steps take. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from time import monotonic

from lightthinker.engine.intake import Request


class Reports:
    """Chooses what a step reports.

    Args:
        max_per_s: Most reports a second on requests that are not finished.
    """

    def __init__(self, max_per_s: float = inf):
        self.max_per_s = max_per_s
        self._streams: dict[str, Request] = {}
        self._allowance = 0.0
        self._then = monotonic()
        self._num_told = 0

    def follow(self, request: Request) -> None:
        """Report a new request as it grows, if it streams."""
        if request.stream:
            self._streams[request.request_id] = request

    def forget(self, request: Request) -> None:
        """Report a request no more."""
        self._streams.pop(request.request_id, None)

    def told(self, num_finished: int) -> None:
        """Note that what was due has been reported; until then the same is due again.

        Args:
            num_finished: As `due` was told.
        """
        self._num_told = num_finished

    def due(self, requests: Mapping[str, Request], num_finished: int) -> list[Request]:
        """Return the requests to report after a step.

        Args:
            requests: All of the engine's.
            num_finished: Sequences that have finished since the engine was made.
        """
        finished: list[Request] = []
        if num_finished != self._num_told:
            finished = [r for r in requests.values() if r.finished]
        growing = [r for r in self._streams.values() if not r.finished]
        return finished + (growing if self.max_per_s == inf else self._in_turn(growing))

    def _in_turn(self, growing: list[Request]) -> list[Request]:
        now = monotonic()
        earned = (now - self._then) * self.max_per_s
        self._allowance, self._then = min(self._allowance + earned, len(growing)), now
        # The first token is what a reader waits for: it is told of beyond the allowance.
        first = [r for r in growing if not r.was_reported and any(s.num_known for s in r.sequences)]
        count = max(0, int(self._allowance) - len(first))
        due = first + [r for r in growing if r.was_reported][:count]
        self._allowance -= len(due)
        for request in due:
            request.was_reported = True
            self._streams[request.request_id] = self._streams.pop(request.request_id)
        return due
