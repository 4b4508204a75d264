"""Progress of an evaluation on a terminal: samples done, accuracy so far, time left.

Prints nothing where there is no terminal.
"""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightthinker.evals.records import SampleRecord


class EvalProgress:
    """One bar for each method, made when the method starts."""

    def __init__(self, console: Console | None = None):
        console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, object] = {}
        self._seen: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def start(self, method: str, total: int) -> None:
        """Show a method's bar."""
        if method not in self._tasks:
            self._tasks[method] = self._bars.add_task(method, total=total, status="")

    def advance(self, record: SampleRecord) -> None:
        """Count a finished sample."""
        seen = self._seen[record.method]
        seen[0] += record.correct
        seen[1] += 1
        task = self._tasks[record.method]
        status = f"{100 * seen[0] / seen[1]:.1f} % correct"
        self._bars.update(task, completed=seen[1], status=status)  # type: ignore[arg-type]

    def __enter__(self) -> EvalProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()
