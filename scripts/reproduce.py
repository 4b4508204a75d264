"""Run what the committed tables say, and write them: `make reproduce`.

    python scripts/reproduce.py main_table --checkpoint lightthinker=runs/a --checkpoint anllm=b
    python scripts/reproduce.py main_table budget_sweep --devices cuda:0,cuda:0,cuda:1,cuda:1 \
        --num-kv-tokens 600000 --num-problems main_table=1000,budget_sweep=250 --time-limit 500
    python scripts/reproduce.py gsm8k_methods --data test.jsonl --checkpoint lightthinker=runs/gsm8k
    python scripts/reproduce.py smollm2_gsm8k --data test.jsonl --checkpoint lightthinker=a (...)
    python scripts/reproduce.py main_table --smoke     # the bundled model, a few problems, on a CPU

Every step (one method at one budget) is an evaluation of its own under runs/reproduce/, with a
journal: the same command goes on after a crash, and steps that are finished are not run again, nor
those that another target of the same command has. With --devices, the steps of all targets share
one pool of processes, and a step that fails, or is not finished at the time limit, is named under
`skipped` in the tables that miss it. With --tables-only nothing is run: the tables of what is
finished are written, be it from another machine (copy its runs/reproduce/ here). A table is written
to results/TARGET.json from real runs only; a smoke run's stays beside its steps. The last line
printed is the tables' paths as JSON.

Checkpoints: `lightthinker` (needed; by default the bundled model), and, where they were trained,
`full_cot` (else the lightthinker checkpoint with compression off), `lightthinker_token`, `anllm`;
of the last two, none is needed once its step is finished.
Eviction methods run on the full-CoT checkpoint with LightThinker's mean and peak live tokens of the
same task as budgets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lightthinker.bundled import BUNDLED, model_path
from lightthinker.demo.loading import open_llm
from lightthinker.errors import LightThinkerError
from lightthinker.evals.benchmarks import EvalProblem
from lightthinker.evals.combine import Run, combine
from lightthinker.evals.evaluate import Evaluation
from lightthinker.evals.journal import journal_path, settings_difference
from lightthinker.evals.pool import Work, run_pool
from lightthinker.evals.records import read_samples, samples_path, write_samples, write_text
from lightthinker.evals.report import render_report
from lightthinker.evals.results import EvalResults, read_results, write_results
from lightthinker.evals.rows import check_table, markdown, paired_rows, table_rows
from lightthinker.evals.settings import EvalSettings

ROOT = Path(__file__).resolve().parents[1]
TARGETS = (
    "main_table",
    "budget_sweep",
    "long_reasoning",
    "smollm2_gsm8k",
    "gsm8k_methods",
    "bundled_model",
)
PAIR = "smollm2_gsm8k"
TABLE_NAMES = {"gsm8k_methods": "smollm2_gsm8k_methods"}
EVICTION = ("streaming_llm", "sepllm", "h2o", "r_kv", "snapkv", "tova", "random")
TRAINED = ("lightthinker_token", "anllm")
WITH_TRAINED = ("main_table", "gsm8k_methods")
BUDGETS = (192, 256, 384, 512)
LENGTHS = {"long": ("2k", 3500), "4k": ("4k", 7000), "8k": ("8k", 13500)}
FAMILIES = ("programs", "word_problems", "entity_tracking", "multiplication", "register_machine")
LONG_FAMILIES = ("programs", "entity_tracking", "multiplication", "register_machine")
BUNDLED_ARGUMENTS = (
    "eval demo --methods full_cot,lightthinker,gists_blanked --swap-gists --num-problems 1000 "
    "--max-tokens 1100 --card --output results/bundled_model.json --overwrite"
)
SMOKE_GSM8K = (
    ("Ann has 3 apples and buys 4. How many has she?", "3+4=7\n#### 7"),
    ("A box holds 6 eggs. How many eggs are in 5 boxes?", "6*5=30\n#### 30"),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation of a table.

    Attributes:
        name: Of its files.
        checkpoint: Which checkpoint runs it.
        settings: What it runs.
        suffix: Behind the tasks' names in the table.
    """

    name: str
    checkpoint: str
    settings: EvalSettings
    suffix: str = ""


