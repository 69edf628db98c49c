"""Every knob of the service in one frozen object, read once at the entry point and passed on.

Nothing else reads the environment. A setting that is absent means embedded: no database URL means an embedded
PostgreSQL, no object store URL means a directory.
"""

from __future__ import annotations

import json
import os
import re
from enum import StrEnum
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SOMA_"


class LogLevel(StrEnum):
    """How much the service writes about itself."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """For whom the service writes: machines or people."""

    JSON = "json"
    CONSOLE = "console"


class Settings(BaseSettings):
    """The settings of one process, frozen once read."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, validate_default=True
    )

    # ---- where things are kept
    data_dir: Path = Field(
        Path("var"), description="Directory of everything embedded: database, objects, keys."
    )
    database_url: SecretStr | None = Field(
        None,
        description="libpq URL of a PostgreSQL from 15 on; unset means embedded, under the data directory.",
    )
    database_pool_max: int = Field(
        8, ge=1, le=200, description="Reading connections of one process (count); the writer has its own."
    )
    object_store_url: str | None = Field(
        None,
        description="Object store, such as s3://bucket/prefix; unset means the directory objects/ under data.",
    )
    vault_encryption: bool = Field(
        True,
        description="Whether artifacts and capsules are encrypted where they are stored (true or false).",
    )
    vault_key_file: Path | None = Field(
        None, description="Keys of the vault (made if absent); unset means keys/vault.json under data."
    )

    clickhouse_url: SecretStr | None = Field(
        None,
        description="http(s)://user:password@host:port of a ClickHouse; unset means the embedded engine.",
    )
    clickhouse_cluster: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Name of a ClickHouse cluster (one shard) whose replicas hold the tables; unset: one server.",
    )
    clickhouse_reader_url: SecretStr | None = Field(
        None,
        description="The same server with an account that may only read database bi; SQL is off without one.",
    )
    kafka_bootstrap_servers: str | None = Field(
        None, description="host:port of Kafka brokers, by commas; unset means no relay and no ingest."
    )
    kafka_options: SecretStr | None = Field(
        None,
        description="Further librdkafka options as a JSON object: security.protocol, sasl.username and the like.",
    )
    kafka_partitions: int = Field(
        6, ge=1, le=1_000, description="Partitions of each event topic (count), fixed when it is made."
    )
    kafka_replication_factor: int | None = Field(
        None, ge=1, le=15, description="Copies of each partition (count); unset means the cluster's default."
    )
    kafka_retention_days: int | None = Field(
        None, ge=1, le=36_500, description="How long topics keep a record, in days; unset means for ever."
    )

    # ---- who we are
    log_origin: str = Field(
        "soma-ledger.local/log",
        min_length=1,
        max_length=255,
        description="Name of the log in its checkpoints, for ever: a schemeless URL without spaces or plus signs.",
    )
    log_key_file: Path | None = Field(
        None,
        description="Ed25519 key that signs checkpoints (made if absent); unset means keys/log.key under data.",
    )
    issuer_key_file: Path | None = Field(
        None,
        description="Ed25519 key of the local token issuer (made if absent); unset means keys/issuer.key.",
    )
    jwks_url: str | None = Field(
        None, description="JWKS of an outside OIDC issuer, by http(s); unset means the local issuer."
    )
    jwt_issuer: str = Field("soma-ledger", min_length=1, description="The `iss` that tokens must carry.")
    jwt_audience: str = Field("soma-ledger", min_length=1, description="The `aud` that tokens must carry.")
    token_ttl_s: int = Field(
        3_600, ge=60, le=604_800, description="Life of a token from the local issuer, in seconds."
    )

    # ---- HTTP
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65_535, description="TCP port to listen on; 0 lets the system choose.")
    sql_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port of its own for SQL, for tools that want a bare host; it is at /clickhouse in any case.",
    )
    sql_concurrency_max: int = Field(
        8, ge=1, le=200, description="SQL statements at once (count); one tenant may take half of them."
    )
    sql_time_s_max: int = Field(30, ge=1, le=600, description="Longest run of one SQL statement, in seconds.")
    sql_rows_max: int = Field(
        1_000_000, ge=1, le=100_000_000, description="Most rows in the answer to one SQL statement (count)."
    )
    sql_memory_bytes_max: int = Field(
        1_000_000_000,
        ge=10_000_000,
        le=100_000_000_000,
        description="Most memory of one SQL statement, in bytes.",
    )
    sql_result_bytes_max: int = Field(
        500_000_000,
        ge=10_000,
        le=100_000_000_000,
        description="Largest answer to one SQL statement, in bytes.",
    )
    body_bytes_max: int = Field(
        2_000_000, ge=1_024, le=100_000_000, description="Largest request body, in bytes."
    )
    dataset_bytes_max: int = Field(
        20_000_000, ge=1_024, le=1_000_000_000, description="Largest uploaded dataset, in bytes."
    )
    artifact_bytes_max: int = Field(
        1_000_000_000,
        ge=1_024,
        le=1_000_000_000_000,
        description="Largest artifact or capsule archive, in bytes; it is streamed, and may be sent in pieces.",
    )
    usage_bytes_max: int = Field(
        8_000_000, ge=1_024, le=100_000_000, description="Largest body of usage readings, in bytes."
    )
    shutdown_grace_s: float = Field(
        10.0, ge=0, le=300, description="How long a stopping service finishes what it has begun, in seconds."
    )
    public_log_entries: bool = Field(
        False, description="Whether tiles of entries are served without a bearer token (true or false)."
    )

    # ---- who follows over HTTP
    feed_subscribers_max: int = Field(
        256, ge=1, le=100_000, description="Open feeds of one process (count) before 503."
    )
    feed_subscribers_per_tenant_max: int = Field(
        32, ge=1, le=100_000, description="Open feeds of one tenant at one process (count) before 429."
    )
    feed_buffer_records_max: int = Field(
        2_000,
        ge=10,
        le=1_000_000,
        description="Records waiting for one feed (count) before it is closed as slow.",
    )
    feed_buffer_bytes_max: int = Field(
        4_000_000,
        ge=100_000,
        le=1_000_000_000,
        description="Bytes waiting for one feed before it is closed as slow.",
    )
    feed_heartbeat_s: float = Field(
        15.0, ge=0.1, le=300, description="A quiet feed says so much apart that it is alive, in seconds."
    )
    feed_send_s_max: float = Field(
        30.0,
        ge=0.1,
        le=3_600,
        description="How long a feed waits for a reader that takes nothing, in seconds.",
    )
    webhook_key_file: Path | None = Field(
        None,
        description="Master key of webhook secrets (made if absent); unset means keys/webhooks.key under data.",
    )
    webhooks_allow_http: bool = Field(
        False, description="Whether webhooks may be http, for networks of one's own (true or false)."
    )
    webhooks_allow_private: bool = Field(
        False, description="Whether webhooks may lead to private and loopback addresses (true or false)."
    )
    webhooks_per_tenant_max: int = Field(
        20, ge=1, le=10_000, description="Webhooks of one tenant (count), deleted ones aside."
    )
    webhook_concurrency_max: int = Field(
        32, ge=1, le=1_000, description="Messages on their way to webhooks at once (count)."
    )
    webhook_timeout_s: float = Field(
        15.0, ge=0.1, le=120, description="How long a webhook has to answer, from the look-up on, in seconds."
    )
    webhook_retry_delays_s: str = Field(
        "5,300,1800,7200,18000,36000,50400,72000,86400",
        pattern=r"^\d{1,7}(\.\d{1,3})?(,\d{1,7}(\.\d{1,3})?){0,49}$",
        description="Pauses between the attempts of one message, in seconds; one more attempt than pauses.",
    )
    webhook_rotation_s: int = Field(
        86_400, ge=0, le=2_592_000, description="How long the secret before a rotation signs too, in seconds."
    )
    webhook_dead_in_row_max: int = Field(
        3, ge=1, le=1_000, description="Messages given up in a row (count) before a webhook is disabled."
    )
    webhook_keep_s: int = Field(
        2_592_000,
        ge=3_600,
        le=315_360_000,
        description="How long what was delivered is listed, in seconds; dead letters stay.",
    )

    # ---- the log
    queue_commands_max: int = Field(
        8_192, ge=1, le=1_000_000, description="Commands waiting for the next commit (count) before 503."
    )
    batch_commands_max: int = Field(1_024, ge=1, le=65_536, description="Commands in one commit (count).")
    batch_events_max: int = Field(4_096, ge=1, le=65_536, description="Events in one commit (count).")
    resident_max: int = Field(10_000, ge=1, le=10_000_000, description="Aggregates kept in memory (count).")

    # ---- the market
    platform_fee_ppm: int = Field(
        25_000, ge=0, le=1_000_000, description="Fee on each release, in millionths of the sum."
    )

    # ---- rentals
    rental_fee_ppm: int = Field(
        100_000,
        ge=0,
        le=1_000_000,
        description="The platform's part of rentals, subscriptions and purchases, in millionths of what is charged.",
    )
    timers: bool = Field(
        True,
        description="Whether the service ends, settles and renews what is due itself; off where `soma timers` does.",
    )

    # ---- policies
    policy_dir: Path | None = Field(
        None,
        description="Directory of export.rego, import.rego, publish.rego and rental.rego; unset means our own.",
    )
    opa_url: str | None = Field(
        None, description="http(s) URL of an Open Policy Agent that judges; unset means the engine inside."
    )
    opa_token: SecretStr | None = Field(
        None, description="Bearer token for the Open Policy Agent; unset means none is sent."
    )
    opa_timeout_s: float = Field(
        5.0, ge=0.1, le=60, description="How long the Open Policy Agent has for one answer, in seconds."
    )

    # ---- reconciliation
    reconcile_at_utc: str = Field(
        "02:30",
        pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$",
        description="When the log is held against ClickHouse each night, hour and minute in UTC.",
    )

    # ---- what the service says about itself
    log_level: LogLevel = Field(LogLevel.INFO, description="Least level written to stderr.")
    log_format: LogFormat = Field(LogFormat.JSON, description="Form of the lines on stderr.")

    @field_validator("log_origin")
    @classmethod
    def _name_of_a_log(cls, origin: str) -> str:
        # C2SP signed-note: a key name holds no Unicode space and no plus; ASCII keeps it typeable.
        if (
            not origin.isascii()
            or not origin.isprintable()
            or " " in origin
            or "+" in origin
            or "://" in origin
        ):
            raise ValueError("a log origin is a schemeless URL without spaces or plus signs")
        return origin

    @field_validator("database_url")
    @classmethod
    def _postgres_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("a database URL starts with postgresql://")
        return url

    @field_validator("clickhouse_url", "clickhouse_reader_url")
    @classmethod
    def _clickhouse_url(cls, url: SecretStr | None) -> SecretStr | None:
        # Without a scheme and a host a client would quietly ask this machine.
        if url and not re.match(r"https?://[^/?#]+", url.get_secret_value()):
            raise ValueError("a ClickHouse URL is http(s)://user:password@host:port")
        return url

    @field_validator("jwks_url")
    @classmethod
    def _http_url(cls, url: str | None) -> str | None:
        if url and not url.startswith(("https://", "http://")):
            raise ValueError("a JWKS URL starts with https:// (or http:// inside one host)")
        return url

    @field_validator("opa_url")
    @classmethod
    def _opa_url(cls, url: str | None) -> str | None:
        if url and not re.match(r"https?://[^/?#@]+", url):
            raise ValueError("an OPA URL is http(s)://host:port, without credentials")
        return url

    @field_validator("kafka_options")
    @classmethod
    def _object(cls, options: SecretStr | None) -> SecretStr | None:
        if options is not None:
            try:
                found = json.loads(options.get_secret_value())
            except ValueError:
                found = None
            if not isinstance(found, dict) or not all(
                isinstance(v, str | int | bool) for v in found.values()
            ):
                raise ValueError("Kafka options are a JSON object of texts, numbers, true and false")
        return options

    @property
    def log_key_path(self) -> Path:
        """Locate the key that signs checkpoints."""
        return self.log_key_file or self.data_dir / "keys" / "log.key"

    @property
    def webhook_key_path(self) -> Path:
        """Locate the master key of webhook secrets."""
        return self.webhook_key_file or self.data_dir / "keys" / "webhooks.key"

    @property
    def vault_key_path(self) -> Path:
        """Locate the keys of the vault."""
        return self.vault_key_file or self.data_dir / "keys" / "vault.json"

    @property
    def webhook_retry_delays(self) -> list[float]:
        """Give the pauses between attempts, in seconds."""
        return [float(delay) for delay in self.webhook_retry_delays_s.split(",")]

    @property
    def issuer_key_path(self) -> Path:
        """Locate the key of the local token issuer."""
        return self.issuer_key_file or self.data_dir / "keys" / "issuer.key"

    @property
    def objects_path(self) -> Path:
        """Locate the directory of objects, for when no object store URL is given."""
        return self.data_dir / "objects"

    def shown(self) -> dict[str, str]:
        """Give every setting as text, secrets as `***`."""
        return {name: _text(getattr(self, name)) for name in type(self).model_fields}


def settings_reference() -> str:
    """Print `docs/reference/settings.md` from the fields themselves."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_bounds(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(
        [
            "Everything below was computed or run for real; no mocks, no invented numbers.",
            "",
            "# Settings",
            "",
            "Printed from `ops/settings.py` by `make docs`. They are set in the environment; an empty value is unset.",
            "`soma settings` shows what a process would run with, secrets as `***`.",
            "",
            "| Variable | Default | Allowed | Meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def child_environment(**added: str) -> dict[str, str]:
    """Give this process's environment with more variables, for a child: arguments can be read by others."""
    return {**os.environ, **added}


def _default(field: FieldInfo) -> str:
    return "unset" if field.default is None else f"`{_text(field.default)}`"


def _bounds(field: FieldInfo) -> str:
    if isinstance(field.annotation, type) and issubclass(field.annotation, StrEnum):
        return ", ".join(f"`{choice}`" for choice in field.annotation)
    if field.annotation is bool:
        return "`true`, `false`"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [(sign, getattr(mark, name, None)) for mark in field.metadata for name, sign in signs.items()]
    return ", ".join(f"{sign} {bound:,}" for sign, bound in found if bound is not None)


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return "***"
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
