"""Loading a benchmark by name: generated, from the hub, or from local files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path

from lightthinker.errors import ConfigError, DataError, suggestion
from lightthinker.evals.benchmarks import bbh, mathematics, multiple_choice, word_problems
from lightthinker.evals.benchmarks.families import generated_problems
from lightthinker.evals.benchmarks.naming import BenchmarkName
from lightthinker.evals.benchmarks.problem import EvalProblem
from lightthinker.evals.benchmarks.prompts import DEFAULT_STYLE, STYLES, instruction
from lightthinker.evals.benchmarks.rows import Located, read_hub, read_local
from lightthinker.evals.benchmarks.spec import Benchmark, Question
from lightthinker.evals.graders import Grade, after_reasoning
from lightthinker.tasks import FAMILIES

ALL_FAMILIES = "tasks"
GSM8K = "gsm8k"
NUM_GENERATED = 1000

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        word_problems.GSM8K,
        multiple_choice.MMLU,
        multiple_choice.GPQA,
        bbh.BBH,
        mathematics.MATH500,
        mathematics.AIME24,
        mathematics.AIME25,
        word_problems.SVAMP,
        word_problems.MULTIARITH,
    )
}
"""The benchmarks that exist as data, the paper's four first."""


def benchmark_names() -> tuple[str, ...]:
    """Return the names that `load_benchmark` accepts."""
    return (ALL_FAMILIES, *FAMILIES, *BENCHMARKS)


