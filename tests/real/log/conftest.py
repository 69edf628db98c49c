"""A runtime on a database of its own for each test of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.settings import Settings
from tests.real.log.world import settings_for


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Give settings for a fresh, migrated database and a key of its own."""
    return settings_for(database_url, tmp_path)
