"""A unit test stays inside its process."""

from __future__ import annotations

import asyncio
import socket

import pytest


def test_a_unit_test_cannot_open_a_connection() -> None:
    with socket.socket() as one, pytest.raises(RuntimeError, match="tests/real"):
        one.connect(("127.0.0.1", 9))


def test_a_unit_test_can_run_an_event_loop() -> None:
    assert asyncio.run(asyncio.sleep(0, "done")) == "done"
