"""What Kafka's client says about its options is told as a refusal."""

from __future__ import annotations

import pytest

from domain.errors import BrokerRefusedError
from ops.kafka import brokers
from ops.settings import Settings


def test_an_option_that_kafka_does_not_know_is_named() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", kafka_options='{"nonsense.key": "x"}')
    with pytest.raises(BrokerRefusedError, match=r"SOMA_KAFKA_OPTIONS cannot be used.*nonsense\.key"):
        brokers(settings)
