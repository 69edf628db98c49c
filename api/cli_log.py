"""The words `soma ledger` and `soma audit`: whoever operates the log, and whoever does not trust who does.

A word that finds a broken promise ends with status 1, names the first one, and lists all others. Results go to
stdout, with `--json` as one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from domain.log.audit import Report
    from domain.log.audit_findings import Finding
    from ops.export import Exported, Origin
    from ops.rebuild import RebuildReport
    from ops.settings import Settings
    from projections.rematch import Rematch

ledger_app = typer.Typer(
    help="The log of this installation: verify, rebuild, rematch, export, prove.", no_args_is_help=True
)
audit_app = typer.Typer(
    help="Anybody's log, from outside: export, verify, check a receipt, an invoice or one line of it.",
    no_args_is_help=True,
)

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Key = Annotated[str | None, typer.Option(help="The log's verifier key, or a file that holds it.")]
Since = Annotated[
    list[Path] | None,
    typer.Option(exists=True, dir_okay=False, help="A checkpoint kept from earlier; may be given again."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="A witness policy the checkpoint must satisfy."),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="SOMA_TOKEN",
        help="Token of an auditor; better by SOMA_TOKEN, as arguments can be read by others.",
    ),
]
Directory = Annotated[
    bool, typer.Option("--directory", help="Write a directory of plain files, not one .zip file.")
]
Target = Annotated[Path, typer.Argument(help="Where the export is written; nothing may be there yet.")]

SHOWN_MAX = 100
KEY_BYTES_MAX = 10_000

Progress = Callable[[int, int], None]


# --------------------------------------------------------------------------- soma ledger


@ledger_app.command("verify")
def verify_ledger(
    data_dir: DataDir = None,
    key: Key = None,
    since: Since = None,
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Verify the database of this installation: the log, its tables, and that what follows points into it."""
    from ops.inspection import reached
    from ops.verify import DATABASE_CODES, verify_database

    settings = _settings(data_dir)
    vkey = key_text(key) or _own_key(settings)
    with reached(settings) as url, _bar("verifying", "records", as_json) as progress:
        found = verify_database(url, vkey, since=_texts(since), policy=text_of(policy), progress=progress)
    _show_audit(found.audit, found.all_findings, DATABASE_CODES, as_json)


