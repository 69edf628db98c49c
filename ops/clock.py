"""The clock and the dice of a process: the only places where time and chance enter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

# A clock of the system that lags so far behind the time that passed was set back, and is not followed.
SET_BACK_NS = 20_000_000


class Clock:
    """Tells the time as records print it, and never goes back within the process, nor stands still.

    Where the system's clock is set back, time goes on as it passes: whoever has access until a moment has it no longer
    for that. It follows the system's clock again when that has come near.
    Units: both give nanoseconds, since 1970 and since whenever; the system's clocks unless told otherwise.
    """

    def __init__(
        self, now_ns: Callable[[], int] | None = None, passing_ns: Callable[[], int] | None = None
    ) -> None:
        self._now_ns = now_ns
        self._passing_ns = passing_ns
        self._last_ns = 0
        self._passed_ns: int | None = None
        self._second = -1
        self._text = ""

    def __call__(self) -> str:
        second, us = divmod(self._tell_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{us:06d}Z"

    def _tell_ns(self) -> int:
        now_ns = time.time_ns() if self._now_ns is None else self._now_ns()
        passed_ns = time.monotonic_ns() if self._passing_ns is None else self._passing_ns()
        if self._passed_ns is not None:
            expected_ns = self._last_ns + passed_ns - self._passed_ns
            now_ns = expected_ns if now_ns < expected_ns - SET_BACK_NS else max(now_ns, self._last_ns)
        self._last_ns, self._passed_ns = now_ns, passed_ns
        return now_ns


def next_id() -> str:
    """Give 32 hex digits: milliseconds since 1970, then chance; ids sort by their millisecond."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
