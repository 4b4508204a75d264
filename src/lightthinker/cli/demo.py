"""`lightthinker demo`."""

from __future__ import annotations

from pathlib import Path


def demo(
    *,
    num_problems: int = 100,
    seed: int = 0,
    family: str = "tasks",
    output: Path = Path("runs/demo"),
    model: str = "demo",
) -> None:
    """Watch the bundled model compress its reasoning, then measure it.

    Shows problems as they are solved, then a table of full chain-of-thought beside LightThinker
    over fresh problems, then writes an HTML report. Takes under three minutes on two CPU cores.

    Args:
        num_problems: Problems in the table.
        seed: Chooses the problems; no seed gives problems from training.
        family: A task family, or `tasks` for all of them evenly.
        output: Folder for report and results; numbered if it exists.
        model: A checkpoint trained on the task families; `demo` is the bundled one.
    """
    from rich.console import Console

    from lightthinker.cli.app import command_line
    from lightthinker.demo.flow import DemoSettings, run_demo

    settings = DemoSettings(
        num_problems=num_problems, seed=seed, family=family, output=output, model=model
    )
    run_demo(settings, Console(), command=command_line())
