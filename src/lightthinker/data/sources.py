"""`read_traces`: the formats people have -> `Trace`, one at a time, with a count of the rest.

The formats, with the keys by which they are told apart in the first row that is an object:

    upstream       zjunlp/LightThinker: thoughts_list, gt_output, question, system_prompt
    messages       OpenAI: messages = [{role, content[, reasoning_content]}, ...]
    sharegpt       Bespoke-Stratos, ShareGPT: conversations = [{from, value}, ...]
    gsm8k          question, answer = one step a line, then #### 72
    columns        question, reasoning, answer under the names in `columns.ALIASES`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from lightthinker.data.chat import parse_chat
from lightthinker.data.columns import ALIASES, has_columns, is_gsm8k, parse_columns, parse_gsm8k
from lightthinker.data.report import ReadReport
from lightthinker.data.rows import HubOptions, NumberedRows, Row, open_rows
from lightthinker.data.trace import Trace, TraceError
from lightthinker.data.upstream import is_upstream, parse_upstream
from lightthinker.errors import ConfigError, DataError, suggestion

TraceFormat = Literal["upstream", "messages", "sharegpt", "gsm8k", "columns"]
Parser = Callable[[Row, str], Trace]

_DETECTORS: dict[str, Callable[[Row], bool]] = {
    "upstream": is_upstream,
    "messages": lambda row: "messages" in row,
    "sharegpt": lambda row: "conversations" in row,
    "gsm8k": is_gsm8k,
    "columns": has_columns,
}


def read_traces(
    source: str | Path,
    *,
    format: TraceFormat | Literal["auto"] = "auto",
    columns: Mapping[str, str] | None = None,
    keep_calculator: bool = False,
    strict: bool = False,
    limit: int | None = None,
    hub: HubOptions | None = None,
) -> TraceReader:
    """Open a file or hub dataset of reasoning traces.

    Args:
        source: A .jsonl, .ndjson, .json or .parquet file, a folder that `datasets` can load, or the
            name of a hub dataset. JSON lines and Parquet are read as they are needed.
        format: `auto` decides by the first row that is an object.
        columns: For format `columns`: which column holds `question`, `reasoning`, `answer`,
            `system`, `thoughts` or `reference`, where its name is not one of `columns.ALIASES`.
        keep_calculator: For format `gsm8k`: keep annotations such as `<<48/2=24>>`.
        strict: Raise at the first row that yields no trace, instead of skipping and counting it.
        limit: Stop after so many traces.
        hub: Which part of a hub dataset; None means the train split.

    Returns:
        An iterable of traces; its `report` counts what was read, kept and dropped.

    Raises:
        DataError: The source cannot be found or is of an unknown kind.
        ConfigError: An unknown format or field, a limit below 1.
    """
    allowed = get_args(TraceFormat)
    if format not in ("auto", *allowed):
        raise ConfigError(
            f"format is {format!r}; allowed: auto, {', '.join(allowed)}."
            f"{suggestion(str(format), allowed)}"
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; allowed: None or an integer >= 1.")
    for name in columns or ():
        if name not in ALIASES:
            raise ConfigError(
                f"columns has the field {name!r}; allowed: {', '.join(ALIASES)}."
                f"{suggestion(name, ALIASES)}"
            )
    if columns and format == "auto":
        format = "columns"
    _check_applies("columns", columns, "columns", format)
    if format != "auto":
        _check_applies("keep_calculator", keep_calculator, "gsm8k", format)
    name, start = open_rows(source, hub)
    parsers = _parsers(columns or {}, keep_calculator)
    return TraceReader(
        name=name, start=start, parsers=parsers, format=format, strict=strict, limit=limit
    )


class TraceReader:
    """An iterable of traces that reads its source anew each time it is iterated over.

    Attributes:
        report: Counts of the latest pass, complete once that pass has ended.
    """

    def __init__(
        self,
        *,
        name: str,
        start: Callable[[], NumberedRows],
        parsers: Mapping[str, Parser],
        format: TraceFormat | Literal["auto"],
        strict: bool,
        limit: int | None,
    ):
        self._name = name
        self._start = start
        self._parsers = parsers
        self._format = format
        self._strict = strict
        self._limit = limit
        self.report = ReadReport(name)

    def __iter__(self) -> Iterator[Trace]:
        report = self.report = ReadReport(self._name)
        for number, row in self._start():
            report.num_read += 1
            try:
                trace = self._parse(row, number, report)
            except TraceError as error:
                if self._strict:
                    raise TraceError(
                        error.reason, f"{error.detail} ({self._name}:{number})"
                    ) from error
                report.drop(error.reason, number, error.detail)
                continue
            report.num_kept += 1
            yield trace
            if report.num_kept == self._limit:
                return

    def _parse(self, row: Row | TraceError, number: int, report: ReadReport) -> Trace:
        if isinstance(row, TraceError):
            raise row
        if report.format is None:
            report.format = self._detect(row) if self._format == "auto" else self._format
        return self._parsers[report.format](row, f"{self._name}:{number}")

    def _detect(self, row: Row) -> str:
        for name, matches in _DETECTORS.items():
            if matches(row):
                return name
        raise DataError(
            f"Cannot tell the format of {self._name}: its first row has the keys "
            f"{', '.join(map(repr, row)) or '(none)'}. Known formats: upstream (thoughts_list, "
            "gt_output), messages (messages), sharegpt (conversations), gsm8k (question, answer "
            "with ####), columns (question, reasoning, answer or other names for them). Pass "
            "format=..., or columns={'question': ..., 'reasoning': ..., 'answer': ...}."
        )


def _parsers(columns: Mapping[str, str], keep_calculator: bool) -> dict[str, Parser]:
    return {
        "upstream": parse_upstream,
        "messages": partial(parse_chat, column="messages"),
        "sharegpt": partial(parse_chat, column="conversations"),
        "gsm8k": partial(parse_gsm8k, keep_calculator=keep_calculator),
        "columns": partial(parse_columns, columns=columns),
    }


def _check_applies(option: str, value: object, format: str, actual: str) -> None:
    if value and actual != format:
        raise ConfigError(f"{option} is {value!r}; it is only for format={format!r}.")
