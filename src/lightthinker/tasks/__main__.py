"""Print an example problem and a table over all families: `python -m lightthinker.tasks --help`."""

import argparse
from itertools import islice

from lightthinker.tasks.problem import Problem
from lightthinker.tasks.registry import DIFFICULTIES, FAMILIES, generate, stream
from lightthinker.tasks.statistics import NUM_GISTS, measure


def format_problem(problem: Problem) -> str:
    """Lay out a problem for reading."""
    thoughts = [f"[{number}] {thought}" for number, thought in enumerate(problem.thoughts)]
    title = f"{problem.family}, {problem.difficulty}"
    return "\n".join([f"--- {title} ---", problem.question, "", *thoughts, "", problem.answer])


def format_table(difficulty: str, *, num_problems: int, seed: int) -> str:
    """Tabulate the families' statistics at one difficulty."""
    rows: list[str] = []
    for name in FAMILIES:
        stats = measure(
            list(islice(stream([name], seed=seed, difficulty=difficulty), num_problems))
        )
        cells = {
            "prompt": f"{stats.prompt:.0f}",
            "trace": f"{stats.trace:.0f}",
            "max": f"{stats.max_total}",
            "thoughts": f"{stats.num_thoughts:.1f}",
            "tok/thought": f"{stats.tokens_per_thought:.1f}",
            "longest": f"{stats.longest_thought:.1f}",
            "peak": f"{stats.peak_ratio:.3f}",
            "lookups": f"{stats.lookups_per_thought:.2f}",
            "distance": f"{stats.lookup_distance:.2f}",
            "chance": f"{stats.chance:.1g}",
        }
        if not rows:
            rows.append(f"{'family':17}" + "".join(f"{column:>12}" for column in cells))
        rows.append(f"{name:17}" + "".join(f"{cell:>12}" for cell in cells.values()))
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: The arguments; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m lightthinker.tasks", description=__doc__)
    parser.add_argument("--family", default="programs", help=", ".join(FAMILIES))
    parser.add_argument("--difficulty", default="standard", help=", ".join(DIFFICULTIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-problems", type=int, default=200, help="problems per table row")
    options = parser.parse_args(arguments)
    try:
        problem = generate(options.family, seed=options.seed, difficulty=options.difficulty)
    except ValueError as error:
        parser.error(str(error))
    print(format_problem(problem))
    print(
        f"\nMeans over {options.num_problems} {options.difficulty} problems, in tokens. peak: bound"
        f" on the peak with {NUM_GISTS} gists, as a fraction of full chain of thought's."
    )
    print(format_table(options.difficulty, num_problems=options.num_problems, seed=options.seed))


if __name__ == "__main__":
    main()
