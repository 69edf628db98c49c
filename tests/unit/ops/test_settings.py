"""Settings: read once, bounded, frozen, and silent about secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ops.settings import PREFIX, Settings, settings_reference

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the surroundings may have set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_nothing_set_means_everything_embedded() -> None:
    settings = Settings()
    assert settings.database_url is None
    assert settings.object_store_url is None
    assert settings.log_key_path == Path("var/keys/log.key")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_DATABASE_URL", "")
    assert Settings().database_url is None


def test_a_secret_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_DATABASE_URL", "postgresql://soma:open-sesame@db/soma")
    settings = Settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value().endswith("@db/soma")
    assert settings.shown()["database_url"] == "***"
    assert "open-sesame" not in f"{settings!r} {settings} {settings.shown()} {settings.model_dump_json()}"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PLATFORM_FEE_PPM", "1000001"),
        ("BATCH_COMMANDS_MAX", "0"),
        ("LOG_ORIGIN", "with space"),
        ("LOG_ORIGIN", "with+plus"),
        ("LOG_ORIGIN", "https://with.scheme"),
        ("LOG_ORIGIN", "line\nbreak"),
        ("DATABASE_URL", "mysql://db"),
        ("JWKS_URL", "file:///etc/passwd"),
        ("LOG_LEVEL", "loud"),
        ("KAFKA_OPTIONS", "security.protocol=SSL"),
        ("KAFKA_OPTIONS", '["security.protocol", "SSL"]'),
        ("KAFKA_OPTIONS", '{"a": {"b": 1}}'),
    ],
)
def test_a_value_out_of_bounds_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_every_setting_is_described_and_every_number_bounded() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if field.annotation in (int, float):
            assert {type(mark).__name__ for mark in field.metadata} >= {"Ge", "Le"}, name
            assert name.rsplit("_", 1)[-1] in {"s", "max", "ppm", "port", "partitions"}, (
                f"{name}: the unit comes last"
            )
    assert all(f"`{PREFIX}{name.upper()}`" in settings_reference() for name in Settings.model_fields)


def test_the_printed_reference_is_current() -> None:
    if not REFERENCE.exists():
        pytest.skip("docs/reference/settings.md is not printed yet: make docs")
    assert REFERENCE.read_text() == settings_reference()


@pytest.mark.parametrize("name", ["SOMA_CLICKHOUSE_URL", "SOMA_CLICKHOUSE_READER_URL"])
@pytest.mark.parametrize("url", ["nonsense", "clickhouse.internal:8443", "tcp://db:9000", "http://"])
def test_a_clickhouse_url_without_scheme_and_host_is_refused(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(ValidationError, match=r"a ClickHouse URL is http\(s\)"):
        Settings()