class Reproduction:
    """The steps of one target, and its table."""

    places: ClassVar[dict[tuple[str, EvalSettings], Path]] = {}
    digests: ClassVar[dict[str, dict[str, str]]] = {}
    problems: ClassVar[dict[EvalSettings, list[EvalProblem]]] = {}

    def __init__(self, target: str, options: argparse.Namespace):
        self.target, self.options = target, options
        self.folder = Path(options.runs) / ("smoke" if options.smoke else "full") / target
        given = dict(item.split("=", 1) for item in options.checkpoint)
        if unknown := set(given) - {"lightthinker", "full_cot", *TRAINED}:
            sys.exit(f"error: unknown checkpoint {unknown.pop()!r}; see --help.")
        self._combined: dict[str, Run] = {}
        self.checkpoints = {"lightthinker": BUNDLED, **given}
        self.checkpoints.setdefault("full_cot", self.checkpoints["lightthinker"])
        rivals = TRAINED if target in WITH_TRAINED else ()
        self.skipped = {
            name: "no checkpoint was given"
            for name in rivals
            if name not in self.checkpoints and not (self.folder / f"{name}.json").is_file()
        }

    @cached_property
    def steps(self) -> list[Step]:
        """All steps; what others wait for comes first."""
        return [step for group in getattr(self, f"_{self.target}")() for step in group]

    def unfinished(self) -> dict[Path, str]:
        """Return the paths of steps that have no results, and that they are not finished."""
        steps = [step for step in self.steps if self._finished(step) is None]
        return {self._path(step): "not finished" for step in steps}

    def works(self) -> list[Work]:
        """Return the steps that are not finished, their journals open, for a pool."""
        works = []
        for step in self.steps:
            if self._finished(step) is not None:
                continue
            path, evaluation = self._path(step), self._evaluation(step)
            evaluation.journal = journal_path(path)
            evaluation.prepare()
            self._note(step)
            size = self.options.problems_per_job
            works.append(
                Work(
                    path=path, model=str(evaluation.model), settings=step.settings,
                    options=self._engine(), command=command_line(),
                    num_shards=max(1, round(len(evaluation.problems) / size)),
                    after=step.settings.match_to,
                )
            )  # fmt: skip
        return works

    def run(self, failures: Mapping[Path, str]) -> Path | None:
        """Run the steps that no pool has run, and write the table; returns its path.

        Args:
            failures: Why a step has no results, by its path. Without any step there is no table.
        """
        failed = {s.name: failures[p] for s in self.steps if (p := self._path(s)) in failures}
        self.skipped |= failed
        runs = [(step, self._run(step)) for step in self.steps if step.name not in failed]
        if not runs:
            print(f"{self.target}: no step is finished", file=sys.stderr)
            return None
        pair = self.target == PAIR
        table = self._comparison(runs) if pair else self._table(runs)
        if not pair:
            check_table(table)
        path = self.folder / f"{self.target}.json"
        if not self.options.smoke:
            path = ROOT / "results" / f"{TABLE_NAMES.get(self.target, self.target)}.json"
        write_text(path, json.dumps(table, indent=2) + "\n", overwrite=True)
        rows = [row for _, results in runs for row in table_rows(results)]
        print(markdown(rows if pair else table["rows"]), flush=True)
        if not self.options.no_report:
            self._report(runs)
        return path

    def _main_table(self) -> list[list[Step]]:
        max_tokens = 100 if self.options.smoke else 1100
        return self._methods(self._settings(self._families(), max_tokens), "standard")

    def _smollm2_gsm8k(self) -> list[list[Step]]:
        base = self._gsm8k()
        methods = ("lightthinker", "full_cot")
        return [[self._step(name, name, (name,), base) for name in methods]]

    def _gsm8k_methods(self) -> list[list[Step]]:
        return self._methods(self._gsm8k(), "standard")

    def _gsm8k(self) -> dict[str, Any]:
        if self.options.smoke:
            self.options.data = self.folder / "test.jsonl"
            rows = (json.dumps({"question": q, "answer": a}) for q, a in SMOKE_GSM8K)
            write_text(self.options.data, "".join(f"{row}\n" for row in rows), overwrite=True)
        task = "gsm8k:plain" if self.options.data is None else f"gsm8k:plain={self.options.data}"
        max_tokens = 40 if self.options.smoke else 1024
        base = self._settings((task,), max_tokens)
        return {**base, "num_problems": self._num_problems}

    def _methods(self, base: dict[str, Any], difficulty: str) -> list[list[Step]]:
        base = {**base, "difficulty": "tiny" if self.options.smoke else difficulty}
        light = self._step("lightthinker", "lightthinker", ("lightthinker",), base)
        match = {**base, "match_to": self._path(light)}
        evicting = [
            self._step(f"{name}_{how}", "full_cot", (f"{name}:match={how}",), match)
            for how in ("mean", "peak")
            for name in EVICTION
        ]
        keeping = [
            self._step(
                f"{name}_peak_prompt", "full_cot", (f"{name}:match=peak,keep_prompt=true",), match
            )
            for name in EVICTION
            if name != "random"  # It keeps the prompt anyway.
        ]
        trained = [
            self._step(name, name, (name,), base) for name in TRAINED if name not in self.skipped
        ]
        return [
            [light, self._step("full_cot", "full_cot", ("full_cot",), base), *trained],
            evicting,
            keeping,
        ]

    def _budget_sweep(self) -> list[list[Step]]:
        smoke = self.options.smoke
        base = self._settings(self._families(), 100 if smoke else 1100)
        base["difficulty"] = "tiny" if smoke else "standard"
        budgets = (300, 400) if smoke else BUDGETS
        evicting = [
            self._step(
                f"{name}_{budget}{suffix}", "full_cot", (f"{name}:budget={budget}{keep}",), base
            )
            for keep, suffix in ((",keep_prompt=true", "_prompt"), ("", ""))
            for name in EVICTION
            if not keep or name != "random"  # It keeps the prompt anyway.
            for budget in budgets
        ]
        return [
            [
                self._step("lightthinker", "lightthinker", ("lightthinker",), base),
                self._step("full_cot", "full_cot", ("full_cot",), base),
                *evicting,
            ]
        ]

    def _long_reasoning(self) -> list[list[Step]]:
        steps = []
        lengths = {"tiny": ("tiny", 100), "demo": ("demo", 100)} if self.options.smoke else LENGTHS
        for difficulty, (name, max_tokens) in lengths.items():
            families = self._families() if self.options.smoke else LONG_FAMILIES
            base = {**self._settings(families, max_tokens), "difficulty": difficulty}
            for method in ("full_cot", "lightthinker"):
                step = self._step(f"{method}_{name}", method, (method,), base, suffix=f"/{name}")
                steps.append(step)
        return [steps]

    def _families(self) -> tuple[str, ...]:
        return FAMILIES[:1] if self.options.smoke else FAMILIES

    def _settings(self, tasks: Sequence[str], max_tokens: int) -> dict[str, Any]:
        number = self._num_problems or (2 if self.options.smoke else 1000)
        seed = self.options.seed
        return {
            "tasks": tuple(tasks), "num_problems": number, "max_tokens": max_tokens, "seed": seed,
        }  # fmt: skip

    def _step(
        self,
        name: str,
        checkpoint: str,
        methods: tuple[str, ...],
        base: dict[str, Any],
        suffix: str = "",
    ) -> Step:
        settings = EvalSettings(**{**base, "methods": methods})
        return Step(name=name, checkpoint=checkpoint, settings=settings, suffix=suffix)

    @cached_property
    def _num_problems(self) -> int | None:
        given: str | None = self.options.num_problems
        if given is None:
            return None
        numbers = dict(item.rpartition("=")[::2] for item in given.split(","))
        text = numbers.get(self.target, numbers.get(""))
        if set(numbers) - {"", *TARGETS} or not (text or "1").isdigit():
            sys.exit(f"error: --num-problems is {given!r}; give a number, or main_table=1000,...")
        return None if text is None else int(text)

    def _path(self, step: Step) -> Path:
        """Return the step's results file: another target's if that runs the very same."""
        key = (self._model(step), step.settings)
        if key not in self.places:
            self.places[key] = self.folder / f"{step.name}.json"
            for known in self.folder.parent.glob(f"*/{step.name}.settings.json"):
                if json.loads(known.read_text("utf-8")) == self._identity(step):
                    self.places[key] = known.with_name(f"{step.name}.json")
        return self.places[key]

    def _engine(self) -> dict[str, Any]:
        options = self.options
        return {
            "device": options.device, "dtype": options.dtype,
            "max_num_seqs": options.max_num_seqs, "num_kv_tokens": options.num_kv_tokens,
        }  # fmt: skip

    def _model(self, step: Step) -> str:
        """Return the step's checkpoint; LightThinker's where it is no longer needed."""
        return model_path(self.checkpoints.get(step.checkpoint, self.checkpoints["lightthinker"]))

    def _evaluation(self, step: Step) -> Evaluation:
        model, engine = self._model(step), self._engine()
        evaluation = Evaluation(
            open_llm=lambda: open_llm(model, **engine), settings=step.settings, model=model,
            command=command_line(), dtype=self.options.dtype, overwrite=self.options.overwrite,
        )  # fmt: skip
        if model not in self.digests:
            self.digests[model] = evaluation.digests
        asked = dataclasses.replace(step.settings, methods=(), match_to=None)
        if asked not in self.problems:
            self.problems[asked] = evaluation.problems
        vars(evaluation).update(digests=self.digests[model], problems=self.problems[asked])
        return evaluation

    def _identity(self, step: Step) -> dict[str, Any]:
        identity: dict[str, Any] = json.loads(json.dumps(self._evaluation(step).identity()))
        return identity

    def _finished(self, step: Step) -> EvalResults | None:
        """Return what a step left when it was finished, if it was."""
        path, identity = self._path(step), self._identity(step)
        if not path.is_file():
            return None
        known = json.loads(path.with_suffix(".settings.json").read_text("utf-8"))
        if step.checkpoint not in self.checkpoints:
            identity["model"] = known["model"]
        if self.options.tables_only:
            identity["versions"] = known["versions"]
        differences = settings_difference(known, identity)
        if not differences:
            print(f"{self.target}/{step.name}: finished before", file=sys.stderr)
            return read_results(path)
        if not self.options.overwrite:
            sys.exit(
                f"error: {path} was made with other settings: {'; '.join(differences)}. "
                "Delete it, or pass --overwrite."
            )
        path.unlink()
        return None

    def _run(self, step: Step) -> EvalResults:
        """Run one step in this process, or read what it left when it was finished."""
        done = self._finished(step)
        if done is not None:
            return done
        print(f"{self.target}/{step.name}", file=sys.stderr)
        path, evaluation = self._path(step), self._evaluation(step)
        evaluation.journal = journal_path(path)
        evaluation.prepare()
        results, records = evaluation.results(evaluation.run())
        evaluation.close()
        self._note(step)
        write_samples(records, samples_path(path), overwrite=True)
        write_results(results, path, overwrite=True)
        shutil.rmtree(evaluation.journal)
        return results

    def _note(self, step: Step) -> None:
        """Write down what a step was run with: it belongs to its results."""
        text = json.dumps(self._identity(step), indent=2) + "\n"
        write_text(self._path(step).with_suffix(".settings.json"), text, overwrite=True)

    def _table(self, runs: Sequence[tuple[Step, EvalResults]]) -> dict[str, Any]:
        info = runs[0][1].info
        rows = [row for step, results in runs for row in table_rows(results, suffix=step.suffix)]
        return {
            "rows": rows,
            "against_full_cot": self._pairs(runs),
            "device": _joined(results.info.device for _, results in runs),
            "versions": {
                name: _joined(results.info.versions.get(name, "") for _, results in runs)
                for name in info.versions
            },
            "git_commit": _joined(results.info.git_commit or "" for _, results in runs) or None,
            "command": self._command(runs),
            "seed": info.seed,
            "models": {step.checkpoint: results.info.model for step, results in runs},
            "method_settings": {
                name: values
                for _, results in runs
                for name, values in results.info.method_settings.items()
            },
            "skipped": self.skipped,
            "processes": self.options.devices.split(",") if self.options.devices else None,
            "smoke": self.options.smoke,
        }

    def _comparison(self, runs: Sequence[tuple[Step, EvalResults]]) -> dict[str, Any]:
        """Return the steps as one comparison, as `lightthinker eval` writes it."""
        models = {step.checkpoint: results.info.model for step, results in runs}
        together = self._together(runs)[""]
        return {**together.results.to_dict(), "command": self._command(runs), "models": models}

    def _command(self, runs: Sequence[tuple[Step, EvalResults]]) -> str:
        """Return the command that made the table: this one, or first those that ran its steps."""
        ran = [results.info.command for _, results in runs] if self.options.tables_only else []
        return " && ".join(dict.fromkeys([*ran, command_line()]))

    def _pairs(self, runs: Sequence[tuple[Step, EvalResults]]) -> list[dict[str, Any]]:
        """Compare with full CoT across the steps that share their problems."""
        return [
            row
            for suffix, together in self._together(runs).items()
            for row in paired_rows(together.results, suffix=suffix)
        ]

    def _together(self, runs: Sequence[tuple[Step, EvalResults]]) -> dict[str, Run]:
        """Return the steps that share their problems as one run, by the suffix of their tasks."""
        if not self._combined:
            for suffix in dict.fromkeys(step.suffix for step, _ in runs):
                group = [(step, results) for step, results in runs if step.suffix == suffix]
                paths = [samples_path(self._path(step)) for step, _ in group]
                self._combined[suffix] = combine(
                    [
                        Run(results=results, records=read_samples(path))
                        for (_, results), path in zip(group, paths, strict=True)
                    ]
                )
        return self._combined

    def _report(self, runs: Sequence[tuple[Step, EvalResults]]) -> None:
        for suffix, together in self._together(runs).items():
            infos = [results.info for step, results in runs if step.suffix == suffix]
            html = render_report(together.results, together.records, infos)
            name = f"report{suffix.replace('/', '_')}.html"
            write_text(self.folder / name, html, overwrite=True)
            print(f"Report: {self.folder / name}", file=sys.stderr)


