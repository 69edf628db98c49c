"""A service killed in the middle of a training round: the next start takes the round up and comes to the same model."""

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

from domain.ledger import Caller
from ops.settings import Settings
from ops.tokens import LocalIssuer
from tests.real.api.world import Speaker, World, money, table
from tests.real.service import settings_on

# Long enough to be met in the middle on any machine, short enough to be run twice.
LONG = {"communication_rounds": 100, "local_steps": 100}
ROWS = 5_000


class Elsewhere:
    """A service in a process of its own, as far as the steps of the market need one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.issuer = LocalIssuer(settings)

    def token(self, caller: Caller, ttl_s: int | None = None) -> str:
        """Mint a token with the key the process reads too."""
        return self.issuer.mint(caller.subject, caller.tenant, sorted(caller.roles), ttl_s)


@contextmanager
def process(settings: Settings, root: Path) -> Iterator[tuple[World, subprocess.Popen[str]]]:
    """Run the service as an operator would, and kill it at the end if nobody has."""
    assert settings.database_url is not None
    environment = os.environ | {
        "SOMA_DATABASE_URL": settings.database_url.get_secret_value(),
        "SOMA_DATA_DIR": str(settings.data_dir),
        "SOMA_PORT": "0",
    }
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
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield World(Elsewhere(settings), client), running  # type: ignore[arg-type]
        finally:
            running.kill()


def started(world: World, owner: Speaker) -> str:
    """Start a long round under a new contract."""
    contract = world.funded(owner)
    return str(owner.made("/v1/rounds", {"contract_id": contract["id"]} | LONG)["id"])


def test_a_killed_round_is_taken_up_and_comes_to_the_same_model(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    settings = settings_on(database_url, tmp_path)
    with process(settings, repository_root) as (world, running):
        for n in range(2):
            world.offer(
                world.provider(f"clinic-{n}"),
                data=table(f"c{n}", ROWS, ("age", "dose", "weight", "height")),
                price_per_round=money("10"),
            )
        lab = world.owner("lab")
        undisturbed = world.ended(lab, started(world, lab))
        assert undisturbed["status"] == "completed"
        killed = started(world, lab)
        time.sleep(0.2)
        assert lab.read(f"/v1/rounds/{killed}")["status"] == "started"
        running.send_signal(signal.SIGKILL)
        running.wait()
    with process(settings, repository_root) as (world, _):
        lab = world.owner("lab")
        resumed = world.ended(lab, killed)
        contract = lab.made(f"/v1/contracts/{resumed['contract_id']}/release")
    assert (resumed["status"], resumed["fence"]) == ("completed", 2)
    assert resumed["model_address"] == undisturbed["model_address"]
    assert [u["update_address"] for u in resumed["updates"]] == [
        u["update_address"] for u in undisturbed["updates"]
    ]
    assert contract["status"] == "released"
