"""A process that follows the log knows every event the service can write."""

from __future__ import annotations

import json
import subprocess
import sys

TELL = (
    "import json, {module}; from domain.log.records import AGGREGATES, EVENTS;"
    "print(json.dumps([sorted(EVENTS), sorted(AGGREGATES)]))"
)


def known_after(module: str) -> list[list[str]]:
    """List the events and kinds that a fresh process knows once it has imported a module."""
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(module=module)], capture_output=True, text=True, check=True
    )
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_followers_and_rebuilds_know_what_the_service_writes() -> None:
    service = known_after("api.app")
    for module in ("projections.runner", "projections.rebuild", "projections.groups"):
        assert known_after(module) == service, module
