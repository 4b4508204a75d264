"""Every cost of every method equals an independent recount from the raw trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.llm import LLM
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.methods import find_method, find_methods, targets_from_records
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.runner import run_method, run_methods
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.recount import recount_curve, recount_roles

SAMPLING = SamplingParams(max_tokens=45, max_thought_tokens=9, ignore_eos=True)
POLICIES = (
    "h2o:budget=30", "r_kv:budget=40,window=4,buffer=4", "snapkv:budget=40,window=4",
    "tova:budget=33", "streaming_llm:budget=28,sinks=2", "sepllm:budget=40",
    "random:budget=60,recent=4", "h2o:ratio=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu", num_kv_tokens=8192)


def problems(count: int = 3) -> list[EvalProblem]:
    return [
        EvalProblem(
            id=f"p{i}",
            family="f",
            messages=({"role": "user", "content": "question " * (i % 3)},),
            reference="1",
            grade=lambda text: False,
        )
        for i in range(count)
    ]


def check_stats(record: SampleRecord, recount: object) -> None:
    stats = record.stats
    for name in ("peak_tokens", "dep_paper", "dep_full"):
        counted = getattr(recount, name)
        if counted is not None:
            assert counted == getattr(stats, name), name
    assert getattr(recount, "mean_live_tokens") == pytest.approx(stats.mean_live_tokens)  # noqa: B009
    assert getattr(recount, "num_visible_tokens") == record.num_visible_tokens  # noqa: B009


@pytest.mark.parametrize("method", ["full_cot", "lightthinker"])
def test_costs_equal_the_recount_from_the_roles(llm: LLM, method: str) -> None:
    for record in run_method(llm, problems(), find_method(method), SAMPLING):
        recount = recount_roles(record)
        check_stats(record, recount)
        check_stats(record, recount_curve(record))
        tokens = sum(count for _, count in record.roles)
        assert record.num_generated_tokens == tokens - record.stats.num_prompt_tokens
        assert record.kv_bytes_area == pytest.approx(recount.dep_paper * llm.kv_bytes_per_token)
        assert record.stats.kv_bytes_peak == recount.peak_tokens * llm.kv_bytes_per_token
        compressed = sum(thought.num_gists > 0 for thought in record.thoughts)
        assert compressed == sum(role == "continue" for role, _ in record.roles)
        assert compressed == (4 if method == "lightthinker" else 0)


@pytest.mark.parametrize("method", POLICIES)
def test_costs_of_policies_equal_the_recount_from_the_pool(llm: LLM, method: str) -> None:
    for record in run_method(llm, problems(), find_method(method), SAMPLING):
        check_stats(record, recount_curve(record))
        assert record.stats.dep_full == record.stats.dep_paper
        assert record.stats.tokens_freed > 0
        assert record.budget is not None
        assert record.stats.peak_tokens <= max(record.budget, record.stats.num_prompt_tokens + 1)


def test_costs_of_anllm_equal_the_recount_from_the_roles(tmp_path: Path) -> None:
    compression = CompressionConfig(method="anllm", num_gists=1)
    llm = LLM(tiny_checkpoint(tmp_path, compression=compression), device="cpu", num_kv_tokens=4096)
    assert llm.compression is not None
    anchor = llm.compression.gist_ids[0]
    llm.engine.sampler = AnchorSampler(anchor)

    sampling = SamplingParams(max_tokens=42, ignore_eos=True)
    (record,) = run_method(llm, problems(1), find_method("anllm"), sampling)

    assert len(record.thoughts) == 5
    check_stats(record, recount_roles(record, anchor=True))


class AnchorSampler:
    """Ends a thought at every eighth token."""

    def __init__(self, anchor: int):
        self.anchor = anchor

    def sample(self, logits: object, sequences: list) -> list[int]:  # type: ignore[type-arg]
        return [
            self.anchor if len(s.sampled_ids) % 8 == 7 else 60 + len(s.sampled_ids) % 7
            for s in sequences
        ]


def test_matched_budgets_are_what_lightthinker_held(llm: LLM) -> None:
    light = run_method(llm, problems(), find_method("lightthinker"), SAMPLING)
    targets = targets_from_records(light)

    peaks = [r.stats.peak_tokens for r in light]
    means = [r.stats.mean_live_tokens for r in light]
    assert targets == {"f": {"peak": round(sum(peaks) / 3), "mean": round(sum(means) / 3)}}
    methods = find_methods(["h2o:match=peak", "random:match=lightthinker_mean,recent=2"])
    records = run_methods(llm, problems(), methods, SAMPLING, targets=targets)
    for record in records[:3]:
        assert record.budget == targets["f"]["peak"]
    for record in records[3:]:
        # Random keeps the prompt, so a prompt that the mean has no room for raises its budget.
        least = record.stats.num_prompt_tokens + 4
        assert record.budget == max(targets["f"]["mean"], least)


def test_the_recount_notices_a_wrong_cost(llm: LLM) -> None:
    (record,) = run_method(llm, problems(1), find_method("lightthinker"), SAMPLING)
    shorter = [(role, count - (role == "gist")) for role, count in record.roles]
    object.__setattr__(record, "roles", tuple(shorter))
    with pytest.raises(AssertionError):
        check_stats(record, recount_roles(record))


def test_costs_are_the_same_when_steps_overlap(tmp_path: Path) -> None:
    llm = LLM(tiny_checkpoint(tmp_path), device="cpu")
    engine = llm.engine
    config = EngineConfig(num_kv_tokens=8192, async_scheduling=True)
    llm.engine = LLMEngine(engine.runner.model, llm.tokenizer, llm.compression, config=config)
    for method in ("full_cot", "lightthinker", "h2o:budget=30"):
        for record in run_method(llm, problems(), find_method(method), SAMPLING):
            # The pool holds one row more while a step runs ahead of the samples.
            assert max(y for _, y in record.kv_curve) <= record.stats.peak_tokens + 1
            assert record.kv_curve[-1][0] == record.stats.num_sampled_tokens
            if method != "h2o:budget=30":
                check_stats(record, recount_roles(record))
