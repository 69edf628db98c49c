"""A real broker for tests of what speaks to Kafka: one for the whole run, and one of its own where it is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.kafka.broker import Broker, BrokerMissingError
from tests.real.conftest import database_url, repository_root, server_url, template_database

__all__ = ["database_url", "repository_root", "server_url", "template_database"]


def start_broker(place: str) -> Broker:
    """Start a broker; where there cannot be one, the test is skipped, but never in CI."""
    try:
        return Broker(Path(place)).start()
    except BrokerMissingError as missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have a Kafka broker: {missing}")
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """Start one broker for the run; tests use logs of their own names, so that they do not meet."""
    with TemporaryDirectory(prefix="soma-kafka-") as place:
        running = start_broker(place)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """Start a broker that the test may kill."""
    with TemporaryDirectory(prefix="soma-kafka-") as place:
        running = start_broker(place)
        try:
            yield running
        finally:
            running.kill()
