"""Unit tests reach nothing outside their process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_sockets() -> Iterator[None]:
    """Refuse to connect or to listen; a pair of sockets inside one event loop stays possible."""

    def refuse(self: socket.socket, *arguments: Any) -> NoReturn:
        raise RuntimeError("a unit test opens no sockets; a test that needs one belongs in tests/real")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "bind", "listen"):
            patch.setattr(socket.socket, name, refuse)
        yield