def load_benchmark(
    name: str,
    *,
    num_problems: int | None = None,
    seed: int = 0,
    difficulty: str = "standard",
    path: str | Path | None = None,
) -> list[EvalProblem]:
    r"""Return a benchmark's problems.

    Args:
        name: A task family, `tasks` for all of them evenly, or a benchmark as
            `name[/subset][:style][@version][=path]`; see `naming`, and `prompts` for the styles.
        num_problems: How many at most, evenly from the subsets; by default 1000 generated ones,
            or the benchmark's default size (the paper's, where the paper has it).
        seed: Chooses the generated problems (other seeds share none of them), draws BBH's subset
            and shuffles GPQA's options.
        difficulty: Of generated problems.
        path: Local file or folder, as in the name.

    Raises:
        ConfigError: Unknown name, or settings that do not go together.
        DataError: The data cannot be read; the message says how to get it.

    Example:
        >>> problems = load_benchmark("gsm8k=test.jsonl", num_problems=100)
        >>> problems[0].judge("... so the answer is \boxed{18}.").strict
    """
    parsed = BenchmarkName.parse(name)
    if num_problems is not None and num_problems < 1:
        raise ConfigError(f"num_problems is {num_problems}; it must be at least 1.")
    if parsed.path and path:
        raise ConfigError(f"{name!r} names a file already; path is {str(path)!r}.")
    path = parsed.path or path
    if parsed.name in BENCHMARKS:
        benchmark = BENCHMARKS[parsed.name]
        return _read(benchmark, parsed, Path(path) if path else None, num_problems, seed)
    if parsed.name != ALL_FAMILIES and parsed.name not in FAMILIES:
        allowed = benchmark_names()
        raise ConfigError(
            f"Unknown benchmark {parsed.name!r}; there are {', '.join(allowed)}."
            f"{suggestion(parsed.name, allowed)}"
        )
    if path is not None or parsed.subset or parsed.style or parsed.version:
        raise ConfigError(
            f"The problems of {parsed.name!r} are generated and have one prompt; path, subset, "
            f"style and version are for {', '.join(BENCHMARKS)}."
        )
    families = list(FAMILIES) if parsed.name == ALL_FAMILIES else [parsed.name]
    total = NUM_GENERATED if num_problems is None else num_problems
    shares = [total // len(families) + (i < total % len(families)) for i in range(len(families))]
    return [
        problem
        for family, share in zip(families, shares, strict=True)
        for problem in generated_problems(family, share, seed, difficulty)
    ]


def _read(
    benchmark: Benchmark, name: BenchmarkName, path: Path | None, limit: int | None, seed: int
) -> list[EvalProblem]:
    if name.version not in (None, benchmark.version):
        raise ConfigError(
            f"{benchmark.name} has no prompt version {name.version}; this release has "
            f"{benchmark.version}."
        )
    if benchmark.check:
        benchmark.check()
    subsets = _subsets(benchmark, name.subset)
    rows = _local(benchmark, path) if path else _hub(benchmark, subsets)
    groups = _by_subset(benchmark, subsets, rows)
    problems = [_problems(benchmark, name, *group, seed) for group in groups.items()]
    return _evenly(problems, limit)


def _subsets(benchmark: Benchmark, wanted: str | None) -> tuple[str | None, ...]:
    if wanted is None:
        return benchmark.subsets or (None,)
    known = (*benchmark.subsets, *benchmark.other_subsets)
    if wanted not in known:
        raise ConfigError(
            f"{benchmark.name} has no subset {wanted!r}."
            + (f" There are {', '.join(known)}." if known else "")
            + suggestion(wanted, known)
        )
    return (wanted,)


def _hub(benchmark: Benchmark, subsets: Iterable[str | None]) -> list[Located]:
    hub = benchmark.hub
    try:
        return [
            located
            for subset in subsets
            for located in read_hub(
                hub.name, subset=subset or hub.config, split=hub.split, revision=hub.revision
            )
        ]
    except DataError as error:
        way_out = hub.gated or f"Local data will do too: {benchmark.name}=PATH."
        raise DataError(f"{error} {way_out}") from error


def _local(benchmark: Benchmark, path: Path) -> list[Located]:
    try:
        return read_local(path)
    except DataError as error:
        raise DataError(f"{error} {benchmark.hub.gated}".rstrip()) from error


def _by_subset(
    benchmark: Benchmark, subsets: tuple[str | None, ...], rows: list[Located]
) -> dict[str | None, list[Located]]:
    if not rows:
        raise DataError(f"There are no problems of {benchmark.name} in this data.")
    if benchmark.subset_of is None:
        return {None: rows}
    groups: dict[str | None, list[Located]] = {subset: [] for subset in subsets}
    for located in rows:
        groups.setdefault(benchmark.subset_of(located), []).append(located)
    if missing := [str(subset) for subset in subsets if not groups[subset]]:
        found = ", ".join(str(name) for name, group in groups.items() if group)
        raise DataError(
            f"{benchmark.name}: no rows of {', '.join(missing)}; the data has {found}. Name one "
            f"subset ({benchmark.name}/{missing[0]}=PATH) or give a folder with all."
        )
    return {subset: groups[subset] for subset in subsets}


def _problems(
    benchmark: Benchmark, name: BenchmarkName, subset: str | None, rows: list[Located], seed: int
) -> list[EvalProblem]:
    choose = benchmark.choose.get(subset) if subset else None
    indices = choose(len(rows), seed) if choose else range(len(rows))
    questions = [(index, benchmark.read(rows[index], seed)) for index in indices]
    style = name.style_or_default
    family = benchmark.name if style == DEFAULT_STYLE else f"{benchmark.name}:{style}"
    prefix = f"{family}/{subset}" if subset else family
    chance = _chance([question for _, question in questions])
    return [
        EvalProblem(
            id=f"{prefix}/{index}",
            family=family,
            messages=STYLES[style](question.text, instruction(question.form, question.allowed)),
            reference=question.reference,
            grade=partial(_is_correct, question.judge),
            judge=partial(_judge, question.judge),
            chance=chance,
            subset=subset,
            prompt=f"{benchmark.name}:{style}@{benchmark.version}",
        )
        for index, question in questions
    ]


def _judge(grader: Callable[[str], Grade], text: str) -> Grade:
    return grader(after_reasoning(text))


def _is_correct(grader: Callable[[str], Grade], text: str) -> bool:
    return _judge(grader, text).flexible


def _chance(questions: list[Question]) -> float | None:
    """Return how often the most frequent answer is right, where answers are options or words."""
    if any(question.form not in ("letter", "words") for question in questions):
        return None
    counts = Counter(question.reference for question in questions)
    return max(counts.values()) / len(questions)


def _evenly(groups: list[list[EvalProblem]], limit: int | None) -> list[EvalProblem]:
    """Return the groups one after another; of a limit, each its share, the first ones of each."""
    if limit is None:
        return [problem for group in groups for problem in group]
    in_turn = [problem for turn in zip_longest(*groups) for problem in turn if problem is not None]
    chosen = {problem.id for problem in in_turn[:limit]}
    return [problem for group in groups for problem in group if problem.id in chosen]
