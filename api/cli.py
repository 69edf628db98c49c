"""The command line, `soma`.

A refusal prints its code, what happened and what to do, and ends with status 2; a check that found something ends with
status 1. What a command prints for other programs goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli_audit import audit_invoice, audit_line
from api.cli_billing import billing_app
from api.cli_dead_letters import dead_letters_app
from api.cli_documents import export_documents, show_invoice, show_statement
from api.cli_follow import follow, rebuild
from api.cli_invoicing import ask_quote, import_price_list, run_billing
from api.cli_log import audit_app, ledger_app
from api.cli_marketplace import marketplace_app
from api.cli_persona import persona_app
from api.cli_quotas import quota_app
from api.cli_rentals import purchase_app, rental_app, subscription_app
from api.cli_timers import timers
from api.cli_trust import keys_app, sign, trust_app
from api.cli_vault import vault_app
from domain.errors import LedgerError, Retry, SettingsInvalidError

# Everything else is imported where it is used, so that `soma token` does not wait for the whole house.
if TYPE_CHECKING:
    from api.reference import Word
    from ops.runtime import Runtime
    from ops.settings import Settings

app = typer.Typer(
    name="soma",
    help="Soma Ledger: an event-sourced ledger for a marketplace of AI personas.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(ledger_app, name="ledger")
audit_app.command("invoice")(audit_invoice)
audit_app.command("line")(audit_line)
app.add_typer(audit_app, name="audit")
billing_app.command("run")(run_billing)
billing_app.command("quote")(ask_quote)
billing_app.command("import-prices")(import_price_list)
billing_app.command("invoice")(show_invoice)
billing_app.command("statement")(show_statement)
billing_app.command("export")(export_documents)
billing_app.add_typer(quota_app, name="quota")
app.add_typer(billing_app, name="billing")
app.add_typer(dead_letters_app, name="dead-letters")
app.add_typer(keys_app, name="keys")
app.add_typer(vault_app, name="vault")
app.add_typer(trust_app, name="trust")
app.command()(sign)
app.add_typer(persona_app, name="persona")
app.add_typer(marketplace_app, name="marketplace")
app.add_typer(rental_app, name="rental")
app.add_typer(subscription_app, name="subscription")
app.add_typer(purchase_app, name="purchase")
app.command()(follow)
app.command()(rebuild)
app.command()(timers)

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on; SOMA_HOST otherwise.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on, 0 for any; SOMA_PORT otherwise.")]
Embedded = Annotated[bool, typer.Option("--embedded", help="Use the data directory even where URLs are set.")]

CAUSE_LINES_MAX = 10
REMEDIES = {
    "archive_invalid": "Take the archive again from where it came; who made this one did not make it by our rules.",
    "artifact_mismatch": "Mend the manifest, or leave digests and sizes out of it: they are reckoned from the files.",
    "broker_refused": "See SOMA_KAFKA_OPTIONS, and what the account may do on the cluster.",
    "broker_unavailable": "Check SOMA_KAFKA_BOOTSTRAP_SERVERS, and that a broker runs and is reachable.",
    "cannot_listen": "Stop what listens there, or choose another address with --host, --port or --metrics-port.",
    "constitution_mismatch": "Build it under the constitution in force: `soma trust constitution` prints it.",
    "database_start_failed": "Read postgres/log under the data directory, then run `soma doctor`.",
    "capsule_tampered": "Use none of it, and take the archive again from where it came.",
    "capsule_version_taken": "Count the version up; what was sealed under a version stays.",
    "clickhouse_refused": "Its words are above; if a table is missing, `soma follow` migrates when it starts.",
    "consent_required": "Read what it obliges you to, and accept each by name: --accept, or `accepted` in the body.",
    "dead_letter_closed": "It was decided before; `soma dead-letters show` says by whom and how.",
    "dead_letter_not_found": "`soma dead-letters list --state all` shows the letters there are.",
    "dead_letter_not_taken": "Send a mended reading with --reading, or discard the letter.",
    "engine_start_failed": "Read clickhouse/engine.log under the data directory, then run `soma doctor`.",
    "follower_unknown": "Choose one that is known; Kafka's are, where SOMA_KAFKA_BOOTSTRAP_SERVERS is set.",
    "insufficient_funds": "Put money into the wallet first; an operator books it with POST /v1/deposits.",
    "invalid_settings": "`soma settings --markdown` lists every setting and what it allows.",
    "key_file_unusable": "Restore the key file from its backup, or make it readable by its owner alone (chmod 600).",
    "log_damaged": "Run `soma audit verify` to name every broken promise, and restore from a backup.",
    "log_identity_mismatch": "Use the key and SOMA_LOG_ORIGIN this database was made with, or another database.",
    "manifest_invalid": "Mend each place; docs/howto/write-a-manifest.md says how a manifest is written.",
    "persona_not_found": "`soma marketplace list-personas` shows what is there; yours needs an id that nobody has.",
    "price_not_offered": "Choose one of those that are: --currency, --period, or another way to have it.",
    "price_unclear": "Say which of them: --currency, --period.",
    "purchase_not_found": "`soma purchase list` shows yours.",
    "refund_closed": "It is yours for good; `soma purchase show` says until when it could be given back.",
    "rental_active": "Its time runs already; `soma rental check --json` prints its access token.",
    "rental_lapsed": "Rent it again; what was reserved for this one is free.",
    "rental_not_active": "Rent it again; a time that has run out cannot be made longer.",
    "rental_not_found": "`soma rental list` shows yours.",
    "rental_not_open": "It is over and settled; `soma rental show` says how. Rent it again to go on.",
    "self_dealing": "What is your own costs nothing; use it without renting it from yourself.",
    "signer_policy_missing": "An operator adopts the first one with `soma trust adopt`.",
    "statement_unexpected": "Sign nothing; ask whoever sent the request what it is about.",
    "subscription_ended": "Subscribe again with `soma subscription start`; `soma subscription show` says how it ended.",
    "subscription_not_found": "`soma subscription list` shows yours.",
    "unauthorized": "Set SOMA_TOKEN to a token that is valid now; `soma token` prints one of the local issuer.",
    "threshold_not_met": "Have more of the pinned keys sign: a capsule with `soma sign`, else with `soma trust vouch`.",
    "unavailable": "Check that the server runs and is reachable; `soma doctor` looks at each part.",
}
RETRIES = {
    Retry.NEVER: "Sending the same again will not help.",
    Retry.AS_IS: "Send the same again in a moment.",
    Retry.AFTER_READ: "Read the present state, then decide again.",
}


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="soma")
    except LedgerError as error:
        complain(error)
        sys.exit(2)


def complain(error: LedgerError) -> None:
    """Print a refusal: its code, what happened, and what to do."""
    print(f"{error.code}: {error.message}", file=sys.stderr)
    for name, value in error.facts.items():
        if isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value):
            print(f"  {name}:", file=sys.stderr)
            for one in value:
                print(f"    {_told(one)}", file=sys.stderr)
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"  {name}: {shown}", file=sys.stderr)
    if error.internal:
        for line in error.internal.strip().splitlines()[-CAUSE_LINES_MAX:]:
            print(f"  | {line.strip()}", file=sys.stderr)
    print(f"  -> {REMEDIES.get(error.code, RETRIES[error.retry])}", file=sys.stderr)


def _told(one: Any) -> str:
    """Say one of several things in a line; a fault of a document begins with its place."""
    if not isinstance(one, dict):
        return str(one)
    if not {"path", "why"} <= one.keys():
        return ", ".join(f"{name} {value}" for name, value in one.items() if value is not None)
    line = f" (line {one['line']})" if one.get("line") else ""
    got = f"; there stands {one['got']!r}" if one.get("got") is not None else ""
    return f"{one['path'] or '/'}{line}: {one['why']}{got}"


def load_settings(**given: Any) -> Settings:
    """Read the settings from the environment; what is given here comes first, None means not given.

    Errors: invalid_settings.
    """
    from pydantic import ValidationError

    from ops.settings import PREFIX, Settings

    embedded = given.pop("embedded", False)
    chosen = {name: value for name, value in given.items() if value is not None}
    if embedded:
        chosen |= dict.fromkeys(
            (
                "database_url",
                "object_store_url",
                "clickhouse_url",
                "clickhouse_reader_url",
                "kafka_bootstrap_servers",
            )
        )
    try:
        return Settings(**chosen)
    except ValidationError as error:
        # The value itself is not repeated: it may be a secret.
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        said = {
            PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else "settings": fault["msg"]
            for fault in faults
        }
        raise SettingsInvalidError("the environment holds a setting that cannot be used", **said) from None


# --------------------------------------------------------------------------- running


@app.command()
def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    embedded: Embedded = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for /metrics of the followers, 0 for any; none otherwise.")
    ] = None,
) -> None:
    """Start the service with everything it needs, and say what is on, where, and how to get a token."""
    from ops.settings import LogFormat

    settings = load_settings(data_dir=data_dir, host=host, port=port, embedded=embedded)
    if sys.stderr.isatty() and "log_format" not in settings.model_fields_set:
        settings = settings.model_copy(update={"log_format": LogFormat.CONSOLE})
    followers = ["-m", "api.cli", "follow", "--owned", "--data-dir", str(settings.data_dir)]
    followers += ["--embedded"] if embedded else []
    followers += [] if metrics_port is None else ["--metrics-port", str(metrics_port)]
    _run(settings, banner=True, children={"followers": followers})


@app.command()
def serve(data_dir: DataDir = None, host: Host = None, port: Port = None, embedded: Embedded = False) -> None:
    """Run the service for production: one process, its URL on stdout once it answers, structured lines on stderr."""
    _run(load_settings(data_dir=data_dir, host=host, port=port, embedded=embedded), banner=False)


def _run(settings: Settings, banner: bool, children: dict[str, list[str]] | None = None) -> None:
    from api.serving import run
    from ops.telemetry import configure_logging

    configure_logging(settings.log_level, settings.log_format)

    def announce(url: str, opened: Runtime) -> None:
        if banner:
            _banner(settings, url, opened)
        else:
            print(url, flush=True)

    run(settings, announce, children or {})


def _banner(settings: Settings, url: str, opened: Runtime) -> None:
    from rich.console import Console

    # Lines are never broken: some of them are there to be copied.
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]Soma Ledger[/bold] at [bold]{url}[/bold]")
    for name, value in [
        ("log", opened.signer.name),
        ("log key", opened.signer.key.text),
        (
            "database",
            f"embedded, {settings.data_dir}/postgres" if settings.database_url is None else "by URL",
        ),
        (
            "sql",
            f"{url}/clickhouse, ClickHouse's HTTP dialect; the password is a token of role billing or auditor",
        ),
        ("clickhouse", "embedded engine" if settings.clickhouse_url is None else "by URL"),
        ("kafka", settings.kafka_bootstrap_servers or "none; events at /v1/log/feed and by webhooks"),
        ("objects", f"{settings.objects_path}" if settings.object_store_url is None else "by URL"),
        ("tokens", settings.jwks_url or f"local issuer, {settings.issuer_key_path}"),
        ("a token", f"soma token --data-dir {settings.data_dir} --tenant acme --role owner"),
        ("its words", f"{url}/openapi.json"),
        ("stop", "Ctrl-C; what was begun is finished first"),
    ]:
        console.print(f"  [dim]{name:<10}[/dim]", value, markup=True)


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Directory of the demonstration.")] = Path("var/demo"),
    url: Annotated[
        str | None, typer.Option(help="A running service; --data-dir is then where its keys lie.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when the story is told, even on a terminal.")
    ] = False,
    ci: Annotated[str, typer.Option(envvar="CI", hidden=True)] = "",
) -> None:
    """Play the whole marketplace loop on real data, over the public API only, against an embedded service."""
    from api.demo import play

    watched = sys.stdout.isatty() and ci.lower() in ("", "0", "false")
    raise typer.Exit(play(load_settings(data_dir=data_dir, embedded=True), url, stay=watched and not once))


# --------------------------------------------------------------------------- looking and preparing


@app.command()
def migrate(
    data_dir: DataDir = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; end with 1 if anything is pending.")
    ] = False,
) -> None:
    """Bring the database to this release: list what is applied, and apply what is pending."""
    from rich.console import Console
    from rich.table import Table

    from ops import migrate as migrations
    from ops.inspection import reached

    with reached(load_settings(data_dir=data_dir)) as url:
        pending = migrations.pending(url)
        fresh = [] if check else migrations.migrate(url)
        applied = migrations.applied(url)
    table = Table("migration", "state", "since", box=None)
    new = {was.number for was in fresh}
    for was in applied:
        state = "applied now" if was.number in new else "applied"
        table.add_row(f"{was.number:04d}_{was.name}", state, f"{was.applied_at:%Y-%m-%d %H:%M:%S %Z}")
    waiting = [migration for migration in pending if check]
    for migration in waiting:
        table.add_row(migration.label, "[yellow]pending[/yellow]", "")
    Console().print(table)
    raise typer.Exit(1 if waiting else 0)


@app.command()
def doctor(data_dir: DataDir = None, port: Port = None) -> None:
    """Look at every part this installation stands on; end with 1 if one of them is not well."""
    from rich.console import Console
    from rich.table import Table

    from api.cli_doctor import Verdict, examine

    colours = {Verdict.WELL: "green", Verdict.UNWELL: "red", Verdict.ABSENT: "yellow"}
    table = Table("part", "", box=None)
    table.add_column("what was found", overflow="fold")
    unwell = False
    for line in examine(load_settings(data_dir=data_dir, port=port)):
        unwell |= line.verdict is Verdict.UNWELL
        table.add_row(line.part, f"[{colours[line.verdict]}]{line.verdict}[/]", line.found)
    Console().print(table)
    raise typer.Exit(1 if unwell else 0)


@app.command()
def settings(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the settings reference instead.")
    ] = False,
) -> None:
    """Show what a process would run with, secrets as ***."""
    from rich.console import Console
    from rich.table import Table

    from ops.settings import PREFIX, settings_reference

    if markdown:
        print(settings_reference(), end="")
        return
    read = load_settings()
    table = Table("variable", "from", box=None)
    table.add_column("value", overflow="fold")
    for name, value in read.shown().items():
        source = "environment" if name in read.model_fields_set else "default"
        table.add_row(PREFIX + name.upper(), source, value)
    Console(markup=False, highlight=False).print(table)


@app.command()
def token(
    tenant: Annotated[str, typer.Option(help="For whom the token speaks, such as acme.")],
    role: Annotated[
        list[str],
        typer.Option(help="provider, owner, operator, reviewer, signer, auditor, billing or service."),
    ],
    subject: Annotated[str, typer.Option(help="Who acts; records name it as their actor.")] = "someone",
    ttl: Annotated[
        int | None, typer.Option(min=1, help="Life in seconds; SOMA_TOKEN_TTL_S otherwise.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Print a token of the local issuer, and nothing else, to stdout."""
    from ops.tokens import ROLES, LocalIssuer, TokenGate

    if strangers := sorted(set(role) - ROLES):
        raise typer.BadParameter(
            f"no such role: {', '.join(strangers)}; there are {', '.join(sorted(ROLES))}"
        )
    read = load_settings(data_dir=data_dir)
    if read.jwks_url is not None:
        raise SettingsInvalidError("tokens come from the issuer SOMA_JWKS_URL names; this service makes none")
    issuer = LocalIssuer(read)
    minted = issuer.mint(subject, tenant, role, ttl)
    # What the service would refuse is refused here already.
    TokenGate(read, issuer).verify(minted)
    print(minted)


