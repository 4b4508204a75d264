"""The runner on a real engine that samples reference traces: verdicts, costs, controls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from lightthinker.compression import CompressionConfig
from lightthinker.encode import Encoder
from lightthinker.engine.llm import LLM
from lightthinker.engine.outputs import CompletionOutput, ThoughtStats
from lightthinker.engine.sampler import Sampler
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.sequence import Sequence
from lightthinker.errors import ConfigError, RequestError
from lightthinker.evals.benchmarks import HELD_OUT_SEEDS, EvalProblem, load_benchmark
from lightthinker.evals.controls import gists_swapped
from lightthinker.evals.evaluate import evaluate
from lightthinker.evals.kv_curve import KVCurve
from lightthinker.evals.methods import find_method, find_methods
from lightthinker.evals.records import SampleRecord
from lightthinker.evals.runner import final_answer, run_method, run_methods
from lightthinker.evals.settings import EvalSettings
from lightthinker.tasks import generate
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.scripted import TraceSampler

FAMILY, NUM_PROBLEMS, WRONG = "programs", 4, 2
SAMPLING = SamplingParams(max_tokens=600)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LLM:
    return LLM(checkpoint, device="cpu", num_kv_tokens=8192)


@pytest.fixture
def llm(loaded: LLM) -> Iterator[LLM]:
    """A model that answers every problem but one rightly."""
    problems = [
        generate(FAMILY, seed=HELD_OUT_SEEDS + i, difficulty="tiny") for i in range(NUM_PROBLEMS)
    ]
    TraceSampler(loaded, problems, {problems[WRONG].question: "no number"})
    yield loaded
    assert not loaded.engine.has_unfinished_requests()
    loaded.engine.scheduler.check_integrity()
    assert loaded.engine.pool.allocator.num_used == 0


@pytest.fixture
def random_llm(loaded: LLM) -> LLM:
    """The untrained model itself, sampling greedily."""
    assert loaded.compression is not None
    loaded.engine.sampler = Sampler(loaded.compression.never_sampled)
    return loaded


def benchmark() -> list[EvalProblem]:
    return load_benchmark(FAMILY, num_problems=NUM_PROBLEMS, difficulty="tiny")


def test_records_say_what_happened(llm: LLM) -> None:
    problems = benchmark()
    finished: list[str] = []

    records = run_method(
        llm,
        problems,
        find_method("lightthinker"),
        SAMPLING,
        on_record=lambda record: finished.append(record.problem_id),
    )

    assert [r.problem_id for r in records] == [p.id for p in problems]
    assert sorted(finished) == sorted(r.problem_id for r in records)
    assert [r.correct for r in records] == [i != WRONG for i in range(NUM_PROBLEMS)]
    assert [len(r.thoughts) for r in records] == [p.num_thoughts for p in problems]
    assert records[0].answer == f"The answer is {problems[0].reference}."
    assert {r.finish_reason for r in records} == {"stop"}
    assert all(r.time_s > 0 for r in records)


@pytest.mark.parametrize(("method", "compress"), [("lightthinker", True), ("full_cot", False)])
def test_costs_are_those_of_the_training_layout(llm: LLM, method: str, compress: bool) -> None:
    assert llm.compression is not None
    record = run_method(llm, benchmark()[:1], find_method(method), SAMPLING)[0]

    problem = generate(FAMILY, seed=HELD_OUT_SEEDS, difficulty="tiny")
    messages = [{"role": "user", "content": problem.question}]
    encoder = Encoder(llm.tokenizer, llm.compression)
    layout = encoder.encode(messages, problem.thoughts, problem.answer, compress=compress).layout

    assert record.stats.peak_tokens == layout.peak_tokens()
    assert record.stats.dep_paper == layout.dep_paper()
    assert record.stats.dep_full == layout.dep_full()
    assert record.stats.kv_bytes_peak == layout.peak_tokens() * llm.kv_bytes_per_token


def test_the_curve_is_a_saw_tooth_whose_top_is_the_peak(llm: LLM) -> None:
    light, full = (
        run_method(llm, benchmark()[:1], find_method(name), SAMPLING)[0]
        for name in ("lightthinker", "full_cot")
    )

    steps = list(zip(light.kv_curve, light.kv_curve[1:], strict=False))
    drops = [(a, b) for (_, a), (_, b) in steps if b < a]
    assert len(drops) == len(light.thoughts)
    # A thought with its trigger goes.
    assert [a - b for a, b in drops] == [thought.num_tokens for thought in light.thoughts]
    assert max(y for _, y in light.kv_curve) == light.stats.peak_tokens
    assert light.kv_curve[-1][0] == light.stats.num_sampled_tokens
    prompt = full.stats.num_prompt_tokens
    assert full.kv_curve[0] == (0, prompt)
    assert all(y - prompt <= x for x, y in full.kv_curve)
    assert len(full.kv_curve) <= 4


def test_methods_share_problems_and_weights(llm: LLM) -> None:
    names = ("full_cot", "lightthinker", "gists_blanked")
    records = run_methods(llm, benchmark()[:2], find_methods(names), SAMPLING)

    assert [r.method for r in records] == [name for name in names for _ in range(2)]
    assert len({r.problem_id for r in records}) == 2
    full, light, blanked = records[::2]
    assert full.text == light.text == blanked.text
    assert full.stats.peak_tokens > light.stats.peak_tokens


def test_a_method_with_changes_lends_its_settings_to_the_engine(llm: LLM) -> None:
    own = llm.compression
    with find_method("gists_blanked").applied_to(llm) as engine:
        assert engine is llm.engine
        assert engine.compression is not None
        assert engine.compression.blank_gists
        engine.add_request("r", [5, 6], SAMPLING)
        with pytest.raises(RequestError, match="unfinished"):
            engine.use_compression(own)
        engine.abort_request("r")
    assert llm.engine.compression is own


def test_blanked_gists_are_not_seen(random_llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=20, max_thought_tokens=8, ignore_eos=True)
    problems = numbered_problems("abc")
    logits = []
    for name in ("lightthinker", "gists_blanked"):
        random_llm.engine.sampler = sampler = LogitsOf("p0")
        run_method(random_llm, problems, find_method(name), sampling)
        logits.append(torch.stack(sampler.logits))

    differs = (logits[0] - logits[1]).abs().amax(dim=1) > 1e-4
    assert not differs[:9].any()
    assert differs[9:].all()


def test_a_failure_leaves_nothing_in_the_engine(llm: LLM) -> None:
    def explode(record: SampleRecord) -> None:
        raise RuntimeError("grader")

    with pytest.raises(RuntimeError, match="grader"):
        run_method(llm, benchmark(), find_method("lightthinker"), SAMPLING, on_record=explode)
    # The fixture checks that no request and no page is left.


def test_unknown_methods_are_refused_with_a_suggestion() -> None:
    with pytest.raises(RequestError, match="Did you mean 'full_cot'"):
        find_methods(["full_cott"])
    assert [m.name for m in find_methods(["lightthinker", "lightthinker"])] == ["lightthinker"]


def test_evaluate_fails_before_it_loads_a_model() -> None:
    def load() -> LLM:
        raise AssertionError("loaded too early")

    settings = EvalSettings(tasks=("programs",), difficulty="impossible")
    with pytest.raises(ConfigError, match="impossible"):
        evaluate(load, settings, model="m", command="c")


def test_evaluate_goes_from_settings_to_results(llm: LLM, checkpoint: Path) -> None:
    settings = EvalSettings(
        tasks=(FAMILY,), num_problems=NUM_PROBLEMS, difficulty="tiny", swap_gists=True
    )

    results, records = evaluate(lambda: llm, settings, model=checkpoint, command="lightthinker …")

    assert set(results.overall.methods) == {"full_cot", "lightthinker"}
    assert results.overall.methods["full_cot"].accuracy == 1 - 1 / NUM_PROBLEMS
    assert len(records) == 2 * NUM_PROBLEMS
    assert results.info.benchmark == {"name": FAMILY, "difficulty": "tiny"}
    assert len(results.info.model["sha256"]) == 64
    assert results.controls["gists_swapped"]["by_family"][FAMILY]["num_problems"] >= 2


class LogitsOf:
    """Samples the same tokens whatever the logits, and keeps those of one request."""

    def __init__(self, request_id: str):
        self.request_id = request_id
        self.logits: list[torch.Tensor] = []

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        for row, sequence in zip(logits, sequences, strict=True):
            if sequence.request_id.partition("#")[0] == self.request_id:
                self.logits.append(row.clone())
        return [50 + len(s.sampled_ids) % 7 for s in sequences]


def numbered_problems(*questions: str) -> list[EvalProblem]:
    return [
        EvalProblem(
            id=f"p{i}",
            family="f",
            messages=({"role": "user", "content": question},),
            reference=str(i),
            grade=lambda text: False,
        )
        for i, question in enumerate(questions)
    ]


def test_swapped_gists_really_replace_the_own_ones(random_llm: LLM) -> None:
    length = 40
    sampling = SamplingParams(max_tokens=length, max_thought_tokens=8, ignore_eos=True)

    def last_run(*questions: str) -> torch.Tensor:
        random_llm.engine.sampler = sampler = LogitsOf("p0")
        gists_swapped(random_llm, numbered_problems(*questions), sampling)
        return torch.stack(sampler.logits[-length:])

    random_llm.engine.sampler = sampler = LogitsOf("p0")
    run_method(random_llm, numbered_problems("abc"), find_method("lightthinker"), sampling)
    plain = torch.stack(sampler.logits)

    torch.testing.assert_close(last_run("abc", "abc"), plain, msg="an equal problem's gists")
    swapped = last_run("abc", "zzzzzz")
    differs = (swapped - plain).abs().amax(dim=1) > 1e-4
    first = int(differs.nonzero()[0])
    # The first thought has eight tokens and a trigger; the token after it is sampled in the
    # step that writes the gists, so the one after that is the first to see foreign gists.
    assert first == 10
    assert differs[first:].all()
    assert random_llm.engine.on_compress is None


def test_everything_left_of_a_thought_is_swapped(
    random_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert random_llm.compression is not None
    pool, written = random_llm.engine.pool, []
    write = pool.write

    def recording(slots: list[int], saved: list[torch.Tensor]) -> None:
        write(slots, saved)
        written.append(len(slots))

    monkeypatch.setattr(pool, "write", recording)
    sampling = SamplingParams(max_tokens=40, max_thought_tokens=8, ignore_eos=True)
    gists_swapped(random_llm, numbered_problems("abc", "zzzzzz"), sampling)

    # Four thoughts of nine tokens for each of two problems: gists and continue token.
    assert written == [random_llm.compression.num_gists + 1] * 8


def test_swapping_reports_both_rates(llm: LLM) -> None:
    outcome = gists_swapped(llm, benchmark(), SAMPLING)

    # The script does not look at the gists: own answers, but for the wrong one.
    assert outcome["accuracy"] == 1 - 1 / outcome["num_problems"]
    assert outcome["other_answer_rate"] == 0
    assert outcome["accuracy_ci95"][0] < outcome["accuracy"] < outcome["accuracy_ci95"][1]


def test_swapping_needs_two_different_answers(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="two problems"):
        gists_swapped(llm, benchmark()[:1], SAMPLING)


def test_methods_that_compress_need_a_checkpoint_that_does(loaded: LLM) -> None:
    saved: CompressionConfig | None = loaded.compression
    loaded.compression = None
    try:
        for name in ("lightthinker", "gists_blanked"):
            with pytest.raises(RequestError, match="trained to compress"):
                run_methods(loaded, benchmark()[:1], [find_method(name)], SAMPLING)
    finally:
        loaded.compression = saved


def test_the_answer_is_what_follows_the_last_thought_that_has_a_text() -> None:
    # At token level a segment of special tokens alone has none.
    texts = ("", "2+3=5. ", "", "so 5. ")
    thoughts = [ThoughtStats(text=t, num_tokens=6, num_gists=2, tokens_freed=6) for t in texts]
    output = SimpleNamespace(text="2+3=5. so 5. The answer is 5.", thoughts=thoughts)
    llm = SimpleNamespace(compression=CompressionConfig(method="token", segment_tokens=6))
    assert final_answer(cast(LLM, llm), cast(CompletionOutput, output)) == "The answer is 5."


def test_a_curve_keeps_turning_points_only() -> None:
    curve = KVCurve(10)
    for sampled in range(1, 6):
        curve.observe(sampled, 9 + sampled, 0)
    curve.observe(6, 8, 9)
    curve.observe(7, 9, 9)

    assert curve.finish(9) == ((0, 10), (1, 10), (5, 14), (6, 17), (6, 8), (9, 11))
