"""A service in a process of its own, which kills itself at the n-th time that its writer comes to a state.

    python -m tests.real.billing.usage_child URL DATA_DIR ARMED STATE NTH

It counts from when a file called ARMED is there, and serves for ever where STATE is 0.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import uvicorn

from api.app import create_app
from api.serving import listen, url_of
from ops.settings import LogLevel
from tests.real.service import settings_on

HOST = "127.0.0.1"


def main(url: str, data_dir: str, armed: str, state: str, nth: str) -> None:
    """Serve on a free port, which is printed, until the state is reached."""
    left = int(nth)

    def observe(reached: int) -> None:
        nonlocal left
        if reached == int(state) and Path(armed).exists():
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    app = create_app(settings_on(url, Path(data_dir), log_level=LogLevel.ERROR), observe)
    with listen(HOST, 0) as bound:
        print(url_of(HOST, bound), flush=True)
        config = uvicorn.Config(app, log_level="error", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main(*sys.argv[1:])
