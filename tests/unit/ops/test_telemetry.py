"""What the service says about itself gives no secret away."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ops.settings import LogFormat, LogLevel
from ops.telemetry import REGISTRY, batch_committed, configure_logging, exposition, redact

SECRET = "open-sesame"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Catch the lines of one test, and leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    caught = io.StringIO()
    root.handlers = []
    yield caught
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "key",
    [
        "authorization",
        "Authorization",
        "token",
        "access_token",
        "password",
        "key",
        "log_key",
        "key_pem",
        "client_secret",
    ],
)
def test_a_value_under_a_telling_key_is_hidden(key: str) -> None:
    assert SECRET not in repr(redact(None, "", {"event": "x", key: SECRET, "deep": [{"er": {key: SECRET}}]}))


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://soma:{SECRET}@db/soma",
        f"postgresql://db/soma?user=soma&password={SECRET}",
        f"host=db password={SECRET}",
        f"GET / Authorization: Bearer {SECRET}",
    ],
)
def test_a_credential_inside_any_text_is_hidden(text: str) -> None:
    assert SECRET not in repr(redact(None, "", {"event": text, "why": (text, text.encode())}))


def test_counts_and_names_stay_readable() -> None:
    event = {
        "event": "x",
        "token_count": 4,
        "key_id": "a1",
        "stream": "offer/1",
        "monkey": "yes",
        "public_log": True,
    }
    assert redact(None, "", dict(event)) == event


@given(
    st.recursive(st.none() | st.text() | st.integers(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
)
def test_anything_can_be_logged(value: object) -> None:
    json.dumps(redact(None, "", {"event": "x", "value": value}))


@pytest.mark.parametrize("form", list(LogFormat))
def test_library_and_house_lines_go_through_one_pipe(stream: io.StringIO, form: LogFormat) -> None:
    configure_logging(LogLevel.INFO, form, stream)
    structlog.get_logger("soma").info("committed", size=3, token=SECRET)
    logging.getLogger("library").warning("sent %s", f"Bearer {SECRET}")
    logging.getLogger("library").debug("too quiet")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert SECRET not in stream.getvalue()
    if form is LogFormat.JSON:
        assert json.loads(lines[0])["size"] == 3
        assert json.loads(lines[1])["level"] == "warning"


def test_a_traceback_is_redacted_too(stream: io.StringIO) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON, stream)
    try:
        raise ValueError(f"cannot reach postgresql://soma:{SECRET}@db/soma")
    except ValueError:
        structlog.get_logger("soma").exception("lost")
    assert "ValueError" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_every_metric_carries_the_house_name() -> None:
    families = list(REGISTRY.collect())
    assert families
    assert all(family.name.startswith("soma_") and family.documentation.endswith(".") for family in families)
    assert b"soma_log_commit_seconds_bucket" in exposition()


def test_a_group_commit_is_counted_by_the_outcome_of_its_commands() -> None:
    def committed() -> float:
        return REGISTRY.get_sample_value("soma_log_commands_total", {"outcome": "committed"}) or 0.0

    before = committed()
    batch_committed({"committed": 3, "refused": 1}, 5, 0.002)
    assert committed() == before + 3


def test_a_url_that_was_asked_is_never_told(stream: io.StringIO) -> None:
    """The HTTP client's own lines hold whole URLs, and with them the parameters of people's queries."""
    configure_logging(LogLevel.DEBUG, LogFormat.JSON, stream)
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with httpx.Client(transport=transport) as client:
        client.get(f"http://127.0.0.1/?param_account={SECRET}")
    assert SECRET not in stream.getvalue()
