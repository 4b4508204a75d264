"""Kill -9, resume, and other numbers of GPUs: are the losses those of one straight run?

    straight   2 ranks, never stopped
    killed     2 ranks, killed with -9 once a checkpoint is whole and a later step is done
    resumed    the same run, gone on with 2 ranks: losses must be equal
    on one     a copy of it, gone on with 1 rank: within 1e-3
    one        1 rank from the start: the same curve

Jobs run side by side where there are GPUs. Each is bounded in time, and one that fails does not
stop the others. A table and one JSON line end the output.

    python benchmarks/train_resume.py --gpus 0,1,2,3,4 --output results/train_resume.json
    python benchmarks/train_resume.py --smoke
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_train import SHAPES
from train_results import where
from training_runs import Run, make_model, make_traces, write_recipe

from lightthinker.train.resume import last_complete_checkpoint

STEPS, SAVE_EVERY, GLOBAL_BATCH = 10, 4, 4
EQUAL, CLOSE = 1e-5, 1e-3
"""Largest relative difference of losses: on the same number of GPUs, and on another."""


def parse() -> argparse.Namespace:
    """Command line, with the smoke size filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="1.5b")
    parser.add_argument("--gpus", default="0,1", help="CUDA devices, by number; two or more")
    parser.add_argument("--row-length", type=int, default=4096)
    parser.add_argument("--max-seconds", type=float, default=480)
    parser.add_argument("--work", type=Path, help="folder for runs and checkpoints")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.row_length = "smoke", 512
    options.gpus = [int(number) for number in options.gpus.split(",")]
    if len(options.gpus) < 2:
        parser.error("--gpus needs two")
    return options


class Jobs:
    """Runs jobs on the GPUs that are free, within one deadline.

    Args:
        gpus: CUDA devices by number.
        seconds: For everything.
    """

    def __init__(self, gpus: list[int], seconds: float):
        self.free = list(gpus)
        self.deadline = time.monotonic() + seconds
        self.changed = threading.Condition()

    def run(
        self, recipe: Path, ranks: int, *flags: str, until: Callable[[Run], bool] | None = None
    ) -> dict[str, Any]:
        """Run to the end, or kill it with -9 as soon as `until` is true.

        Returns:
            Losses by step, seconds, and what went wrong if something did.
        """
        with self.changed:
            self.changed.wait_for(lambda: len(self.free) >= ranks, self.left)
            gpus, self.free = self.free[:ranks], self.free[ranks:]
        if len(gpus) < ranks:
            return {"error": "no time was left to start it"}
        run, killed = Run(recipe, gpus, *flags), False
        try:
            while run.process.poll() is None and self.left > 0 and not killed:
                time.sleep(0.05)
                killed = until is not None and until(run)
            code = run.process.poll()
            run.kill()
        finally:
            with self.changed:
                self.free += gpus
                self.changed.notify_all()
        result = {"losses": losses_of(run), "seconds": round(run.seconds, 1)}
        if until is not None and not killed:
            result["error"] = f"it ended ({code}) before it was killed: {run.said()}"
        elif until is None and code != 0:
            result["error"] = (
                ("out of time" if code is None else f"exit {code}") + ": " + run.said()
            )
        return result

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self.deadline - time.monotonic())


def losses_of(run: Run) -> dict[int, float]:
    """Return losses by step; of a step that was done twice, the later one."""
    return {entry["step"]: entry["loss"] for entry in run.log() if "loss" in entry}


def difference(one: dict[str, Any], other: dict[str, Any], *, after: int = 0) -> float | None:
    """Return the largest relative difference of losses; None unless both reached the end."""
    a, b = one.get("losses", {}), other.get("losses", {})
    if STEPS not in a or STEPS not in b:
        return None
    return max(abs(a[s] - b[s]) / abs(a[s]) for s in range(after + 1, STEPS + 1))


