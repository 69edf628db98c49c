"""The word `soma persona`: from an author's folder to a published capsule, and back from an archive.

    evaluate  what the suite says of a folder or an archive, here and now
    export    a folder is sealed into a capsule; or the archive of a capsule is taken away
    publish   a folder or a capsule goes all the way, as far as others let it; run again it goes on
    verify    an archive and who vouches for it, without a service
    import    an archive is brought to a service, which verifies all of it

A check that found something ends with status 1, a refusal with 2, and what waits for other people with 3.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli_remote import URL, Json, Remote, Token, Url, print_json, read_document

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from api.persona_remote import Progress
    from domain.persona.evaluation.harness import Constitution
    from domain.persona.evaluation.report import Compared
    from domain.persona.manifest import PersonaManifest
    from domain.trust.verification import Verification

persona_app = typer.Typer(
    help="Persona capsules: evaluate, export, publish, verify, import.", no_args_is_help=True
)

WAITING = 3
WAITS = {"requested": "the service checks and seals", "submitted": "the service scans and evaluates"}
ADDRESS = re.compile(r"(?:sha3-512:)?[0-9a-f]{128}", re.ASCII)

Folder = Annotated[Path, typer.Argument(help="A folder with a manifest and the files it names.")]
Source = Annotated[Path, typer.Argument(help="A folder with a manifest, or the archive of a capsule.")]
Archive = Annotated[Path, typer.Argument(help="The archive of a capsule.")]
What = Annotated[str, typer.Argument(help="A folder with a manifest, or the address of a capsule.")]
Wait = Annotated[float, typer.Option(min=1, help="How long to wait for the service's workers, in seconds.")]
Fence = Annotated[int | None, typer.Option(min=1, help="The fence of training mode, while it is on.")]
WAIT_S = 600.0


@persona_app.callback()
def persona() -> None:
    """Work with persona capsules."""


# --------------------------------------------------------------------------- evaluate


@persona_app.command("evaluate")
def evaluate(
    source: Source,
    suite: Annotated[str, typer.Option(help="A published suite.")] = "baseline",
    constitution: Annotated[
        Path | None,
        typer.Option(help="The constitution's document; without it, the one in force at the service."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Run a suite on a persona, here; ends with 1 if the guard does not pass, or a report in it says otherwise."""
    from api.persona_files import opened
    from ops.evaluation_run import Part, run_apart

    found = _constitution(constitution, url, token)
    with opened(source, found.address) as files:
        manifest = files.manifest
        parts = [Part(part.name, part.bytes, files.chunks(part)) for part in manifest.parts]
        run = run_apart(manifest, suite, found, parts, scans=False)
    if report is not None:
        report.write_bytes(run.report)
    if as_json:
        print_json({"report": run.compared, "named_report": run.named_report, "faults": run.named_faults})
    else:
        _show_evaluation(manifest, run.compared, run.named_report, run.named_faults)
    raise typer.Exit(0 if run.compared.passed and not run.named_faults else 1)


def _constitution(file: Path | None, url: str, token: str | None) -> Constitution:
    """Take a constitution from a file, or the one in force from the service."""
    from api.cli_trust import read_terms
    from domain.errors import InvalidError
    from domain.persona.evaluation.harness import Constitution

    if file is None:
        with Remote(url, token) as remote:
            version = remote.get("/v1/constitution")["versions"][-1]
        return Constitution(version["address"], version["document"]["utility"])
    purpose, terms, address = read_terms(file)
    if purpose != "constitution":
        raise InvalidError(f"{file} is a signer policy, and no constitution")
    return Constitution(address, terms["utility"])


def _show_evaluation(manifest: PersonaManifest, compared: Compared, named: str, faults: list[str]) -> None:
    from rich.table import Table

    console = _console()
    about = manifest.metadata
    console.print(f"{about.persona_id} {about.version}, suite {compared.suite.name} {compared.suite.version}")
    table = Table("measure", "mean", "95 % interval", "cases", box=None)
    for name, interval in compared.metrics.items():
        table.add_row(name, interval.mean, f"{interval.ci95[0]} to {interval.ci95[1]}", f"{interval.n:,}")
    console.print(table)
    utility = compared.utility
    asked = utility.accepted + utility.refused
    console.print(
        f"utility {utility.value} against {utility.bound}, {utility.accepted:,} of {asked:,} accepted"
    )
    console.print(f"report {compared.address}")
    console.print(f"the report in the manifest: {named}")
    for why in [*compared.why, *faults]:
        console.print(f"  not passed: {why}")
    console.print("passed" if compared.passed and not faults else "not passed")


# --------------------------------------------------------------------------- export


