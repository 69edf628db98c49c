"""Refusals to start: migrations, the embedded database, settings, keys."""

from __future__ import annotations

from domain.errors.families import ConflictError, InvalidError, Retry, UnavailableError


class MigrationAlteredError(UnavailableError, code="migration_altered", status=503, retry=Retry.NEVER):
    """A migration was edited after it had been applied."""


class MigrationGapError(UnavailableError, code="migration_gap", status=503, retry=Retry.NEVER):
    """The numbers of the migrations do not run from 1 without a gap."""


class MigrationUnknownError(UnavailableError, code="migration_unknown", status=503, retry=Retry.NEVER):
    """The database has a migration this release does not know; it was written by a newer one."""


class MigrationFailedError(UnavailableError, code="migration_failed", status=503, retry=Retry.NEVER):
    """A migration was refused by the database, or its check returned a row; nothing of it was kept."""


class DatabaseStartError(UnavailableError, code="database_start_failed", status=503, retry=Retry.NEVER):
    """The embedded PostgreSQL did not start."""


class EngineStartError(UnavailableError, code="engine_start_failed", status=503, retry=Retry.NEVER):
    """The embedded ClickHouse engine did not start."""


class ClickHouseRefusedError(UnavailableError, code="clickhouse_refused", status=503, retry=Retry.NEVER):
    """ClickHouse refused a statement of the service."""


class SettingsInvalidError(InvalidError, code="invalid_settings"):
    """A setting has a value that is not allowed."""


class ListenError(UnavailableError, code="cannot_listen", status=503, retry=Retry.NEVER):
    """The address to listen on is taken or not ours."""


class KeyFileError(UnavailableError, code="key_file_unusable", status=503, retry=Retry.NEVER):
    """A private key file cannot be used."""


class FollowerSupersededError(UnavailableError, code="follower_superseded"):
    """Another process moved this follower's position; it starts over from where that one stands."""


class FollowerUnknownError(InvalidError, code="follower_unknown"):
    """There is no follower of this name."""


class BrokerUnavailableError(UnavailableError, code="broker_unavailable"):
    """No Kafka broker answers, or it could not finish what was asked; nothing of it is visible to readers."""


class BrokerRefusedError(UnavailableError, code="broker_refused", status=503, retry=Retry.NEVER):
    """The Kafka cluster refuses this client: its rights or its options do not allow it."""


class TopicUnsuitableError(UnavailableError, code="topic_unsuitable", status=503, retry=Retry.NEVER):
    """A Kafka topic is there with settings that would lose records or their order."""


class OffsetLostError(UnavailableError, code="offset_lost", status=503, retry=Retry.NEVER):
    """The Kafka topic no longer holds what comes next; its retention took it away."""


class RelayFencedError(ConflictError, code="relay_fenced"):
    """Another relay has taken this one's place; the Kafka cluster refuses what this one sends."""


class RelayDivergedError(UnavailableError, code="relay_diverged", status=503, retry=Retry.NEVER):
    """Kafka holds records that are not in this log; the log was restored to an earlier state, or it is another one."""


class RebuildDiffersError(UnavailableError, code="rebuild_differs", status=503, retry=Retry.NEVER):
    """What was rebuilt does not agree with the log; the live tables were left as they are."""


class RebuildRunsError(ConflictError, code="rebuild_runs"):
    """Another rebuild of this follower's tables runs now."""
