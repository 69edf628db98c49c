"""The words `soma dead-letters`: what could not be taken in, why, and what is to become of it."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from ops.dead_letters import DeadLetter
    from ops.runtime import Runtime

dead_letters_app = typer.Typer(
    help="Messages that could not be taken in: list, show, requeue, discard.", no_args_is_help=True
)

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LetterId = Annotated[int, typer.Argument(min=1, help="The number of the letter.")]

T = TypeVar("T")


@dead_letters_app.command("list")
def list_letters(
    state: Annotated[str, typer.Option(help="open, requeued, discarded or all.")] = "open",
    code: Annotated[str | None, typer.Option(help="Only letters with this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List dead letters, the latest first."""
    if state not in ("open", "requeued", "discarded", "all"):
        raise typer.BadParameter("a state is open, requeued, discarded or all", param_hint="--state")

    async def work(opened: Runtime) -> Sequence[DeadLetter]:
        letters = _letters(opened)
        return await letters.list(state=None if state == "all" else state, code=code, limit=limit)  # type: ignore[arg-type]

    found = _run(work, data_dir)
    if as_json:
        _print([_shown(letter) for letter in found])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "topic", "place", "code", "detail", "attempts", "state", box=None)
    for one in found:
        place = f"{one.partition}/{one.offset}"
        table.add_row(str(one.id), one.topic, place, one.code, one.detail[:80], str(one.attempts), one.state)
    Console(highlight=False, markup=False).print(table)


@dead_letters_app.command("show")
def show_letter(letter_id: LetterId, data_dir: DataDir = None) -> None:
    """Show one dead letter with its payload, as JSON."""
    _print(_shown(_run(lambda opened: _letters(opened).get(letter_id), data_dir), whole=True))


@dead_letters_app.command("requeue")
def requeue_letter(
    letter_id: LetterId,
    reading: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file with the reading to take in its place."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Have a dead letter taken in again, as it came or mended; it stays open where that fails."""
    from domain.canonical import read_json
    from projections.ingest import requeue

    mended = None if reading is None else read_json(reading.read_bytes())

    async def work(opened: Runtime) -> DeadLetter:
        return await requeue(opened.ledger, _letters(opened), letter_id, _who(), mended)

    _print(_shown(_run(work, data_dir)))


@dead_letters_app.command("discard")
def discard_letter(
    letter_id: LetterId,
    reason: Annotated[str, typer.Option(help="Why it is given up.")],
    data_dir: DataDir = None,
) -> None:
    """Give a dead letter up; it is kept, with the reason."""

    async def work(opened: Runtime) -> DeadLetter:
        return await _letters(opened).mark(letter_id, "discarded", _who().subject, reason)

    _print(_shown(_run(work, data_dir)))


def _run(work: Callable[[Runtime], Awaitable[T]], data_dir: Path | None) -> T:
    from api.cli import load_settings
    from ops.runtime import open_runtime
    from ops.telemetry import configure_logging

    settings = load_settings(data_dir=data_dir)
    configure_logging(settings.log_level, settings.log_format)

    async def opened() -> T:
        async with open_runtime(settings) as runtime:
            return await work(runtime)

    return asyncio.run(opened())


def _letters(opened: Runtime) -> Any:
    from ops.dead_letters import DeadLetters

    return DeadLetters(opened.reader.pool)


def _who() -> Any:
    """Name the person at this terminal: whoever reaches the database may decide."""
    from domain.ledger import Caller

    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "operator"
    return Caller(name, "platform", frozenset({"operator"}))


def _shown(letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    from api.routes.dead_letters import shown

    return shown(letter, whole=whole)


def _print(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, default=lambda at: at.isoformat())
    print()