@persona_app.command("export")
def export(
    what: What,
    out: Annotated[
        Path | None, typer.Option(help="Write the archive here, and beside it who vouches for it.")
    ] = None,
    fence: Fence = None,
    wait: Wait = WAIT_S,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Have a folder sealed into a capsule, or take the archive of a capsule away."""
    with Remote(url, token) as remote, _bar(as_json) as progress:
        address = _address(remote, what, fence, wait, progress)
        written = _taken(remote, address, out, progress) if out is not None else {}
    if as_json:
        print_json({"capsule": address} | written)
    else:
        print(address)
        for name in written.values():
            print(f"wrote {name}", file=sys.stderr)


def _address(remote: Remote, what: str, fence: int | None, wait: float, progress: Progress) -> str:
    """Give the address of a capsule, which a folder is sealed into first."""
    from api.persona_files import open_folder
    from api.persona_remote import sealed
    from domain.errors import InvalidError

    if ADDRESS.fullmatch(what):
        return "sha3-512:" + what.removeprefix("sha3-512:")
    if not Path(what).is_dir():
        raise InvalidError(f"{what} is neither a folder nor the address of a capsule")
    in_force = remote.get("/v1/constitution")["versions"][-1]["address"]
    return sealed(remote, open_folder(Path(what), in_force), fence, wait, progress)


def _taken(remote: Remote, address: str, out: Path, progress: Progress) -> dict[str, str]:
    """Write a capsule's archive, and its attestations if somebody was asked for them."""
    from api.persona_remote import download
    from domain.errors import SigningNotFoundError

    download(remote, f"/v1/capsules/{address}/archive", out, progress)
    beside = out.with_name(out.name + ".attestations.json")
    try:
        download(remote, f"/v1/capsules/{address}/attestations", beside)
    except SigningNotFoundError:
        return {"archive": str(out)}
    return {"archive": str(out), "attestations": str(beside)}


# --------------------------------------------------------------------------- publish


@persona_app.command("publish")
def publish(
    what: What,
    fence: Fence = None,
    wait: Wait = WAIT_S,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Take a persona as far as it goes: sealed, submitted, inspected, and published once all others have agreed.

    Ends with 0 when it is published, with 3 while approvals or signatures are missing - run it again to go on - and
    with 1 where something was found that neither will change.
    """
    with Remote(url, token) as remote, _bar(as_json) as progress:
        address = _address(remote, what, fence, wait, progress)
        capsule, missing = _inspected(remote, address, wait, progress)
        if capsule["status"] != "published" and not (capsule["status"] == "inspected" and missing):
            # A capsule that was taken off the market is refused here, in the service's own words.
            capsule = remote.post(f"/v1/capsules/{address}/publish")
    _tell_publication(address, capsule, missing, as_json)
    if capsule["status"] != "published":
        raise typer.Exit(1 if _found(missing) else WAITING)


def _inspected(remote: Remote, address: str, wait: float, progress: Progress) -> tuple[Any, list[Any]]:
    """Submit a capsule unless that is done, wait until it was scanned and evaluated, and say what is missing."""
    from api.persona_remote import waited

    path = f"/v1/capsules/{address}"
    missing: list[Any] = []
    if _submittable(remote.get(path)["status"], missing):
        remote.post(f"{path}/submit")
    capsule = waited(remote, path, "submitted", wait, progress)
    missing = _missing(remote, path, capsule)
    if _submittable(capsule["status"], missing):
        remote.post(f"{path}/submit")
        capsule = waited(remote, path, "submitted", wait, progress)
        missing = _missing(remote, path, capsule)
    return capsule, missing


def _missing(remote: Remote, path: str, capsule: Any) -> list[Any]:
    if capsule["status"] == "published":
        return []
    return list(remote.get(f"{path}/preflight")["missing"])


def _submittable(status: str, missing: list[Any]) -> bool:
    """Say whether a capsule waits for being submitted: for the first time, or since its review ran out."""
    ran_out = any(one["code"] == "not_approved" and one["facts"]["status"] == "expired" for one in missing)
    return status in ("exported", "imported") or (status == "inspected" and ran_out)


def _found(missing: list[Any]) -> list[Any]:
    """Pick what no further approval or signature will change."""
    waits = [one for one in missing if one["code"] in ("not_approved", "threshold_not_met")]
    rejected = [one for one in waits if one["facts"].get("status") in ("rejected", "closed")]
    # The policy repeats what the gates say; alone it says something of its own.
    others = [one for one in missing if one not in waits and (one["code"] != "policy_denied" or not waits)]
    return rejected + others


def _tell_publication(address: str, capsule: Any, missing: list[Any], as_json: bool) -> None:
    if as_json:
        print_json({"capsule": address, "status": capsule["status"], "missing": missing})
        return
    print(address)
    print(capsule["status"], file=sys.stderr)
    if capsule["status"] == "published":
        return
    # The policy repeats what the gates say; it is told where it says something of its own.
    told = [one for one in missing if one["code"] != "policy_denied"] or missing
    for one in told:
        print(f"  missing: {one['detail']} ({one['code']})", file=sys.stderr)
        for line in _details(one["facts"]):
            print(f"    {line}", file=sys.stderr)
    if _found(missing):
        print(
            "No approval or signature changes this: mend it, and publish it as another version.",
            file=sys.stderr,
        )
    else:
        print("Reviewers decide with `soma trust decide`, signers sign with `soma sign`.", file=sys.stderr)
        print("Then run this again.", file=sys.stderr)


def _details(facts: Any) -> list[str]:
    """Name what was found, and where; never the found text, which may be a secret."""
    findings = facts.get("findings") or []
    places = [f"{one['severity']} {one['rule']} in {one['part']}, line {one['line']}" for one in findings]
    return places + list(facts.get("why") or [])


# --------------------------------------------------------------------------- verify


@persona_app.command("verify")
def verify(
    archive: Archive,
    attestations: Annotated[
        Path | None, typer.Option(help="Who vouches for it; ARCHIVE.attestations.json if that is there.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Address of the signer policy you trust; needed for signatures.")
    ] = None,
    constitution: Annotated[
        str | None, typer.Option(help="Address of the constitution it must name.")
    ] = None,
    capsule: Annotated[str | None, typer.Option(help="The address it must have.")] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Look at the archive alone, whoever made it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify an archive and the signatures beside it, without a service; ends with 1 if they are too few."""
    from api.persona_files import named_address, verify_archive
    from domain.errors import ConstitutionMismatchError

    manifest = verify_archive(archive, None if capsule is None else _full(capsule))
    address = named_address(manifest, capsule)
    named = manifest.governance.constitution
    if constitution is not None and named != _full(constitution):
        raise ConstitutionMismatchError(expected=_full(constitution), found=named)
    found = None if unsigned else _vouched(manifest, _beside(archive, attestations), policy)
    if as_json:
        print_json(
            {"capsule": address, "parts": len(manifest.parts), "verification": found, "constitution": named}
        )
    else:
        _show_verified(manifest, found)
    raise typer.Exit(0 if found is None or found.verified else 1)


def _full(address: str) -> str:
    return "sha3-512:" + address.removeprefix("sha3-512:")


def _beside(archive: Path, attestations: Path | None) -> Any:
    from domain.errors import InvalidError

    path = attestations or archive.with_name(archive.name + ".attestations.json")
    if not path.is_file():
        raise InvalidError(f"{path} is not there; name the attestations, or look at the archive --unsigned")
    return read_document(path)


def _vouched(manifest: PersonaManifest, sent: Any, policy: str | None) -> Verification:
    """Say what the signatures beside an archive come to, under the policy that is trusted and no other."""
    from domain.errors import InvalidError
    from domain.persona.vouching import vouched
    from domain.values import moment_text

    if policy is None:
        raise InvalidError(
            "name the signer policy you trust with --policy, or look at the archive --unsigned"
        )
    return vouched(manifest, sent, _full(policy), moment_text(datetime.now(UTC)))


def _show_verified(manifest: PersonaManifest, found: Verification | None) -> None:
    about = manifest.metadata
    print(manifest.address)
    print(
        f"{about.persona_id} {about.version}: {len(manifest.parts)} parts, every byte as sealed",
        file=sys.stderr,
    )
    if found is None:
        print("nobody's signature was looked at", file=sys.stderr)
        return
    print(f"signed by {len(found.signed)}, needed {found.threshold}", file=sys.stderr)
    for one in found.signed:
        print(f"  signed   {one.name} ({one.subject})", file=sys.stderr)
    for name in found.missing:
        print(f"  missing  {name}", file=sys.stderr)
    for refused in found.refused:
        print(f"  refused  {refused.name or refused.public_key}: {refused.reason}", file=sys.stderr)
    print("verified" if found.verified else "NOT verified", file=sys.stderr)


# --------------------------------------------------------------------------- import


@persona_app.command("import")
def import_capsule(
    archive: Archive,
    attestations: Annotated[
        Path | None, typer.Option(help="Who vouches for it; ARCHIVE.attestations.json if that is there.")
    ] = None,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Also a version before one that was imported.")
    ] = False,
    wait: Wait = WAIT_S,
    url: Url = URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Bring an archive to a service, which verifies every byte, signature and rule before it keeps anything."""
    from api.persona_files import measured
    from api.persona_remote import raise_problem, upload, waited

    sent = _beside(archive, attestations)
    address = measured(archive)["digest"]
    with Remote(url, token) as remote, _bar(as_json) as progress:
        upload(remote, archive, address, progress)
        body = {"archive": address, "attestations": sent, "allow_older": allow_older}
        asked = remote.post("/v1/imports", body)
        done = waited(remote, f"/v1/imports/{asked['id']}", "requested", wait, progress)
    if done["status"] != "completed":
        raise_problem(done["problem"])
    if as_json:
        print_json(done)
    else:
        print(done["capsule"])


# --------------------------------------------------------------------------- what is shown


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """Show how far files and workers are, to people only."""
    from api.persona_remote import silent

    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[size]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            size = f"{decimal(done)} of {decimal(total)}" if total else ""
            if what not in tasks:
                tasks[what] = bars.add_task(WAITS.get(what, what), total=total or None, size=size)
            bars.update(tasks[what], completed=done, total=total or None, size=size)

        yield tell
