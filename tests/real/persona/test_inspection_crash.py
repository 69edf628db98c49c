"""A service killed in the middle of an evaluation: the next start takes it up and comes to the same report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from ops.settings import Settings
from ops.tokens import LocalIssuer
from tests.real.persona.capsule_world import OLIVIA, CapsuleWorld, ended
from tests.real.service import serving, settings_on

WAIT_S_MAX = 60.0


@contextmanager
def process(settings: Settings, root: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """Run the service as an operator would, and kill it at the end if nobody has."""
    assert settings.database_url is not None
    environment = os.environ | {
        "SOMA_DATABASE_URL": settings.database_url.get_secret_value(),
        "SOMA_DATA_DIR": str(settings.data_dir),
        "SOMA_PORT": "0",
    }
    token = LocalIssuer(settings).mint(OLIVIA.subject, OLIVIA.tenant, sorted(OLIVIA.roles), None)
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli", "serve"],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            url = running.stdout.readline().strip()
            assert url.startswith("http://"), "the service did not start"
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
                yield client, running
        finally:
            running.kill()


def the_child_of(pid: int) -> psutil.Process:
    """Wait until a service has begun an evaluation; give its process."""
    until = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < until:
        for child in psutil.Process(pid).children(recursive=True):
            if "ops.evaluation_child" in child.cmdline():
                return child
        time.sleep(0.01)
    raise AssertionError("no evaluation was begun")


def test_a_killed_evaluation_is_taken_up_and_comes_to_the_same_report(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    settings = settings_on(database_url, tmp_path)
    with serving(settings) as service:
        world = CapsuleWorld(service)
        world.found()
        capsule = world.capsule(items=2_000, dimension=128)
        world.prepare(capsule)
    body = {"manifest": capsule.manifest.document()}
    with process(settings, repository_root) as (client, running):
        asked = client.post("/v1/evaluations", json=body).json()
        child = the_child_of(running.pid)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        # Nobody waits for it any more, and it ends with the service it was asked by.
        psutil.wait_procs([child], timeout=WAIT_S_MAX)
        assert not child.is_running()
    with serving(settings) as service, CapsuleWorld(service).client(OLIVIA) as client:
        taken_up = ended(client, f"/v1/evaluations/{asked['id']}")
        again = client.post("/v1/evaluations", json=body).json()
        assert taken_up["status"] == "completed"
        ended_again = ended(client, f"/v1/evaluations/{again['id']}")
        assert taken_up["evaluation"]["compared"] == ended_again["evaluation"]["compared"]
        timeline = [item["status"] for item in client.get("/v1/evaluations").json()["items"]]
        assert timeline == ["completed", "completed"]
