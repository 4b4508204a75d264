"""`lightthinker`: the commands, and how they end.

Commands are imported when they run, and import torch and transformers inside their bodies, so
help is instant. Whatever a user can change ends in one line on stderr and exit code 2; Ctrl-C
ends with 130.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from cyclopts import App, Parameter

from lightthinker import __version__
from lightthinker.errors import LightThinkerError

DEBUG_FLAG = "--debug"

app = App(
    name="lightthinker",
    help="Train and run language models that compress their own reasoning (LightThinker).",
    help_epilogue=f"{DEBUG_FLAG} with any command shows the traceback of an error.",
    version=f"lightthinker {__version__}",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)

COMMANDS = {
    "demo": ("demo:demo", "Watch the bundled model compress its reasoning, then measure it."),
    "chat": ("chat:chat", "Talk with a model or a server; thoughts fold as they finish."),
    "generate": ("generate:generate", "Answer a question; thoughts fold away as they finish."),
    "serve": ("serve:serve", "Serve a model to OpenAI clients, with a page to watch it think."),
    "batch": ("batch:batch", "Answer every row of a file, exactly once; on Ray if you like."),
    "bench": ("bench:bench", "Measure servers under load."),
    "eval": ("evaluate:evaluate", "Measure accuracy and cost, with and without compression."),
    "report": ("report:report", "Write the HTML report of an evaluation."),
    "prepare": ("training:prepare", "Encode and pack a recipe's traces, and say what was read."),
    "train": ("training:train", "Train the model that a recipe describes."),
    "convert": ("training:convert", "Turn a published LightThinker checkpoint into our format."),
    "mask": ("mask:mask", "Draw what sees what, as text or PNG."),
}
for _name, (_target, _help) in COMMANDS.items():
    app.command(f"lightthinker.cli.{_target}", name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 after an error a user can fix, 130 after Ctrl-C."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG_FLAG in tokens
    if debug:
        tokens.remove(DEBUG_FLAG)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(tokens, result_action="return_value")
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        _fail(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (LightThinkerError, OSError) as error:
        if debug:
            raise
        _fail(f"error: {' '.join(str(error).split())}", 2)


def command_line() -> str:
    """Return the command as typed, for the record in results."""
    return shlex.join(["lightthinker", *sys.argv[1:]])


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
