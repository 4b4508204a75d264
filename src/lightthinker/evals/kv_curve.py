"""How a sample's KV cache grows and shrinks, as few points.

Live tokens rise by one per sampled token and fall when a thought is freed; only the turning
points are kept, so a curve of any length costs two points per thought.
"""

from __future__ import annotations


class KVCurve:
    """The turning points of one sequence's live KV tokens, over its sampled tokens."""

    def __init__(self, num_prompt_tokens: int):
        self.points: list[tuple[int, int]] = [(0, num_prompt_tokens)]
        self._freed = 0

    def observe(self, num_sampled: int, num_live: int, tokens_freed: int) -> None:
        """Note the state after a step; tokens freed in it were live before its end."""
        freed, self._freed = tokens_freed - self._freed, tokens_freed
        if freed:
            self._add(num_sampled, num_live + freed)
        self._add(num_sampled, num_live)

    def finish(self, num_sampled: int) -> tuple[tuple[int, int], ...]:
        """Return the points; tokens sampled since the last step observed are live as well."""
        sampled, live = self.points[-1]
        if num_sampled > sampled:
            self._add(num_sampled, live + num_sampled - sampled)
        return tuple(self.points)

    def _add(self, x: int, y: int) -> None:
        points = self.points
        if (x, y) == points[-1]:
            return
        if len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            if (x1 - x0) * (y - y0) == (x - x0) * (y1 - y0) and x1 > x0:
                points.pop()
        points.append((x, y))
