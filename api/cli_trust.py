"""The words `soma keys`, `soma sign` and `soma trust`: what signers, reviewers and operators do.

A private key stays with its file: statements are signed here, and only envelopes are sent. What is about to be signed
is read from the bytes themselves and held against what was asked for, so a service cannot have another thing signed.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli_remote import URL, Json, Remote, Token, Url, print_json, read_document

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from domain.trust.dsse import Envelope
    from domain.trust.keys import Signer
    from domain.trust.verification import DocumentStatement, Statement

keys_app = typer.Typer(help="Key files of signers: new, show.", no_args_is_help=True)
trust_app = typer.Typer(
    help="Signer policies, the constitution, reviews and signatures of a service.", no_args_is_help=True
)

KeyFile = Annotated[Path, typer.Argument(help="The key file: PEM, PKCS8, Ed25519.")]
KeyFiles = Annotated[list[Path], typer.Option("--key", help="A key file to sign with.")]
Passphrase = Annotated[
    str | None,
    typer.Option(
        envvar="SOMA_KEY_PASSPHRASE",
        show_envvar=False,
        help="Of the key file; SOMA_KEY_PASSPHRASE otherwise.",
    ),
]
Capsule = Annotated[str, typer.Argument(help="The address of a capsule.")]
Document = Annotated[Path, typer.Argument(help="JSON of a signer policy or a constitution; - for stdin.")]
Yes = Annotated[bool, typer.Option("--yes", help="Sign without asking.")]
DAYS = 7


# --------------------------------------------------------------------------- keys


@keys_app.command("new")
def new_key(file: KeyFile, passphrase: Passphrase = None) -> None:
    """Make a key, write its file for its owner only, and print the public key; nothing is ever written over."""
    from domain.trust.keys import key_text
    from ops.keys_signers import make_signer

    print(key_text(make_signer(file, passphrase).public_key))


@keys_app.command("show")
def show_key(file: KeyFile, passphrase: Passphrase = None) -> None:
    """Print the public key of a key file, as policies pin it."""
    from domain.trust.keys import key_text

    print(key_text(_signers([file], passphrase)[0].public_key))


def _signers(files: list[Path], passphrase: str | None) -> list[Signer]:
    from ops.keys_signers import open_signer

    return [open_signer(file, passphrase) for file in files]


# --------------------------------------------------------------------------- signing


def sign(
    capsule: Capsule,
    key: KeyFiles,
    request: Annotated[
        Path | None, typer.Option(help="The request in a file instead, for a machine without network.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Sign only under the policy of this address.")] = None,
    constitution: Annotated[
        str | None, typer.Option(help="Sign only under the constitution of this address.")
    ] = None,
    out: Annotated[
        bool, typer.Option("--out", help="Print the envelope instead of bringing it to the service.")
    ] = False,
    yes: Yes = False,
    passphrase: Passphrase = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Sign a capsule with a key file, and bring the envelope to the service."""
    from domain.trust.signatures import capsule_address
    from domain.trust.verification import sign_statement

    signers = _signers(key, passphrase)
    asked = read_document(request) if request else _asked(url, token, capsule)
    pins = {"capsule": capsule_address(capsule), "policy": policy, "constitution": constitution}
    statement = _checked(asked, {name: value for name, value in pins.items() if value})
    _confirm(statement, yes)
    envelope = sign_statement(statement, *signers)
    if out or request:
        print_json(envelope)
        return
    with Remote(url, token) as remote:
        signing = remote.post(f"/v1/signings/{capsule}/signatures", {"envelope": _plain(envelope)})
    names = ", ".join(one["name"] for one in signing["kept"][-1]["signed"])
    print(f"signed by {names}", file=sys.stderr)


def _asked(url: str, token: str | None, capsule: str) -> Any:
    with Remote(url, token) as remote:
        return remote.get(f"/v1/signings/{capsule}/request")


def _checked(asked: Any, pins: dict[str, str]) -> Statement:
    """Read the statement from the bytes that are to be signed, and hold it against what the signer wants to sign."""
    from domain.errors import StatementUnexpectedError
    from domain.trust.dsse import Envelope, Signature
    from domain.trust.signatures import PURPOSE
    from domain.trust.verification import Statement, read_statement

    members = asked if isinstance(asked, dict) else {}
    shaped = {name: members.get(name) for name in ("payload", "payloadType")} | {"signatures": [{"sig": ""}]}
    envelope = Envelope.parse(shaped)
    statement = read_statement(Envelope(envelope.payload, envelope.payload_type, [Signature(b"")]))
    if not isinstance(statement, Statement) or statement.purpose != PURPOSE:
        raise StatementUnexpectedError("what is asked for is no statement about a capsule")
    for name, wanted in pins.items():
        if getattr(statement, name) != wanted:
            raise StatementUnexpectedError(
                f"the request names another {name}", expected=wanted, found=getattr(statement, name)
            )
    return statement