@app.command()
def docs(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write to; docs/reference of this tree otherwise.")
    ] = None,
) -> None:
    """Print the references - errors, events, settings, OpenAPI, AsyncAPI, HTTP, command line - from the code."""
    from api import asyncapi
    from api.app import VERSION
    from api.reference import written_pages
    from api.schemas import written_schemas

    tree = Path(__file__).resolve().parent.parent / "docs"
    pages = {(out or tree / "reference") / name: text for name, text in written_pages().items()}
    pages[(out or tree) / "asyncapi.yaml"] = asyncapi.page(VERSION)
    pages |= {(out or tree) / "schemas" / name: text for name, text in written_schemas().items()}
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path, file=sys.stderr)


def words() -> list[Word]:
    """Describe every command, as the reference prints it."""
    return list(_words(typer.main.get_command(app), "soma"))


def _words(command: Any, path: str) -> Iterator[Word]:
    from api.reference import Option, Word

    for name, inner in getattr(command, "commands", {}).items():
        yield from _words(inner, f"{path} {name}")
    if hasattr(command, "commands"):
        return
    shown = [
        given for given in command.params if not getattr(given, "hidden", False) and given.name != "help"
    ]
    options = [
        Option(
            " / ".join([*given.opts, *given.secondary_opts])
            if given.param_type_name == "option"
            else given.name.upper(),
            _kind(given),
            given.required,
            "" if given.default in (None, False, ()) or callable(given.default) else f"`{given.default}`",
            getattr(given, "help", "") or "",
        )
        for given in shown
    ]
    yield Word(path, " ".join((command.help or "").split()), options)


def _kind(given: Any) -> str:
    named = str(given.type_descriptor.annotation)
    words = {"bool": "flag", "Path": "path", "int": "integer", "float": "number"}
    kind = next((word for name, word in words.items() if name in named), "text")
    return f"{kind}, repeatable" if "list" in named or given.nargs == -1 else kind


if __name__ == "__main__":
    main()
