"""`soma doctor`: every part an installation stands on, looked at one after another, none of them changed."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import httpx

from api.serving import listen
from domain.errors import LedgerError, ListenError
from ops import inspection, migrate
from ops.clickhouse import open_clickhouse
from ops.kafka import brokers
from ops.objects import ObjectStore
from ops.settings import PREFIX, Settings

SERVER_VERSION_MIN = 150_000
FREE_BYTES_MIN = 200_000_000
PROBE = b"soma doctor was here\n"


class Verdict(StrEnum):
    """How a part is; what is not there yet is made by the first start."""

    WELL = "ok"
    ABSENT = "not yet"
    UNWELL = "FAILED"


class Line(NamedTuple):
    """One part and what was found."""

    part: str
    verdict: Verdict
    found: str


Check = Callable[[Settings], Iterator[Line]]


def examine(settings: Settings) -> Iterator[Line]:
    """Look at every part; what fails is a line, never an error."""
    checks: dict[str, Check] = {
        "settings": _settings,
        "data directory": _data_dir,
        "database": _database,
        "log key": _log_key,
        "issuer key": _issuer_key,
        "object store": _objects,
        "clickhouse": _clickhouse,
        "kafka": _kafka,
        "address": _address,
        "disk": _disk,
    }
    for part, check in checks.items():
        try:
            yield from check(settings)
        except LedgerError as error:
            facts = ", ".join(f"{name} {value}" for name, value in error.facts.items())
            yield Line(
                part, Verdict.UNWELL, f"{error.code}: {error.message}" + (f" ({facts})" if facts else "")
            )
        except OSError as error:
            yield Line(part, Verdict.UNWELL, f"{error.strerror}: {error.filename}")


def _settings(settings: Settings) -> Iterator[Line]:
    given = sorted(PREFIX + name.upper() for name in settings.model_fields_set)
    yield Line("settings", Verdict.WELL, f"given: {', '.join(given)}" if given else "all defaults")


def _data_dir(settings: Settings) -> Iterator[Line]:
    path = settings.data_dir.resolve()
    if path.exists():
        writable = os.access(path, os.W_OK | os.X_OK)
        yield Line("data directory", Verdict.WELL if writable else Verdict.UNWELL, f"{path}, {_rights(path)}")
        return
    above = next(parent for parent in path.parents if parent.exists())
    verdict = Verdict.ABSENT if os.access(above, os.W_OK | os.X_OK) else Verdict.UNWELL
    yield Line("data directory", verdict, f"{path} will be made in {above}, {_rights(above)}")


def _rights(path: Path) -> str:
    return "writable" if os.access(path, os.W_OK | os.X_OK) else "not writable for us"


def _database(settings: Settings) -> Iterator[Line]:
    if settings.database_url is None and not (settings.data_dir / "postgres").exists():
        yield Line("database", Verdict.ABSENT, "embedded, made at the first start")
        return
    kind = "embedded" if settings.database_url is None else "by URL"
    with inspection.reached(settings) as url:
        seen = inspection.look(url)
        pending = migrate.pending(url)
    recent = seen.server_version >= SERVER_VERSION_MIN
    version = f"PostgreSQL {seen.server_version // 10_000}.{seen.server_version % 10_000}, {kind}"
    yield Line(
        "database", Verdict.WELL if recent else Verdict.UNWELL, version + ("" if recent else "; 15 is needed")
    )
    waiting = f", {len(pending)} pending: run `soma migrate`" if pending else ""
    verdict = Verdict.UNWELL if pending and seen.applied else Verdict.ABSENT if pending else Verdict.WELL
    yield Line("migrations", verdict, f"{len(seen.applied)} applied{waiting}")
    yield _identity(settings, seen)


def _identity(settings: Settings, seen: inspection.Seen) -> Line:
    if seen.identity is None:
        return Line("log identity", Verdict.ABSENT, "the database holds no log yet")
    try:
        signer = inspection.existing_signer(settings)
    except LedgerError as unusable:
        return Line("log identity", Verdict.UNWELL, f"{unusable.code}: {unusable.message}")
    if signer is None:
        return Line("log identity", Verdict.UNWELL, f"the key of {seen.identity[1]} is not there")
    if seen.identity != (signer.name, signer.key.text):
        return Line(
            "log identity",
            Verdict.UNWELL,
            f"the database holds {seen.identity[1]}, the key is {signer.key.text}",
        )
    return Line("log identity", Verdict.WELL, f"{signer.key.text}, {seen.tree_size:,} records")


def _log_key(settings: Settings) -> Iterator[Line]:
    line = _key("log key", settings.log_key_path)
    if line.verdict is Verdict.WELL:
        inspection.existing_signer(settings)
    yield line


def _issuer_key(settings: Settings) -> Iterator[Line]:
    if settings.jwks_url is not None:
        yield Line("issuer key", Verdict.WELL, f"not used: tokens are checked against {settings.jwks_url}")
    else:
        yield _key("issuer key", settings.issuer_key_path)


def _key(part: str, path: Path) -> Line:
    mode = inspection.key_mode(path)
    if mode is None:
        return Line(part, Verdict.ABSENT, f"{path}, made at the first start")
    return Line(part, Verdict.UNWELL if mode & 0o077 else Verdict.WELL, f"{path}, mode {mode:o}")


def _objects(settings: Settings) -> Iterator[Line]:
    if settings.object_store_url is None and not settings.objects_path.exists():
        yield Line("object store", Verdict.ABSENT, f"{settings.objects_path}, made at the first start")
        return

    async def probe() -> bool:
        store = ObjectStore.open(settings)
        return await store.get(await store.put(PROBE)) == PROBE

    place = "by URL" if settings.object_store_url is not None else str(settings.objects_path)
    try:
        read_back = asyncio.run(probe())
    except LedgerError:
        raise
    except Exception as error:  # noqa: BLE001 - each store has errors of its own
        yield Line("object store", Verdict.UNWELL, f"{place}: {type(error).__name__}")
        return
    yield Line(
        "object store", Verdict.WELL if read_back else Verdict.UNWELL, f"{place}, written and read back"
    )


def _clickhouse(settings: Settings) -> Iterator[Line]:
    if settings.clickhouse_url is None and not (settings.data_dir / "clickhouse").exists():
        yield Line("clickhouse", Verdict.ABSENT, "embedded engine, made when followers start")
        return

    async def probe() -> str:
        async with open_clickhouse(settings) as clickhouse:
            return str((await clickhouse.rows("SELECT version()"))[0][0])

    kind = "embedded engine" if settings.clickhouse_url is None else "by URL"
    yield Line("clickhouse", Verdict.WELL, f"ClickHouse {asyncio.run(probe())}, {kind}")


def _kafka(settings: Settings) -> Iterator[Line]:
    if settings.kafka_bootstrap_servers is None:
        yield Line("kafka", Verdict.WELL, "not used: no brokers are named")
        return
    yield Line(
        "kafka", Verdict.WELL, f"{brokers(settings)} broker(s) answer at {settings.kafka_bootstrap_servers}"
    )


def _address(settings: Settings) -> Iterator[Line]:
    place = f"{settings.host} port {settings.port}"
    try:
        listen(settings.host, settings.port).close()
    except ListenError as taken:
        ours = _is_ours(settings)
        yield Line("address", Verdict.WELL if ours else Verdict.UNWELL, f"{place}: {ours or taken.message}")
        return
    yield Line("address", Verdict.WELL, f"{place} is free")


def _is_ours(settings: Settings) -> str:
    try:
        answer = httpx.get(f"http://{settings.host}:{settings.port}/ready", timeout=2)
        return f"the service of {answer.json()['origin']} answers" if answer.status_code == 200 else ""
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""


def _disk(settings: Settings) -> Iterator[Line]:
    path = settings.data_dir.resolve()
    free_bytes = shutil.disk_usage(
        path if path.exists() else next(p for p in path.parents if p.exists())
    ).free
    verdict = Verdict.WELL if free_bytes >= FREE_BYTES_MIN else Verdict.UNWELL
    yield Line("disk", verdict, f"{free_bytes / 1e9:,.1f} GB free")
