"""A running service with a vault of its own: one for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.real.conftest import lend
from tests.real.service import Service, serving, settings_on

lending = contextmanager(lend)


@pytest.fixture(scope="module")
def service(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run one service for all tests of a file; it takes artifacts of 30 MB."""
    place = tmp_path_factory.mktemp("service")
    with (
        lending(server_url, template_database) as url,
        serving(settings_on(url, place, artifact_bytes_max=30_000_000)) as opened,
    ):
        yield opened
