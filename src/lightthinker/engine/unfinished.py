"""UnfinishedRequests: who is in the engine, whose time is up, and whom a step tells of.

Invariant: what is counted over requests (those that must know each token before the next step, the
earliest time limit, the streams that take turns) is over exactly those in `by_id`, because requests
come and go here alone. Knows no scheduler: whoever removes a request ends its sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from time import monotonic

from lightthinker.engine.intake import Request
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.reports import Reports


class UnfinishedRequests:
    """The requests of an engine.

    Args:
        reports: Chooses whom a step tells of.

    Attributes:
        by_id: The requests by name, in the order of their arrival; to be read only.
        num_impatient: How many have a next step that depends on the newest token's id.
    """

    def __init__(self, reports: Reports):
        self.by_id: dict[str, Request] = {}
        self.num_impatient = 0
        self._reports = reports
        self._next_deadline = inf

    def add(self, request: Request) -> None:
        """Take a request whose name is not in use."""
        assert request.request_id not in self.by_id
        self.by_id[request.request_id] = request
        self._reports.follow(request)
        self.num_impatient += request.sequences[0].needs_known_tokens
        self._next_deadline = min(self._next_deadline, request.deadline)

    def remove(self, request_id: str) -> Request | None:
        """Forget a request and return it; None if there is none of this name."""
        request = self.by_id.pop(request_id, None)
        if request is not None:
            self._reports.forget(request)
            self.num_impatient -= request.sequences[0].needs_known_tokens
        return request

    def expire(self, request_id: str) -> None:
        """Let a request's time be up; unknown names are ignored."""
        if request_id in self.by_id:
            self.by_id[request_id].deadline = self._next_deadline = -inf

    def overdue(self) -> list[Request]:
        """Return the requests whose time is up; none until another limit passes."""
        now = monotonic()
        if now < self._next_deadline:
            return []
        later = (r.deadline for r in self.by_id.values() if r.deadline > now)
        self._next_deadline = min(later, default=inf)
        return [r for r in self.by_id.values() if r.deadline <= now]

    def due(self, num_finished: int) -> list[Request]:
        """Return the requests to report after a step; the same again until `told` is called.

        Args:
            num_finished: Sequences that have finished since the engine was made.
        """
        return self._reports.due(self.by_id, num_finished)

    def told(self, outputs: Iterable[RequestOutput], num_finished: int) -> None:
        """Note what was reported: finished requests are forgotten.

        Args:
            outputs: The reports.
            num_finished: As `due` was told.
        """
        for output in outputs:
            if output.finished:
                self.remove(output.request_id)
        self._reports.told(num_finished)
