"""How the threads of a process share Python's interpreter, where one of them drives a GPU."""

from __future__ import annotations

import sys

SWITCH_INTERVAL_S = 1e-4


def shorten_switch_interval() -> None:
    """Let the engine's thread have the interpreter soon after it asks for it.

    CPython lets a thread that runs keep the interpreter for 5 ms, most of a step of a 7B model, and
    the engine's thread asks anew after each wait and each call into torch. With 64 streams written
    in the event loop that more than doubled the time of a step. The interval is the process's:
    whoever owns the process calls this, as `lightthinker serve` does.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