def _confirm(statement: Statement | DocumentStatement, yes: bool) -> None:
    """Show what is about to be signed, and ask where somebody is there to answer."""
    for name in statement.__struct_fields__:
        print(f"  {name:<13}{getattr(statement, name)}", file=sys.stderr)
    if not yes and sys.stdin.isatty():
        typer.confirm("Sign this?", abort=True, err=True)


def _plain(envelope: Envelope) -> Any:
    import msgspec

    return msgspec.to_builtins(envelope)


# --------------------------------------------------------------------------- policies and the constitution


@trust_app.command("address")
def address(document: Document) -> None:
    """Print the address of a signer policy or a constitution; it is what gets signed."""
    print(read_terms(document)[2])


@trust_app.command("vouch")
def vouch(
    document: Document,
    key: KeyFiles,
    policy: Annotated[
        str | None, typer.Option(help="Address of the policy in force; asked of the service otherwise.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="For how many days it holds.")] = DAYS,
    yes: Yes = False,
    passphrase: Passphrase = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Sign a new version of a signer policy or of the constitution, and print the envelope."""
    from domain.trust.pinned import PUBLICATION
    from domain.trust.verification import DocumentStatement, sign_statement
    from domain.values import moment_text

    purpose, terms, named = read_terms(document)
    signers = _signers(key, passphrase)
    if policy is None:
        name = terms["name"] if purpose == "policy" else PUBLICATION
        with Remote(url, token) as remote:
            policy = remote.get(f"/v1/signer-policies/{name}")["versions"][-1]["address"]
    until = moment_text(datetime.now(UTC) + timedelta(days=days))
    statement = DocumentStatement(named, until, policy, purpose)
    _confirm(statement, yes)
    print_json(sign_statement(statement, *signers))


@trust_app.command("adopt")
def adopt(
    document: Document,
    envelope: Annotated[
        list[Path] | None, typer.Option(help="An envelope of `soma trust vouch`; one for each file.")
    ] = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Bring a signer policy or a constitution into force."""
    purpose, terms, named = read_terms(document)
    envelopes = [read_document(path) for path in envelope or []]
    path = "/v1/signer-policies" if purpose == "policy" else "/v1/constitution"
    with Remote(url, token) as remote:
        remote.post(path, {"document": terms, "envelopes": envelopes})
    print(named)


@trust_app.command("recover")
def recover(
    document: Document,
    reason: Annotated[str, typer.Option(help="What became of the keys.")],
    url: Url = URL,
    token: Token = None,
) -> None:
    """Replace a policy that can vouch for nothing any more: one operator proposes, another confirms a day later."""
    _, terms, named = read_terms(document)
    with Remote(url, token) as remote:
        path = f"/v1/signer-policies/{terms.get('name', 'publication')}/recovery"
        policy = remote.post(path, {"document": terms, "reason": reason})
    print("proposed" if policy["recovery"] else "in force", file=sys.stderr)
    print(named)


@trust_app.command("revoke-key")
def revoke_key(
    public_key: Annotated[str, typer.Argument(help="The key, as the policy pins it.")],
    reason: Annotated[str, typer.Option(help="Why it must not count any more.")],
    policy: Annotated[str, typer.Option(help="The name of the policy.")] = "publication",
    url: Url = URL,
    token: Token = None,
) -> None:
    """Take a key out of every version of a signer policy, at once and for good."""
    with Remote(url, token) as remote:
        body = {"public_key": public_key, "reason": reason}
        found = remote.post(f"/v1/signer-policies/{policy}/revocations", body)
    print(f"revoked at {found['revoked'][-1]['revoked_at']}", file=sys.stderr)


@trust_app.command("policy")
def show_policy(
    name: Annotated[str, typer.Argument(help="The name of the policy.")] = "publication",
    url: Url = URL,
    token: Token = None,
) -> None:
    """Print a signer policy with its versions and revoked keys, as JSON."""
    with Remote(url, token) as remote:
        print_json(remote.get(f"/v1/signer-policies/{name}"))


@trust_app.command("constitution")
def show_constitution(url: Url = URL, token: Token = None) -> None:
    """Print the constitution with its versions, as JSON."""
    with Remote(url, token) as remote:
        print_json(remote.get("/v1/constitution"))


def read_terms(path: Path) -> tuple[str, dict[str, Any], str]:
    """Read a document: what it is for, its members in the form that is hashed, and its address.

    Errors: invalid_request.
    """
    import msgspec
    from pydantic import ValidationError

    from domain.errors import InvalidError
    from domain.trust.constitutions import ConstitutionTerms
    from domain.trust.pinned import PolicyTerms

    value = read_document(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    try:
        if schema == "soma/signer_policy/1":
            policy = PolicyTerms.model_validate(value).document()
            return "policy", msgspec.to_builtins(policy), policy.address
        constitution = ConstitutionTerms.model_validate(value).document()
        return "constitution", msgspec.to_builtins(constitution), constitution.sealed()[1]
    except ValidationError as error:
        faults = {".".join(map(str, f["loc"])) or "it": f["msg"] for f in error.errors(include_input=False)}
        raise InvalidError(
            f"{path} is neither a signer policy nor a constitution",
            faults=[f"{place}: {why}" for place, why in faults.items()],
        ) from error


# --------------------------------------------------------------------------- reviews and signatures


@trust_app.command("reviews")
def list_reviews(
    status: Annotated[
        str, typer.Option(help="pending, approved, rejected, expired, closed or all.")
    ] = "pending",
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 100,
    as_json: Json = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """List reviews, the newest first."""
    with Remote(url, token) as remote:
        found = remote.get("/v1/reviews", status=None if status == "all" else status, limit=limit)["items"]
    if as_json:
        print_json(found)
        return
    for one in found:
        # An address is as wide as a terminal; it gets a line of its own, to be copied.
        print(one["capsule"])
        print(
            f"  {one['status']}, {_votes(one)} approvals, due {one['due_at'][:16].replace('T', ' ')} UTC,",
            end=" ",
        )
        print(f"submitted by {one['submitted_by']} of {one['tenant']}")
    print(f"{len(found)} reviews", file=sys.stderr)


@trust_app.command("decide")
def decide(
    capsule: Capsule,
    decision: Annotated[str, typer.Argument(help="approve or reject.")],
    notes: Annotated[str, typer.Option(help="What others should know.")] = "",
    override: Annotated[
        bool, typer.Option("--override", help="Settle it alone, as an operator; needs notes.")
    ] = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Approve a capsule or reject it."""
    body = {"decision": decision, "notes": notes, "is_override": override}
    with Remote(url, token) as remote:
        print(remote.post(f"/v1/reviews/{capsule}/decisions", body)["status"])


@trust_app.command("submit")
def submit(
    capsule: Capsule,
    envelope: Annotated[Path, typer.Argument(help="An envelope of `soma sign --out`; - for stdin.")],
    url: Url = URL,
    token: Token = None,
) -> None:
    """Bring an envelope that was signed elsewhere."""
    with Remote(url, token) as remote:
        body = {"envelope": read_document(envelope)}
        signing = remote.post(f"/v1/signings/{capsule}/signatures", body)
    print(f"{len(signing['kept'])} envelopes are kept", file=sys.stderr)


@trust_app.command("verify")
def verify(
    capsule: Capsule,
    as_of: Annotated[str | None, typer.Option(help="A position in the log or an RFC 3339 time.")] = None,
    as_json: Json = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Say who signed a capsule, who is missing and what was refused; end with 1 if the threshold is not met."""
    with Remote(url, token) as remote:
        found = remote.get(f"/v1/signings/{capsule}/verification", as_of=as_of)
    if as_json:
        print_json(found)
    else:
        rows = [[one["name"], "signed", one["subject"]] for one in found["signed"]]
        rows += [[name, "missing", ""] for name in found["missing"]]
        rows += [[one["name"] or "", "refused", one["reason"]] for one in found["refused"]]
        _table(["key", "", ""], rows)
        met = "is met" if found["verified"] else "is not met"
        print(f"{len(found['signed'])} of {found['threshold']}: the threshold {met}")
    raise typer.Exit(0 if found["verified"] else 1)


def _votes(review: dict[str, Any]) -> str:
    given = sum(one["decision"] == "approve" for one in review["decisions"])
    return f"{given} of {review['required']}"


def _table(titles: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
