"""The aggregates of an evaluation, and the JSON in which they are committed.

Always computed from the per-sample records. Every number is a mean over problems, except
`wall_time_s` and `num_truncated`, which are sums. Knows no model and no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lightthinker import __version__
from lightthinker.errors import DataError
from lightthinker.evals.records import SampleRecord, group_by, write_text
from lightthinker.evals.statistics import (
    mcnemar_exact,
    paired_bootstrap_difference,
    wilson_interval,
)

FULL_COT = "full_cot"
LIGHTTHINKER = "lightthinker"


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One method on one set of problems; means per problem unless said otherwise.

    Attributes:
        num_problems: Problems answered.
        accuracy: Share of correct answers.
        accuracy_ci95: Its 95 % Wilson interval (never of zero width, unlike a bootstrap's).
        peak_tokens: Most KV tokens live at once.
        mean_live_tokens: KV tokens live when a token is sampled.
        dep_paper: Dependency as the paper counts it.
        dep_full: Dependency with gist and continue tokens charged.
        kv_bytes_peak: Peak KV cache in bytes.
        wall_time_s: Engine time of the whole set, a sum.
        num_sampled_tokens: Tokens sampled.
        num_thoughts: Thoughts finished.
        num_truncated: Samples that ran out of tokens, a sum.
    """

    num_problems: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    peak_tokens: float
    mean_live_tokens: float
    dep_paper: float
    dep_full: float
    kv_bytes_peak: float
    wall_time_s: float
    num_sampled_tokens: float
    num_thoughts: float
    num_truncated: int

    @classmethod
    def from_records(cls, records: Sequence[SampleRecord]) -> MethodSummary:
        """Aggregate one method's records."""
        stats = [record.stats for record in records]
        accuracy = wilson_interval(sum(record.correct for record in records), len(records))
        return cls(
            num_problems=len(records),
            accuracy=accuracy.estimate,
            accuracy_ci95=(accuracy.low, accuracy.high),
            peak_tokens=fmean(s.peak_tokens for s in stats),
            mean_live_tokens=fmean(s.mean_live_tokens for s in stats),
            dep_paper=fmean(s.dep_paper for s in stats),
            dep_full=fmean(s.dep_full for s in stats),
            kv_bytes_peak=fmean(s.kv_bytes_peak for s in stats),
            wall_time_s=sum(record.time_s for record in records),
            num_sampled_tokens=fmean(s.num_sampled_tokens for s in stats),
            num_thoughts=fmean(len(record.thoughts) for record in records),
            num_truncated=sum(record.finish_reason == "length" for record in records),
        )


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """A method against full CoT on the same problems.

    Attributes:
        accuracy_difference: The method's accuracy minus full CoT's.
        accuracy_difference_ci95: Its paired bootstrap 95 % interval.
        mcnemar_p: Exact two-sided McNemar test of the discordant problems.
        num_only_method: Problems that only the method gets right.
        num_only_full_cot: Problems that only full CoT gets right.
    """

    accuracy_difference: float
    accuracy_difference_ci95: tuple[float, float]
    mcnemar_p: float
    num_only_method: int
    num_only_full_cot: int

    @property
    def num_discordant(self) -> int:
        """Problems that just one of the two gets right."""
        return self.num_only_method + self.num_only_full_cot

    @classmethod
    def from_records(
        cls, method: Iterable[SampleRecord], full_cot: Iterable[SampleRecord]
    ) -> PairedComparison:
        """Pair the records by problem."""
        baseline = {record.problem_id: record.correct for record in full_cot}
        pairs = [(r.correct, baseline[r.problem_id]) for r in method if r.problem_id in baseline]
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        difference = paired_bootstrap_difference(ours, theirs)
        return cls(
            accuracy_difference=difference.estimate,
            accuracy_difference_ci95=(difference.low, difference.high),
            mcnemar_p=mcnemar_exact(ours, theirs),
            num_only_method=sum(a and not b for a, b in pairs),
            num_only_full_cot=sum(b and not a for a, b in pairs),
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All methods on one set of problems.

    Attributes:
        num_problems: Problems in the set.
        methods: Summary of each method.
        chance: Accuracy of the best constant guess, where the problems say it.
        paired: LightThinker against full CoT, if both ran.
    """

    num_problems: int
    methods: dict[str, MethodSummary]
    chance: float | None = None
    paired: PairedComparison | None = None

    @classmethod
    def from_records(cls, records: Sequence[SampleRecord]) -> Comparison:
        """Aggregate the records of all methods."""
        by_method = group_by(records, "method")
        methods = {name: MethodSummary.from_records(rows) for name, rows in by_method.items()}
        paired = None
        if FULL_COT in by_method and LIGHTTHINKER in by_method:
            paired = PairedComparison.from_records(by_method[LIGHTTHINKER], by_method[FULL_COT])
        chances = {record.problem_id: record.chance for record in records}
        known = [chance for chance in chances.values() if chance is not None]
        return cls(
            num_problems=len(chances),
            methods=methods,
            chance=fmean(known) if len(known) == len(chances) else None,
            paired=paired,
        )


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """How the numbers came about.

    Attributes:
        benchmark: Name and settings of the benchmark.
        model: `name` and `sha256` of the weights.
        device: Where it ran, in words.
        seed: Seed of the problems and of sampling.
        command: The command line.
        versions: Python, torch, transformers, lightthinker.
        sampling: Sampling parameters that differ from greedy defaults.
    """

    benchmark: dict[str, Any]
    model: dict[str, str]
    device: str
    seed: int
    command: str
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    sampling: dict[str, Any] = field(default_factory=dict)


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
        info = dataclasses.asdict(self.info)
        families = {name: _comparison_dict(rows) for name, rows in self.by_family.items()}
        extra = {"controls": self.controls} if self.controls else {}
        return {**info, **overall, "by_family": families, **extra}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvalResults:
        """Read what `to_dict` wrote.

        Raises:
            DataError: A key is missing or unknown.
        """
        names = [f.name for f in dataclasses.fields(RunInfo)]
        try:
            return cls(
                info=RunInfo(**{name: values[name] for name in names}),
                overall=_comparison(values),
                by_family={name: _comparison(rows) for name, rows in values["by_family"].items()},
                controls=dict(values.get("controls", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a results file of `lightthinker eval`: {error}") from error


def package_versions() -> dict[str, str]:
    """Return the versions that decide a result, without importing the packages."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), **versions, "lightthinker": __version__}


def weights_sha256(model: str | Path) -> str:
    """Return one digest over a local checkpoint's safetensors files, in name order.

    For a single file it is the file's own sha256. A hub name gives an empty string.
    """
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) <= 1:
        return "".join(digests)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def write_results(results: EvalResults, path: Path, *, overwrite: bool = False) -> None:
    """Save the aggregates as JSON.

    Raises:
        ConfigError: The file exists and `overwrite` is false.
    """
    write_text(path, json.dumps(results.to_dict(), indent=2) + "\n", overwrite=overwrite)


def read_results(path: Path) -> EvalResults:
    """Read a results file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return EvalResults.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _comparison_dict(comparison: Comparison) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(comparison).items() if v is not None}


def _comparison(values: Mapping[str, Any]) -> Comparison:
    methods = {name: _with_tuples(MethodSummary, v) for name, v in values["methods"].items()}
    paired = values.get("paired")
    return Comparison(
        num_problems=values["num_problems"],
        methods=methods,
        chance=values.get("chance"),
        paired=None if paired is None else _with_tuples(PairedComparison, paired),
    )


def _with_tuples(cls: type, values: Mapping[str, Any]) -> Any:
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