def run_all(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run every job; return the results and the comparisons."""
    make_model(work / "model", options.shape)
    make_traces(work / "traces.jsonl", 2 * STEPS * GLOBAL_BATCH, options.row_length)
    jobs = Jobs(options.gpus, options.max_seconds)

    def recipe(name: str, *, saves: bool) -> Path:
        saving = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 1}
        return write_recipe(
            work / name, work / "model", work / "traces.jsonl",
            row_length=options.row_length, on_cpu=options.smoke,
            trainer={"max_steps": STEPS, "learning_rate": 1e-4} | (saving if saves else {}),
            distributed={"global_batch_size": GLOBAL_BATCH},
        )  # fmt: skip

    results: dict[str, dict[str, Any]] = {}
    recipes = {name: recipe(name, saves=name == "killed") for name in ("straight", "killed", "one")}
    folder = work / "killed"

    def saved_and_gone_on(run: Run) -> bool:
        whole = last_complete_checkpoint(folder / "checkpoints")
        return whole is not None and max(losses_of(run), default=0) > SAVE_EVERY

    def kill_and_resume() -> None:
        results["killed"] = jobs.run(recipes["killed"], 2, until=saved_and_gone_on)
        whole = last_complete_checkpoint(folder / "checkpoints")
        if whole is None:
            return
        content = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file())
        results["killed"] |= {"checkpoint": whole.name, "checkpoint_gb": round(content / 1e9, 3)}
        recipe("killed", saves=False)  # how often it saves may change
        settings = recipe("on_one", saves=False)
        # A checkpoint is never written to: the copy may share its files.
        shutil.copytree(folder, work / "on_one", copy_function=_link_checkpoints)
        (work / "on_one" / "recipe.yaml").write_text(
            (folder / "recipe.yaml").read_text().replace(str(folder), str(work / "on_one"))
        )
        on_one = threading.Thread(
            target=lambda: results.__setitem__("on_one", jobs.run(settings, 1, "--resume"))
        )
        on_one.start()
        results["resumed"] = jobs.run(recipes["killed"], 2, "--resume")
        on_one.join()

    threads = [
        threading.Thread(target=kill_and_resume),
        threading.Thread(
            target=lambda: results.__setitem__("straight", jobs.run(recipes["straight"], 2))
        ),
        threading.Thread(target=lambda: results.__setitem__("one", jobs.run(recipes["one"], 1))),
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.5)  # in this order, where there are GPUs for one only
    for thread in threads:
        thread.join()
    return results


def _link_checkpoints(source: str, target: str) -> None:
    if "/checkpoints/" in source:
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def compare(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each comparison: the largest relative difference, and the verdict."""
    straight = results.get("straight", {})
    rows = []
    for name, limit in (("resumed", EQUAL), ("on_one", CLOSE), ("one", CLOSE)):
        found = difference(straight, results.get(name, {}))
        row = {
            "comparison": f"straight = {name}",
            "largest_relative_difference": found,
            "allowed": limit,
            "passed": found is not None and found <= limit,
        }
        if found is None:
            row["error"] = results.get(name, {}).get("error") or straight.get("error")
        rows.append(row)
    return rows


def main() -> None:
    options = parse()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        results = run_all(options, Path(work))
    rows = compare(results)
    for name, result in results.items():
        if "error" in result:
            print(f"--- {name}: {result['error']}")
    print(f"{'run':<12}{'seconds':>9}  losses")
    for name, result in results.items():
        curve = " ".join(f"{loss:.4f}" for _, loss in sorted(result.get("losses", {}).items()))
        print(f"{name:<12}{result.get('seconds', 0):>9}  {curve}")
    print(f"\n{'comparison':<24}{'largest difference':>20}{'allowed':>10}{'':>3}passed")
    for row in rows:
        found = row["largest_relative_difference"]
        shown = "-" if found is None else f"{found:.2e}"
        print(f"{row['comparison']:<24}{shown:>20}{row['allowed']:>10.0e}{'':>3}{row['passed']}")
    content = {
        **where(),
        "seed": 0,
        "shape": options.shape,
        "row_length": options.row_length,
        "global_batch_size": GLOBAL_BATCH,
        "checkpoint": results.get("killed", {}).get("checkpoint"),
        "checkpoint_gb": results.get("killed", {}).get("checkpoint_gb"),
        "seconds": round(time.perf_counter() - begin, 1),
        "rows": rows,
        "runs": {
            name: {key: value for key, value in result.items() if key != "error"}
            for name, result in results.items()
        },
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))


if __name__ == "__main__":
    main()
