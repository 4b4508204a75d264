"""Methods as an evaluation runs them, and the budgets of those that are matched to LightThinker.

`h2o:budget=256` is a method of `lightthinker.policies.methods`; `h2o:match=mean` (or `peak`) gets
its budget from what LightThinker held in the same run: the average over a task's problems of the
mean (or of the most) live tokens. Knows no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError, RequestError
from lightthinker.evals.records import SampleRecord, group_by
from lightthinker.evals.results import EvalResults
from lightthinker.evals.summaries import is_lightthinker
from lightthinker.policies.budget import matched_budget
from lightthinker.policies.methods import ResolvedMethod, parse_method, resolve_method

if TYPE_CHECKING:
    from lightthinker.engine.engine import LLMEngine
    from lightthinker.engine.llm import LLM

Statistic = Literal["mean", "peak"]
Targets = Mapping[str, Mapping[str, int]]
"""Family -> statistic -> what LightThinker held, in tokens."""

_MATCH = "match"
_STATISTICS: dict[str, Statistic] = {
    "mean": "mean", "peak": "peak", "lightthinker_mean": "mean", "lightthinker_peak": "peak",
}  # fmt: skip
_ANY_BUDGET = 2**30


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to run a checkpoint.

    Attributes:
        name: The method as it was written; its key in results.
        resolved: How to run it; with `match`, for some large budget.
        match: Which statistic of LightThinker's becomes its budget, if any.
    """

    name: str
    resolved: ResolvedMethod
    match: Statistic | None = None

    @contextmanager
    def applied_to(self, llm: LLM) -> Generator[LLMEngine]:
        """Give the engine the compression settings of this method, and back its own afterwards.

        Cache policies and the switch of compression are settings of a request.
        """
        engine, own = llm.engine, llm.compression
        wanted = self.resolved.compression_config(own)
        if wanted is own:
            yield engine
            return
        engine.use_compression(wanted)
        try:
            yield engine
        finally:
            engine.use_compression(own)

    def params(
        self, sampling: SamplingParams, *, family: str, num_prompt_tokens: int, targets: Targets
    ) -> SamplingParams:
        """Return how this method samples an answer to one prompt.

        A matched budget that some prompt leaves no room in is raised, for that prompt, to the least
        that the policy can work with.

        Args:
            sampling: What all methods share.
            family: The problem's.
            num_prompt_tokens: The prompt's length.
            targets: What LightThinker held; only looked at by a matched method.
        """
        policy: Any = self.resolved.policy
        if self.match is not None:
            policy = dataclasses.replace(policy, budget=_ANY_BUDGET)
            least = policy.smallest_cache
            wanted = max(targets[family][self.match], least)
            policy = dataclasses.replace(policy, budget=wanted)
            try:
                policy.check(num_prompt_tokens)
            except RequestError:
                policy = dataclasses.replace(policy, budget=max(wanted, num_prompt_tokens + least))
        return dataclasses.replace(sampling, compression=self.resolved.compression, policy=policy)

    def describe(self) -> dict[str, Any]:
        """Return its settings for the record."""
        settings = {k: v for k, v in self.resolved.settings.items() if v is not None}
        if self.resolved.file_sha256 is not None:
            settings["file_sha256"] = self.resolved.file_sha256
        if self.match is None:
            return settings
        return {**settings, "budget": f"LightThinker's {self.match} live tokens of the task"}


def find_method(text: str) -> Method:
    """Return a method by its name and options.

    Raises:
        RequestError: An unknown name or option (with a suggestion), or a value out of range.
    """
    name, options = parse_method(text)
    written = ",".join(f"{key}={value}" for key, value in options.items())
    written = f"{name}:{written}" if written else name
    if _MATCH not in options:
        return Method(name=written, resolved=resolve_method(written))
    statistic = options.pop(_MATCH)
    if statistic not in _STATISTICS:
        raise RequestError(f"{name}: match is {statistic!r}; it must be mean or peak.")
    if "budget" in options or "ratio" in options:
        raise RequestError(f"{name}: match sets the budget; leave budget and ratio out.")
    given = {**options, "budget": str(_ANY_BUDGET)}
    resolved = resolve_method(f"{name}:{','.join(f'{k}={v}' for k, v in given.items())}")
    return Method(name=written, resolved=resolved, match=_STATISTICS[statistic])


def find_methods(texts: Sequence[str]) -> list[Method]:
    """Return methods by name and options, each once.

    Raises:
        RequestError: As `find_method`.
    """
    methods = {method.name: method for method in map(find_method, texts)}
    return list(methods.values())


def targets_from_records(records: Iterable[SampleRecord]) -> Targets:
    """Return what LightThinker held in each family; empty if it did not run."""
    light = [record for record in records if is_lightthinker(record.method)]
    first = [record for record in light if record.method == light[0].method]
    return {
        family: {
            statistic: matched_budget([r.stats for r in rows], statistic)
            for statistic in ("mean", "peak")
        }
        for family, rows in group_by(first, "family").items()
    }


def targets_from_results(results: EvalResults) -> Targets:
    """Return what LightThinker held in each family of an earlier run.

    Raises:
        ConfigError: It did not run there.
    """
    targets = {}
    for family, comparison in results.by_family.items():
        names = [name for name in comparison.methods if is_lightthinker(name)]
        if not names:
            raise ConfigError("match needs results of lightthinker, and that file has none.")
        summary = comparison.methods[names[0]]
        targets[family] = {
            "mean": max(1, round(summary.mean_live_tokens)),
            "peak": max(1, round(summary.peak_tokens)),
        }
    return targets
