"""A running service with people at it: one for a whole file, or one for a test that needs a market to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.real.api.world import UNSEEN, World
from tests.real.conftest import lend
from tests.real.service import serving, settings_on

lending = contextmanager(lend)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test of an operation by its operation: schemathesis gives all of them the id of their function."""
    for item in items:
        where, _, last = item.nodeid.rpartition("::")
        if last != item.name:
            # There is no public way; tests/conftest.py sees to it that this one goes on working.
            item._id = type(item.id).parse(f"{where}::{item.name}")


@contextmanager
def _world(database_url: str, data_dir: Path) -> Iterator[World]:
    with serving(settings_on(database_url, data_dir)) as service, service.client() as client:
        yield World(service, client)


@pytest.fixture(scope="module")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Run one service for all tests of a file."""
    with (
        lending(server_url, template_database) as url,
        _world(url, tmp_path_factory.mktemp("service")) as opened,
    ):
        yield opened


@pytest.fixture
def fresh(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Run a service for one test, so that nobody else is on its market."""
    with _world(database_url, tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def unswept(world: World) -> None:
    """Keep overdue things as they are, so that a decision meets them."""
    world.service.run(world.service.app.state.sweeper.close())


@pytest.fixture(scope="module")
def contract(world: World) -> dict[str, Any]:
    """Make a contract that is not funded."""
    world.offer(world.provider("clinic"), dataset_fingerprint=UNSEEN)
    return world.contract(world.owner("lab"))
