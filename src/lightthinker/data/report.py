"""What became of the rows of a data file: read, kept, and dropped for which reason, where."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from lightthinker.data.trace import DropReason

_MAX_LINES_KEPT = 5


@dataclass
class Drops:
    """Rows dropped for one reason: how many, the first numbers, what was wrong with the first."""

    count: int = 0
    detail: str = ""
    lines: list[int] = field(default_factory=list)


@dataclass
class ReadReport:
    """What became of the rows of one source.

    Attributes:
        source: File or dataset name.
        format: The format read; None while it is undecided.
        num_read: Rows looked at.
        num_kept: Traces yielded.
        drops: Reason -> how many rows, and where the first ones are.
    """

    source: str
    format: str | None = None
    num_read: int = 0
    num_kept: int = 0
    drops: defaultdict[DropReason, Drops] = field(default_factory=lambda: defaultdict(Drops))

    @property
    def num_dropped(self) -> int:
        """Rows that yielded no trace."""
        return sum(drops.count for drops in self.drops.values())

    def drop(self, reason: DropReason, line: int, detail: str = "") -> None:
        """Count one row that yields no trace."""
        drops = self.drops[reason]
        if not drops.count:
            drops.detail = detail
        drops.count += 1
        if len(drops.lines) < _MAX_LINES_KEPT:
            drops.lines.append(line)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {
            "source": self.source,
            "format": self.format,
            "num_read": self.num_read,
            "num_kept": self.num_kept,
            "drops": {
                str(reason): {
                    "count": drops.count,
                    "lines": list(drops.lines),
                    "detail": drops.detail,
                }
                for reason, drops in self.drops.items()
            },
        }

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.num_kept} of {self.num_read} rows kept"]
        for reason, drops in self.drops.items():
            more = ", ..." if drops.count > len(drops.lines) else ""
            where = ", ".join(map(str, drops.lines))
            lines.append(f"  {drops.count} dropped: {reason} (line {where}{more})")
        return "\n".join(lines)