def _joined(values: Iterable[str]) -> str:
    """Return what steps were made by or with, each once."""
    return "; ".join(dict.fromkeys(values))


def command_line() -> str:
    """Return the command as typed, for the record."""
    return shlex.join(["python", "scripts/reproduce.py", *sys.argv[1:]])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", choices=TARGETS, help="tables to make")
    parser.add_argument("--smoke", action="store_true", help="a few problems on a CPU")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="may be repeated; names are above",
    )
    parser.add_argument("--data", type=Path, help="GSM8K's test set as JSON lines")
    parser.add_argument(
        "--num-problems", help="of each family; by default 1000; also main_table=1000,..."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of problems and sampling; by default 0"
    )
    parser.add_argument("--device", help="by default CUDA if there is one")
    parser.add_argument(
        "--devices", help="comma-separated: one process on each; may name one several times"
    )
    parser.add_argument(
        "--problems-per-job", type=int, default=500, help="of a process; by default 500"
    )
    parser.add_argument("--time-limit", type=float, help="seconds for the processes of --devices")
    parser.add_argument("--tables-only", action="store_true", help="of finished steps; run nothing")
    parser.add_argument("--no-report", action="store_true", help="write no HTML report")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="most sequences at once")
    parser.add_argument("--num-kv-tokens", type=int, help="tokens the KV pool holds")
    parser.add_argument("--runs", default="runs/reproduce", help="folder for the steps")
    parser.add_argument("--overwrite", action="store_true", help="of steps with other settings")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the targets asked for."""
    options = parse(arguments)
    if options.tables_only and (options.overwrite or "bundled_model" in options.targets):
        sys.exit("error: --tables-only runs nothing: no bundled_model, and no --overwrite.")
    for places in (Reproduction.places, Reproduction.digests, Reproduction.problems):
        places.clear()
    targets = [Reproduction(name, options) for name in options.targets if name != "bundled_model"]
    if "bundled_model" in options.targets:
        from lightthinker.cli.app import main as lightthinker

        lightthinker(shlex.split(BUNDLED_ARGUMENTS))
    failures: dict[Path, str] = {}
    if options.tables_only:
        failures = {path: why for target in targets for path, why in target.unfinished().items()}
    elif options.devices:
        failures = run_on_devices(targets, options)
    tables = {target.target: target.run(failures) for target in targets}
    print(json.dumps({name: str(path) for name, path in tables.items() if path is not None}))
    if failures:
        how = (
            "they are for a run without --tables-only"
            if options.tables_only
            else ("the same command goes on with them")
        )
        sys.exit(f"error: {len(failures)} steps are missing; {how}.")


def run_on_devices(targets: Sequence[Reproduction], options: argparse.Namespace) -> dict[Path, str]:
    """Run the unfinished steps of all targets in one pool; returns why some have no results."""
    devices = options.devices.split(",")
    shared = len(set(devices)) < len(devices) and "cpu" not in devices
    if shared and options.num_kv_tokens is None:
        sys.exit("error: processes that share a GPU cannot all take what is free; give each its "
                 "part by --num-kv-tokens.")  # fmt: skip
    works = {work.path: work for target in targets for work in target.works()}
    longest_first = sorted(works.values(), key=lambda work: -work.settings.max_tokens)
    return run_pool(
        longest_first, devices, seconds=options.time_limit,
        say=lambda words: print(words, file=sys.stderr, flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (LightThinkerError, OSError) as error:
        sys.exit(f"error: {error}")
