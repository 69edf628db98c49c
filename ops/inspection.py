"""What an operator wants to know about a database before trusting it: looked at, never changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

from domain.errors import UnavailableError
from domain.log.notes import Signer
from ops.embedded import EmbeddedPostgres
from ops.keys import log_signer
from ops.migrate import Applied, applied
from ops.postgres import connect_owner
from ops.settings import Settings

LOG_TABLES = "SELECT to_regclass('log_identity') IS NOT NULL AND to_regclass('log_head') IS NOT NULL"


class Seen(NamedTuple):
    """A database as it was found; without our tables it has no identity and no size."""

    server_version: int
    applied: list[Applied]
    identity: tuple[str, str] | None
    tree_size: int | None


@contextmanager
def reached(settings: Settings) -> Iterator[str]:
    """Give the URL of the database the settings mean, as it is; the embedded server runs meanwhile.

    Errors: database_start_failed.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedPostgres.start(settings.data_dir) as server:
        yield server.url


def look(url: str) -> Seen:
    """Read a database's version, migrations, log identity and size.

    Errors: migration_gap, unavailable.
    """
    try:
        with connect_owner(url) as connection:
            version = connection.info.server_version
            ours = connection.execute(LOG_TABLES).fetchone()
            identity = size = None
            if ours and ours[0]:
                identity = connection.execute("SELECT origin, vkey FROM log_identity").fetchone()
                size = connection.execute("SELECT size FROM log_head").fetchone()
    except psycopg.OperationalError as outage:
        raise UnavailableError("the database does not answer", internal=str(outage)) from outage
    return Seen(version, applied(url), identity, size[0] if size else None)


def existing_signer(settings: Settings) -> Signer | None:
    """Open the key that signs checkpoints, if it was made already.

    Errors: key_file_unusable, malformed_key.
    """
    path = settings.log_key_path
    return log_signer(path, settings.log_origin) if path.exists() else None


def key_mode(path: Path) -> int | None:
    """Give the permission bits of a key file; None where there is no file."""
    return path.stat().st_mode & 0o777 if path.exists() else None
