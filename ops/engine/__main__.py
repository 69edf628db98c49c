"""The engine process: told where and for whom by its owner, confined, then serving until the owner is gone.

The first line on stdin is a JSON object: `socket` (descriptor of a listening socket), `root` (directory of the
engine), `accounts` (digests), `memory_bytes_max`. The pipe stays open as long as the owner lives; its end is the word
to stop. One line on stdout says that the engine answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

STOP_S_MAX = 8.0
WAIT_FOR_PREDECESSOR_S_MAX = 20.0


def main() -> None:
    """Run an engine until its owner is gone or it is told to stop."""
    told = json.loads(sys.stdin.buffer.readline())
    root = Path(told["root"])
    from ops.engine.confinement import confine
    from ops.engine.places import Places

    places = Places(root)
    places.prepare(told["memory_bytes_max"])
    confined = confine([places.configuration], [places.data, places.temporary], told["memory_bytes_max"])
    serve(places, told, confined=confined)


def serve(places: Any, told: dict[str, Any], *, confined: bool) -> None:
    """Open the database and answer requests."""
    import socket

    import uvicorn

    from ops.engine.accounts import Account, Accounts
    from ops.engine.server import Engine, application

    database = opened(places)
    accounts = Accounts({Account(name): kept for name, kept in told["accounts"].items()})
    engine = Engine(database, accounts)
    settings = uvicorn.Config(
        application(engine), log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=60,
        timeout_graceful_shutdown=3, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    threading.Thread(target=_stop_with_owner, args=[server], daemon=True).start()
    print(json.dumps({"version": database.version, "confined": confined}), flush=True)  # noqa: T201
    server.run(sockets=[socket.socket(fileno=told["socket"])])
    # The database is closed in good order, but threads of queries without an end are not waited for.
    threading.Timer(STOP_S_MAX, os._exit, [1]).start()
    database.close()
    sys.stdout.flush()
    os._exit(0)


def opened(places: Any) -> Any:
    """Open the database; a predecessor that is still closing it is waited for."""
    from ops.engine.database import Database

    until = time.monotonic() + WAIT_FOR_PREDECESSOR_S_MAX
    while True:
        try:
            return Database(places)
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _stop_with_owner(server: Any) -> None:
    while sys.stdin.buffer.read(1):
        pass
    server.should_exit = True
    time.sleep(STOP_S_MAX)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
