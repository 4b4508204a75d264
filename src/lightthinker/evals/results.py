"""The aggregates of an evaluation, and the JSON in which they are committed.

Always computed from the per-sample records. Every number is a mean over problems, except
`wall_time_s` and `num_truncated`, which are sums. Knows no model and no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from lightthinker.errors import DataError
from lightthinker.evals.provenance import package_versions
from lightthinker.evals.records import SampleRecord, group_by, write_text
from lightthinker.evals.summaries import Comparison, comparison


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """How the numbers came about.

    Attributes:
        benchmark: Name and settings of the benchmark.
        model: `name`, `sha256` of the checkpoint and `weights_sha256`.
        device: Where it ran, in words.
        seed: Seed of the problems and of sampling.
        command: The command line.
        versions: Python, torch, transformers, lightthinker.
        sampling: How samples were drawn.
        method_settings: What each method was run with.
        git_commit: Commit of the source tree, if it ran from one.
    """

    benchmark: dict[str, Any]
    model: dict[str, str]
    device: str
    seed: int
    command: str
    versions: dict[str, str] = field(default_factory=package_versions)
    sampling: dict[str, Any] = field(default_factory=dict)
    method_settings: dict[str, Any] = field(default_factory=dict)
    git_commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvalResults:
    """The aggregates of a run, as they are saved.

    Attributes:
        info: How the numbers came about.
        overall: All problems.
        by_family: The same for each family.
        controls: Extra measurements, by name (see `lightthinker.evals.controls`).
    """

    info: RunInfo
    overall: Comparison
    by_family: dict[str, Comparison]
    controls: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_records(
        cls,
        records: Sequence[SampleRecord],
        info: RunInfo,
        controls: Mapping[str, Any] | None = None,
    ) -> EvalResults:
        """Aggregate the records of a run.

        Raises:
            DataError: There are no records.
        """
        if not records:
            raise DataError("There are no samples to aggregate.")
        families = group_by(records, "family")
        return cls(
            info=info,
            overall=Comparison.from_records(records),
            by_family={name: Comparison.from_records(rows) for name, rows in families.items()},
            controls=dict(controls or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a results file."""
        overall = _comparison_dict(self.overall)
        info = {k: v for k, v in dataclasses.asdict(self.info).items() if v not in ({}, None)}
        families = {name: _comparison_dict(rows) for name, rows in self.by_family.items()}
        extra = {"controls": self.controls} if self.controls else {}
        return {**info, **overall, "by_family": families, **extra}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvalResults:
        """Read what `to_dict` wrote.

        Raises:
            DataError: A key is missing or unknown.
        """
        fields = dataclasses.fields(RunInfo)
        required = [f.name for f in fields if f.default is f.default_factory is MISSING]
        optional = [f.name for f in fields if f.name in values and f.name not in required]
        try:
            return cls(
                info=RunInfo(**{name: values[name] for name in (*required, *optional)}),
                overall=comparison(values),
                by_family={name: comparison(rows) for name, rows in values["by_family"].items()},
                controls=dict(values.get("controls", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a results file of `lightthinker eval`: {error}") from error


def write_results(results: EvalResults, path: Path, *, overwrite: bool = False) -> None:
    """Save the aggregates as JSON.

    Raises:
        ConfigError: The file exists and `overwrite` is false.
    """
    write_text(path, json.dumps(results.to_dict(), indent=2) + "\n", overwrite=overwrite)


def read_results(path: Path) -> EvalResults:
    """Read a results file.

    Raises:
        DataError: It cannot be read; says so if its writing was cut off.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    try:
        return EvalResults.from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        cut_off = not text.rstrip().endswith("}")
        raise DataError(
            f"{path}: "
            + (
                "half-written, it ends in the middle. Run the evaluation again"
                if cut_off
                else "not JSON"
            )
            + f" ({error})."
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _comparison_dict(values: Comparison) -> dict[str, Any]:
    return _without_absent(dataclasses.asdict(values))


def _without_absent(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what there is none of, all the way down."""
    return {
        key: _without_absent(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None and value != {}
    }
