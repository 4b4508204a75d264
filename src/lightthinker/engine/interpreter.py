"""Settings of Python's interpreter for a process of our own in which an engine runs.

They are the process's, so whoever owns it calls these, as `lightthinker serve` does; a library
would change them behind its user's back.
"""

from __future__ import annotations

import atexit
import gc
import sys

SWITCH_INTERVAL_S = 1e-4


def shorten_switch_interval() -> None:
    """Let the engine's thread have the interpreter soon after it asks for it.

    CPython lets a thread that runs keep the interpreter for 5 ms, most of a step of a 7B model, and
    the engine's thread asks anew after each wait and each call into torch. With 64 streams written
    in the event loop that more than doubled the time of a step.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))


def exempt_what_stays() -> None:
    """Keep what is there now out of all later garbage collections.

    Libraries, the model's modules and compiled code stay as long as the process. Looking through
    them is most of a full collection, during which no token is sampled.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # At its end the process lets go of everything, in silence.
