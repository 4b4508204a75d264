"""Runs a benchmark under several methods in one engine, and records every sample.

A method is a switch of compression plus changes to the checkpoint's compression settings; with
changes it gets an engine of its own over the same weights. Time is the engine's alone: each
step's duration is split evenly among the requests that ran in it, so that the times of families
add up. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError, suggestion
from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.kv_curve import KVCurve
from lightthinker.evals.records import SampleRecord

if TYPE_CHECKING:
    from lightthinker.engine.engine import LLMEngine
    from lightthinker.engine.llm import LLM
    from lightthinker.engine.outputs import CompletionOutput
    from lightthinker.engine.sequence import Sequence as EngineSequence

OnRecord = Callable[[SampleRecord], None]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to run a checkpoint.

    Attributes:
        name: Key in results.
        compression: Whether triggers compress.
        changes: Fields of the checkpoint's CompressionConfig to replace.
    """

    name: str
    compression: bool
    changes: Mapping[str, Any] = field(default_factory=dict)

    def engine(self, llm: LLM) -> LLMEngine:
        """Return the engine that runs this method: the LLM's own unless settings change."""
        if not self.changes:
            return llm.engine
        from lightthinker.engine.engine import LLMEngine

        if llm.compression is None:
            raise ConfigError(f"Method {self.name!r} needs a checkpoint trained with LightThinker.")
        compression = dataclasses.replace(llm.compression, **self.changes)
        engine = llm.engine
        return LLMEngine(
            engine.runner.model, llm.tokenizer, compression, config=engine.config,
            sampler=engine.sampler,
        )  # fmt: skip


METHODS = {
    method.name: method
    for method in (
        Method(name="full_cot", compression=False),
        Method(name="lightthinker", compression=True),
        Method(name="gists_blanked", compression=True, changes={"blank_gists": True}),
    )
}


def find_methods(names: Sequence[str]) -> list[Method]:
    """Return methods by name.

    Raises:
        ConfigError: An unknown name.
    """
    for name in names:
        if name not in METHODS:
            hint = suggestion(name, METHODS)
            raise ConfigError(f"Unknown method {name!r}; there are {', '.join(METHODS)}.{hint}")
    return [METHODS[name] for name in dict.fromkeys(names)]


def run_method(
    llm: LLM,
    problems: Sequence[EvalProblem],
    method: Method,
    sampling: SamplingParams,
    *,
    on_record: OnRecord | None = None,
) -> list[SampleRecord]:
    """Answer every problem with one method, batched by the engine.

    Args:
        llm: A loaded checkpoint.
        problems: What to answer.
        method: How to run the checkpoint.
        sampling: Sampling parameters; `compression` is set by the method.
        on_record: Called with each record as soon as its sample is finished and graded.

    Returns:
        One record per problem, in the problems' order.
    """
    engine = method.engine(llm)
    params = dataclasses.replace(sampling, compression=method.compression)
    prompts = [llm.prompt_ids(problem.messages) for problem in problems]
    _warm_up(engine, prompts[:1], params)
    watches = {problem.id: _Watch() for problem in problems}
    by_id = {problem.id: problem for problem in problems}
    records: dict[str, SampleRecord] = {}
    try:
        for problem, prompt in zip(problems, prompts, strict=True):
            engine.add_request(problem.id, prompt, params, stream=False)
        while engine.has_unfinished_requests():
            started = time.perf_counter()
            outputs = engine.step()
            duration = time.perf_counter() - started
            ran = {sequence.request_id for sequence in engine.scheduler.running}
            ran |= {output.request_id for output in outputs}
            for name in ran:
                watches[name].time_s += duration / len(ran)
            for sequence in engine.scheduler.running:
                watches[sequence.request_id].observe(sequence)
            for output in outputs:
                problem, watch = by_id[output.request_id], watches[output.request_id]
                record = _record(llm, problem, method, output.outputs[0], watch)
                records[problem.id] = record
                if on_record:
                    on_record(record)
    except BaseException:
        for problem in problems:
            engine.abort_request(problem.id)
        raise
    return [records[problem.id] for problem in problems]


def run_methods(
    llm: LLM,
    problems: Sequence[EvalProblem],
    methods: Sequence[Method],
    sampling: SamplingParams,
    *,
    console: Console | None = None,
) -> list[SampleRecord]:
    """Run several methods one after another, with progress and running accuracy on a terminal."""
    console = console or Console(stderr=True)
    records: list[SampleRecord] = []
    columns = ("[bold]{task.description}", "{task.fields[status]}")
    with Progress(
        TextColumn(columns[0]), BarColumn(), MofNCompleteColumn(), TextColumn(columns[1]),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        for method in methods:
            task = progress.add_task(method.name, total=len(problems), status="")
            verdicts: list[bool] = []

            def advance(record: SampleRecord, task: Any = task, seen: Any = verdicts) -> None:
                seen.append(record.correct)
                status = f"{100 * sum(seen) / len(seen):.1f} % correct"
                progress.update(task, advance=1, status=status)

            records += run_method(llm, problems, method, sampling, on_record=advance)
    return records


def device_name(llm: LLM) -> str:
    """Return where a model runs, in words."""
    if llm.device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(llm.device)
    import os
    import platform

    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


@dataclass
class _Watch:
    time_s: float = 0.0
    curve: KVCurve | None = None

    def observe(self, sequence: EngineSequence) -> None:
        if not sequence.sampled_ids:
            return
        if self.curve is None:
            self.curve = KVCurve(len(sequence.prompt_ids))
        freed = sequence.tokens_freed
        self.curve.observe(len(sequence.sampled_ids), len(sequence.live), freed)


def _record(
    llm: LLM, problem: EvalProblem, method: Method, output: CompletionOutput, watch: _Watch
) -> SampleRecord:
    stats = output.stats
    assert stats is not None, "a finished request has its costs"
    curve = watch.curve or KVCurve(stats.num_prompt_tokens)
    return SampleRecord(
        problem_id=problem.id,
        family=problem.family,
        method=method.name,
        question=problem.question,
        reference=problem.reference,
        answer=final_answer(llm, output),
        text=output.text,
        correct=problem.grade(output.text),
        chance=problem.chance,
        finish_reason=output.finish_reason,
        thoughts=tuple(output.thoughts),
        stats=stats,
        kv_curve=curve.finish(stats.num_sampled_tokens),
        time_s=watch.time_s,
    )


def final_answer(llm: LLM, output: CompletionOutput) -> str:
    """Return what follows the reasoning: after its end marker, or after the last thought."""
    end = llm.compression.reasoning_end.strip() if llm.compression else ""
    if end and end in output.text:
        return output.text.rpartition(end)[2].strip()
    rest = output.text
    for thought in output.thoughts:
        _, found, after = rest.partition(thought.text)
        rest = after if found else rest
    return rest.strip()


def _warm_up(engine: LLMEngine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    for prompt in prompts:
        engine.add_request(
            "warm-up", prompt, dataclasses.replace(params, max_tokens=4), stream=False
        )
    while engine.has_unfinished_requests():
        engine.step()
