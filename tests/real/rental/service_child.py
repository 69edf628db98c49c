"""A service in a process of its own, by a clock the test steps: a line of nanoseconds on stdin sets it off by so much.

    python -m tests.real.rental.service_child DATABASE_URL DATA_DIR

Its timers are off. It prints its URL once it answers, and repeats each step once its clock has made it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ops.clock import Clock
from tests.real.service import serving, settings_on


def main(database_url: str, data_dir: Path) -> None:
    """Serve until stdin closes."""
    offset = [0]
    clock = Clock(lambda: time.time_ns() + offset[0])
    with serving(settings_on(database_url, data_dir, timers=False, log_level="warning"), clock) as service:
        print(service.url, flush=True)
        for line in sys.stdin:
            offset[0] = int(line)
            clock()
            print(offset[0], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
