"""A running service with a shelf of personas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.service import Service, serving, settings_on


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[Service]:
    """Run a service for one test."""
    with serving(settings_on(database_url, tmp_path)) as running:
        yield running
