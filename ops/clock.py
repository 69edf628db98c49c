"""The clock and the dice of a process: the only places where time and chance enter."""

from __future__ import annotations

import os
import time


class Clock:
    """Tells the time as records print it, and never goes back within the process."""

    def __init__(self) -> None:
        self._last_us = 0
        self._second = -1
        self._text = ""

    def __call__(self) -> str:
        now_us = max(time.time_ns() // 1000, self._last_us)
        self._last_us = now_us
        second, us = divmod(now_us, 1_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{us:06d}Z"


def next_id() -> str:
    """Give 32 hex digits: milliseconds since 1970, then chance; ids sort by their millisecond."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
