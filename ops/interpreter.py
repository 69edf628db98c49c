"""The interpreter of a process that serves: one event loop that decides, beside one thread that commits."""

from __future__ import annotations

import gc
import sys
from functools import cache

# After each commit the writer waits for the interpreter's lock. The default lets a busy loop keep it for 5 ms, which
# is longer than a commit takes.
SWITCH_INTERVAL_S = 0.0005
FOLLOW_SWITCH_INTERVAL_S = 0.005

# Residents and remembered answers live long and hold no cycles. By default a full collection walks all of them every
# 70,000 allocations and stops everybody for 50-120 ms; these make young collections of about a millisecond, and full
# ones rare.
GC_THRESHOLDS = (20_000, 10, 100)


@cache
def settle() -> None:
    """Tune the interpreter for serving, once in a process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    # What start-up made stays for good; no collection looks at it again.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def settle_for_followers() -> None:
    """Let threads that compute keep the interpreter as long as Python's default has it.

    Followers turn batches into columns in several threads and nobody waits for a single commit: with the short interval
    of serving they spend a tenth of their time on changing places.
    """
    sys.setswitchinterval(FOLLOW_SWITCH_INTERVAL_S)
