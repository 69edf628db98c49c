"""A shop for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.real.conftest import lend
from tests.real.rental.shop import Shop, open_shop

lending = contextmanager(lend)


@pytest.fixture(scope="module")
def shop(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Open a shop on a database of its own."""
    with (
        lending(server_url, template_database) as url,
        open_shop(url, tmp_path_factory.mktemp("shop")) as opened,
    ):
        yield opened
