"""Runs problems under a method in the engine, and records every sample as it ends.

Each (problem, sample) is a request of its own with a seed of its own, so that results depend
neither on the batch nor on how the work is divided. Time is the engine's alone: each step's
duration is split evenly among the requests that ran in it, so that the times of families add up.
Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.kv_curve import KVCurve
from lightthinker.evals.methods import Method, Targets
from lightthinker.evals.progress import EvalProgress
from lightthinker.evals.records import SampleRecord, role_runs

if TYPE_CHECKING:
    from lightthinker.engine.engine import LLMEngine
    from lightthinker.engine.llm import LLM
    from lightthinker.engine.outputs import CompletionOutput
    from lightthinker.engine.sequence import Sequence as EngineSequence

OnRecord = Callable[[SampleRecord], None]
Key = tuple[str, str, int]


def run_method(
    llm: LLM,
    problems: Sequence[EvalProblem],
    method: Method,
    sampling: SamplingParams,
    *,
    num_samples: int = 1,
    targets: Targets | None = None,
    done: Mapping[Key, SampleRecord] | None = None,
    on_record: OnRecord | None = None,
) -> list[SampleRecord]:
    """Answer every problem with one method, batched by the engine.

    Args:
        llm: A loaded checkpoint.
        problems: What to answer.
        method: How to run the checkpoint.
        sampling: Sampling parameters; `compression` is set by the method, and a seed is made into
            one for each sample.
        num_samples: Samples of each problem.
        targets: What LightThinker held, for a method whose budget is matched to it.
        done: Records that exist already, by key; they are not run again.
        on_record: Called with each new record as soon as its sample is finished and graded.

    Returns:
        One record per problem and sample, in the problems' order, those of `done` included.
    """
    records = dict(done or {})
    keys = [(method.name, p.id, sample) for p in problems for sample in range(num_samples)]
    by_id = {problem.id: problem for problem in problems}
    missing = [(by_id[key[1]], key[2]) for key in keys if key not in records]
    if missing:
        run = _Run(llm, method, sampling, missing, targets or {})
        with method.applied_to(llm), closing(run.records()) as finished:
            for record in finished:
                records[record.key] = record
                if on_record:
                    on_record(record)
    return [records[key] for key in keys]


def run_methods(
    llm: LLM,
    problems: Sequence[EvalProblem],
    methods: Sequence[Method],
    sampling: SamplingParams,
    *,
    num_samples: int = 1,
    targets: Targets | None = None,
    done: Mapping[Key, SampleRecord] | None = None,
    on_record: OnRecord | None = None,
    console: Console | None = None,
) -> list[SampleRecord]:
    """Run several methods one after another, with progress and running accuracy on a terminal.

    Args:
        llm: A loaded checkpoint.
        problems: What to answer.
        methods: How to run it.
        sampling: As for `run_method`.
        num_samples: As for `run_method`.
        targets: As for `run_method`.
        done: As for `run_method`.
        on_record: As for `run_method`.
        console: For progress.

    Returns:
        All records, method by method.
    """
    done = done or {}
    for method in methods:
        check_requests(llm, problems, method, sampling, targets or {})
    records: list[SampleRecord] = []
    with EvalProgress(console) as progress:
        for method in methods:
            progress.start(method.name, len(problems) * num_samples)
            for record in done.values():
                if record.method == method.name:
                    progress.advance(record)

            def finished(record: SampleRecord) -> None:
                if on_record:
                    on_record(record)
                progress.advance(record)

            records += run_method(
                llm, problems, method, sampling, num_samples=num_samples, targets=targets,
                done=done,
                on_record=finished,
            )  # fmt: skip
    return records


def check_requests(
    llm: LLM,
    problems: Sequence[EvalProblem],
    method: Method,
    sampling: SamplingParams,
    targets: Targets,
) -> None:
    """Refuse what the engine would refuse, before hours of work: too long a prompt, and so on.

    Raises:
        LightThinkerError: The engine's own.
    """
    with method.applied_to(llm) as engine:
        for problem in problems:
            prompt = llm.prompt_ids(problem.messages)
            params = method.params(
                sampling, family=problem.family, num_prompt_tokens=len(prompt), targets=targets
            )
            engine.add_request(problem.id, prompt, params, stream=False)
            engine.abort_request(problem.id)


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """Return the seed of one sample: the same in every batch, shard and process."""
    digest = hashlib.sha256(f"{seed}/{problem_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


@dataclass
class _Watch:
    problem: EvalProblem
    sample: int
    sequence: EngineSequence
    curve: KVCurve
    time_s: float = 0.0

    def observe(self) -> None:
        sequence = self.sequence
        if sequence.sampled_ids:
            freed = sequence.tokens_freed
            self.curve.observe(len(sequence.sampled_ids), len(sequence.live), freed)


class _Run:
    """Feeds requests to the engine, as many at a time as it runs at once."""

    def __init__(
        self,
        llm: LLM,
        method: Method,
        sampling: SamplingParams,
        work: Sequence[tuple[EvalProblem, int]],
        targets: Targets,
    ):
        self.llm, self.method, self.sampling, self.targets = llm, method, sampling, targets
        self.engine = llm.engine
        self.waiting = list(reversed(work))
        self.watches: dict[str, _Watch] = {}

    def records(self) -> Generator[SampleRecord]:
        """Run everything; yields records as samples end, and leaves nothing in the engine."""
        engine = self.engine
        _warm_up(engine, *self._request(self.waiting[-1][0]))
        try:
            while self.waiting or self.watches:
                self._feed()
                started = time.perf_counter()
                outputs = engine.step()
                duration = time.perf_counter() - started
                engine.write_back()
                ran = {sequence.request_id for sequence in engine.scheduler.running}
                ran |= {output.request_id for output in outputs}
                for name in ran:
                    self.watches[name].time_s += duration / len(ran)
                for sequence in engine.scheduler.running:
                    self.watches[sequence.request_id].observe()
                for output in outputs:
                    watch = self.watches.pop(output.request_id)
                    watch.observe()
                    yield _record(self.llm, self.method, output.outputs[0], watch)
        finally:
            for name in self.watches:
                engine.abort_request(name)

    def _feed(self) -> None:
        while self.waiting and len(self.watches) < self.engine.config.max_num_seqs:
            problem, sample = self.waiting.pop()
            name = f"{problem.id}#{sample}"
            prompt, params = self._request(problem)
            if params.seed is not None:
                seed = sample_seed(params.seed, problem.id, sample)
                params = dataclasses.replace(params, seed=seed)
            self.engine.add_request(name, prompt, params, stream=False)
            sequence = self.engine.scheduler.waiting[-1]
            assert sequence.request_id == name
            curve = KVCurve(len(sequence.prompt_ids))
            self.watches[name] = _Watch(problem, sample, sequence, curve)

    def _request(self, problem: EvalProblem) -> tuple[list[int], SamplingParams]:
        prompt = self.llm.prompt_ids(problem.messages)
        params = self.method.params(
            self.sampling, family=problem.family, num_prompt_tokens=len(prompt),
            targets=self.targets,
        )  # fmt: skip
        return prompt, params


def _record(llm: LLM, method: Method, output: CompletionOutput, watch: _Watch) -> SampleRecord:
    stats, problem = output.stats, watch.problem
    assert stats is not None, "a finished request has its costs"
    layout, policy = watch.sequence.builder.build(), watch.sequence.params.policy
    num_visible = int(layout.is_output.sum())
    grade = problem.judge(output.text) if problem.judge else None
    return SampleRecord(
        problem_id=problem.id,
        family=problem.family,
        subset=problem.subset,
        prompt=problem.prompt,
        method=method.name,
        sample=watch.sample,
        budget=policy.limit(len(layout), stats.num_prompt_tokens) if policy else None,
        question=problem.question,
        reference=problem.reference,
        answer=final_answer(llm, output),
        text=output.text,
        correct=grade.flexible if grade else problem.grade(output.text),
        correct_strict=grade.strict if grade else None,
        correct_flexible=grade.flexible if grade else None,
        extracted_strict=grade.extracted_strict if grade else None,
        extracted_flexible=grade.extracted_flexible if grade else None,
        chance=problem.chance,
        finish_reason=output.finish_reason,
        thoughts=tuple(output.thoughts),
        stats=stats,
        num_generated_tokens=len(layout) - stats.num_prompt_tokens,
        num_visible_tokens=num_visible,
        kv_bytes_area=stats.mean_live_tokens * num_visible * llm.kv_bytes_per_token,
        roles=role_runs(layout.role.tolist()),
        kv_curve=watch.curve.finish(stats.num_sampled_tokens),
        time_s=watch.time_s,
    )


def final_answer(llm: LLM, output: CompletionOutput) -> str:
    """Return what follows the reasoning: after its end marker, or after the last thought."""
    end = llm.compression.reasoning_end.strip() if llm.compression else ""
    if end and end in output.text:
        return output.text.rpartition(end)[2].strip()
    rest = output.text
    for thought in output.thoughts:
        if not thought.text:  # At token level a segment may be special tokens only.
            continue
        _, found, after = rest.partition(thought.text)
        rest = after if found else rest
    return rest.strip()


def _warm_up(engine: LLMEngine, prompt: Sequence[int], params: SamplingParams) -> None:
    short = dataclasses.replace(params, max_tokens=4)
    engine.add_request("warm-up", prompt, short, stream=False)
    while engine.has_unfinished_requests():
        engine.step()