@ledger_app.command("rebuild")
def rebuild_ledger(
    data_dir: DataDir = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", "--swap", help="Put the rebuilt rows in the place of those that differ."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compute records, money and the catalogue again from the log alone, and compare them bit by bit."""
    import api.app  # noqa: F401 - every kind of aggregate must be known
    from ops.inspection import reached
    from ops.rebuild import rebuild

    with reached(_settings(data_dir)) as url, _bar("rebuilding", "events", as_json) as progress:
        report = rebuild(url, progress, repair=repair)
    _show_rebuild(report, as_json)
    raise typer.Exit(0 if report.identical or report.repaired else 1)


@ledger_app.command("rematch")
def rematch_contract(
    contract_id: Annotated[str, typer.Argument(help="The contract a match led to, `contract-...`.")],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make the match behind a contract again from the log alone, and compare it with what was recorded."""
    found = asyncio.run(_rematched(_settings(data_dir), contract_id))
    _show_rematch(found, as_json)
    raise typer.Exit(0 if found.is_same else 1)


async def _rematched(settings: Settings, contract_id: str) -> Rematch:
    from api.routes.market import POLICY
    from ops.runtime import open_runtime
    from projections.rematch import rematch

    async with open_runtime(settings) as opened:
        return await rematch(opened.reader, contract_id, POLICY)


@ledger_app.command("export")
def export_ledger(
    target: Target, data_dir: DataDir = None, directory: Directory = False, as_json: Json = False
) -> None:
    """Write the whole log for an auditor: records, tiles, checkpoints, keys; from the database."""
    _export_database(target, data_dir, directory, as_json)


@ledger_app.command("prove")
def prove(
    place: Annotated[str, typer.Argument(help="A position, or an address `sha3-512:...`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the proof here; stdout without it.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write the exact bytes of the record here.")] = None,
    size: Annotated[int | None, typer.Option(min=0, help="Prove up to the checkpoint of this size.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write the receipt of a record: the proof that it is in the log, to be checked offline."""
    proof, stored = asyncio.run(_receipt(_settings(data_dir), place, size))
    if record is not None:
        record.write_bytes(stored)
    if out is not None:
        out.write_bytes(proof)
    else:
        sys.stdout.buffer.write(proof)


async def _receipt(settings: Settings, place: str, size: int | None) -> tuple[bytes, bytes]:
    from domain.log.records import parse_address
    from ops.proofs import receipt
    from ops.runtime import open_runtime

    async with open_runtime(settings) as opened:
        if place.isascii() and place.isdigit() and len(place) < 19:
            stored = await opened.reader.at(int(place))
        else:
            stored = await opened.reader.addressed(parse_address(place))
        return (await receipt(opened, stored.position, size)).to_bytes(), stored.record


# --------------------------------------------------------------------------- soma audit


@audit_app.command("export")
def export_audit(
    target: Target,
    url: Annotated[str | None, typer.Option(help="A running service; the database otherwise.")] = None,
    token: Token = None,
    data_dir: DataDir = None,
    directory: Directory = False,
    as_json: Json = False,
) -> None:
    """Write the whole log for an auditor: records, tiles, checkpoints, keys; over HTTP or from the database."""
    if url is None:
        _export_database(target, data_dir, directory, as_json)
    else:
        asyncio.run(_export_server(url, token, target, directory, as_json))


@audit_app.command("verify")
def verify_audit(
    source: Annotated[str, typer.Argument(help="An export file, a directory, or the address of a service.")],
    key: Key = None,
    since: Since = None,
    policy: PolicyFile = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Verify a whole log without its database and without trusting who runs it."""
    from domain.log.audit import audit
    from ops.audit_sources import open_source

    try:
        opened = open_source(source, token=token)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="SOURCE") from error
    try:
        with _bar("verifying", "records", as_json) as progress:
            report = audit(
                opened.read,
                vkey=key_text(key),
                since=_texts(since),
                policy=text_of(policy),
                progress=progress,
                manifest_required=opened.is_export,
            )
    finally:
        opened.close()
    _show_audit(report, report.findings, {}, as_json)


@audit_app.command("receipt")
def verify_receipt_file(
    proof: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The `.tlog-proof` file.")],
    record: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The exact bytes of the record.")],
    key: Annotated[str, typer.Option(help="The log's verifier key, or a file that holds it.")],
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Check that the log of a key holds exactly this record, offline."""
    from domain.log.audit_proof import verify_receipt

    report = verify_receipt(proof.read_bytes(), record.read_bytes(), key_text(key) or "", text_of(policy))
    if as_json:
        print_json({"ok": report.ok, **_members(report)})
    else:
        rows = [
            ("log", report.origin),
            ("position", report.position),
            ("tree size", report.size),
            ("root", report.root),
            ("address", report.address),
            ("witnesses", _quorum(report.quorum)),
        ]
        print_rows(rows)
        print_findings(report.findings, {}, 0)
    raise typer.Exit(0 if report.ok else 1)


# --------------------------------------------------------------------------- exports


def _export_database(target: Path, data_dir: Path | None, directory: bool, as_json: bool) -> None:
    from ops.export import DatabaseOrigin
    from ops.runtime import open_runtime

    async def run() -> None:
        async with open_runtime(_settings(data_dir)) as opened:
            await _export(DatabaseOrigin(opened), target, directory, as_json)

    asyncio.run(run())


async def _export_server(url: str, token: str | None, target: Path, directory: bool, as_json: bool) -> None:
    from ops.export import ServerOrigin

    origin = ServerOrigin.at(url, token)
    try:
        await _export(origin, target, directory, as_json)
    finally:
        await origin.close()


async def _export(origin: Origin, target: Path, directory: bool, as_json: bool) -> None:
    from ops.export import export

    with _bar("exporting", "records", as_json) as progress:
        exported = await export(origin, target, progress, as_directory=directory)
    _show_export(exported, as_json)


# --------------------------------------------------------------------------- what is given


def _settings(data_dir: Path | None) -> Settings:
    from api.cli import load_settings

    return load_settings(data_dir=data_dir)


def _own_key(settings: Settings) -> str:
    """Give the key of this installation's log; who has none must say whose log it is."""
    from ops.inspection import existing_signer

    signer = existing_signer(settings)
    if signer is None:
        raise typer.BadParameter("there is no log key here; name the log's key", param_hint="--key")
    return signer.key.text


def key_text(given: str | None) -> str | None:
    """Read a verifier key that was given, or is in a file that was."""
    if given is None:
        return None
    path = Path(given)
    if len(given) < 1_000 and path.is_file() and path.stat().st_size <= KEY_BYTES_MAX:
        return path.read_text("utf-8", errors="replace").strip()
    return given.strip()


def _texts(files: Sequence[Path] | None) -> list[str]:
    return [text_of(file) or "" for file in files or ()]


def text_of(file: Path | None) -> str | None:
    """Read a file as text."""
    # What is not UTF-8 is for the verifier to name.
    return None if file is None else file.read_bytes().decode("utf-8", "replace")


# --------------------------------------------------------------------------- what is shown


@contextmanager
def _bar(what: str, of_what: str, quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(of_what),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), disable=quiet) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _show_audit(report: Report, findings: list[Finding], more_codes: dict[str, str], as_json: bool) -> None:
    """Print an audit and end with 1 if a promise is broken."""
    if as_json:
        members = _members(report) | {"findings": [_members(finding) for finding in findings]}
        first = _members(findings[0]) if findings else None
        print_json(members | {"ok": not findings, "first": first})
        raise typer.Exit(1 if findings else 0)
    rows = [
        ("log", report.origin),
        ("tree size", f"{report.size:,}"),
        ("root", report.root),
        ("key", "pinned" if report.key_pinned else "[yellow]the log's own word: pin it with --key[/yellow]"),
        ("records", f"{report.records:,} ({report.bytes:,} bytes)"),
        ("streams", f"{report.streams:,}"),
        ("accounts", f"{report.accounts:,}"),
        ("earlier checkpoints", f"{report.checkpoints:,}"),
        ("witnesses", _quorum(report.quorum)),
        ("digest of the final state", report.digest),
    ]
    print_rows(rows)
    print_findings(findings, more_codes, report.dropped_count)
    raise typer.Exit(1 if findings else 0)


def _show_export(exported: Exported, as_json: bool) -> None:
    if as_json:
        print_json({**exported._asdict(), "path": str(exported.path)})
        return
    rows = [
        ("export", str(exported.path)),
        ("log", exported.origin),
        ("tree size", f"{exported.size:,}"),
        ("files", f"{exported.file_count:,}"),
        ("bytes", f"{exported.bytes_read:,}"),
    ]
    print_rows(rows)


def _show_rebuild(report: RebuildReport, as_json: bool) -> None:
    if as_json:
        extra = {"identical": report.identical, "events_per_s": round(report.events_per_s)}
        differences = [difference._asdict() for difference in report.differences]
        print_json(_members(report) | extra | {"differences": differences})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    speed = f"{report.event_count:,} events in {report.seconds:.2f} s, {report.events_per_s:,.0f} events/s"
    console.print(f"rebuilt from the log alone: {speed}")
    table = Table("table", "digest of the rows that are there", "digest of the rebuilt rows", "", box=None)
    for name, (live, rebuilt) in report.digests.items():
        table.add_row(
            name,
            _short(live),
            _short(rebuilt),
            "[green]identical[/]" if live == rebuilt else "[red]differs[/]",
        )
    console.print(table)
    for difference in report.differences[:SHOWN_MAX]:
        console.print(f"{difference.table} {' '.join(map(str, difference.key))}", markup=False)
        console.print(f"  is      {difference.live}\n  must be {difference.rebuilt}", markup=False)
    if report.difference_count > len(report.differences[:SHOWN_MAX]):
        console.print(f"{report.difference_count:,} rows differ in all")
    if report.repaired:
        console.print("[green]put right[/]: every row is now the rebuilt one; start running services again")


def _show_rematch(found: Rematch, as_json: bool) -> None:
    import msgspec

    if as_json:
        members = msgspec.to_builtins({**found._asdict(), "same": found.is_same})
        print_json(members)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"{found.contract_id}, matched in the log up to position {found.as_of_position:,}")
    table = Table("offer", "seller", "price", "recorded score", "score made again", "", box=None)
    for row in _rematch_rows(found):
        table.add_row(*row)
    console.print(table)
    console.print("[green]the same match[/]" if found.is_same else "[red]not the same match[/]")
    if not found.same_policy:
        console.print("it was made under another policy than this release has")


def _rematch_rows(found: Rematch) -> Iterator[tuple[str, ...]]:
    recorded = {one.offer_id: one for one in found.recorded}
    again = {one.offer_id: one for one in found.recomputed}
    for offer_id in recorded | again:
        was, now = recorded.get(offer_id), again.get(offer_id)
        one = was or now
        assert one is not None
        scores = ["not chosen" if side is None else side.score_breakdown.total for side in (was, now)]
        price = f"{one.price_per_round.amount} {one.price_per_round.currency}"
        verdict = "[green]the same[/]" if was == now else "[red]differs[/]"
        yield offer_id, one.seller, price, *scores, verdict


def _short(digest: str) -> str:
    return digest if len(digest) <= 32 else f"{digest[:28]}..."


def _quorum(quorum: bool | None) -> str:
    return {None: "none asked for", True: "quorum reached", False: "quorum not reached"}[quorum]


def print_rows(rows: Sequence[tuple[str, Any]]) -> None:
    """Print names and values."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    Console(highlight=False).print(table)


def print_findings(findings: Sequence[Finding], more_codes: dict[str, str], dropped_count: int) -> None:
    """Name the first broken promise, then list all."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from domain.log.audit_findings import CODES

    console = Console(highlight=False)
    if not findings:
        console.print("[green]every promise holds[/]")
        return
    promises = CODES | more_codes
    first = findings[0]
    console.print(f"[red]broken:[/] {escape(promises[first.code])}")
    console.print(f"[red]{first.code}[/] {escape(first.message)}")
    table = Table("code", "where", box=None)
    table.add_column("what was found", overflow="fold")
    for finding in findings[:SHOWN_MAX]:
        table.add_row(finding.code, escape(_where(finding)), escape(finding.message))
    console.print(table)
    unlisted = len(findings) - SHOWN_MAX + dropped_count
    if unlisted > 0:
        console.print(f"and {unlisted:,} more")


def _where(finding: Finding) -> str:
    places = [
        finding.path,
        finding.stream,
        None if finding.position is None else f"position {finding.position}",
    ]
    return ", ".join(place for place in places if place)


def _members(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


def print_json(value: dict[str, Any]) -> None:
    """Print one object."""
    import orjson

    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
