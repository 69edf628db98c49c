"""One desk for all tests of a file, and one of its own for a test that needs a log to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.billing.billing_desk import Desk, desk
from tests.real.conftest import lend

lending = contextmanager(lend)


@pytest.fixture(scope="module")
def office(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """Run one service for all tests of a file, with the standard prices."""
    with (
        lending(server_url, template_database) as url,
        desk(url, tmp_path_factory.mktemp("billing")) as opened,
    ):
        yield opened


@pytest.fixture
def fresh(database_url: str, tmp_path: Path) -> Iterator[Desk]:
    """Run a service for one test, with the standard prices."""
    with desk(database_url, tmp_path) as opened:
        yield opened
