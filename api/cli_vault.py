"""The words about the vault: `soma keys rotate-vault` and `soma vault sweep`. The service may run meanwhile."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_trust import keys_app

# Everything else is imported where it is used, so that other words do not wait for it.
if TYPE_CHECKING:
    from ops.vault import Vault

vault_app = typer.Typer(help="The encrypted objects of artifacts and capsules.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of everything embedded; SOMA_DATA_DIR otherwise.")
]


@vault_app.callback()
def vault() -> None:
    """Look after the encrypted objects of artifacts and capsules."""


@keys_app.command("rotate-vault")
def rotate_vault(
    data_dir: DataDir = None,
    retire: Annotated[
        bool, typer.Option("--retire", help="Then forget every key that wraps nothing any more, for good.")
    ] = False,
) -> None:
    """Make a new key for the vault and wrap every object's own key under it; no object is written anew."""
    opened = _opened(data_dir)
    keys = opened.keys
    if keys is None:
        raise typer.BadParameter(
            "the vault has no keys: its encryption is off", param_hint="SOMA_VAULT_ENCRYPTION"
        )
    version = keys.rotate()
    done = opened.rewrap()
    print(f"key {version} wraps {done.objects:,} objects, {done.changed:,} of them anew")
    if retire:
        needed = opened.keys_in_use()
        gone = [one for one in keys.versions if one not in needed and one != version]
        keys.retire(gone)
        print(f"retired: {', '.join(map(str, gone)) or 'none'}; kept: {', '.join(map(str, keys.versions))}")


@vault_app.command("sweep")
def sweep_vault(
    data_dir: DataDir = None,
    hours: Annotated[int, typer.Option(min=1, help="How old what is removed must be, in hours.")] = 24,
) -> None:
    """Remove what crashes and given-up uploads left in the vault: old pieces, and bodies that nothing names."""
    done = _opened(data_dir).sweep(timedelta(hours=hours))
    print(f"removed {done.changed:,}; {done.objects:,} objects stay")


def _opened(data_dir: Path | None) -> Vault:
    from api.cli import load_settings
    from ops.vault import Vault

    return Vault.open(load_settings(data_dir=data_dir))
