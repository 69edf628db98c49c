"""The words about the vault, while a service runs on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.real.persona.capsule_world import OLIVIA, upload
from tests.real.persona.test_artifacts import address_of
from tests.real.service import serving, settings_on


def soma(root: Path, data_dir: Path, *words: str) -> str:
    """Run the command line; give what it printed."""
    command = [sys.executable, "-m", "api.cli", *words, "--data-dir", str(data_dir)]
    done = subprocess.run(
        command, cwd=root, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_keys_are_rotated_and_leftovers_swept_while_the_service_runs(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    with serving(settings_on(database_url, tmp_path)) as service, service.client(OLIVIA) as client:
        before = upload(client, None, b"kept before")
        client.put(
            f"/v1/artifacts/{address_of(b'an upload')}", content=b"an u", params={"offset": 0, "size": 9}
        )
        said = soma(repository_root, tmp_path, "keys", "rotate-vault", "--retire")
        assert said == "key 2 wraps 2 objects, 2 of them anew\nretired: 1; kept: 2\n"
        assert client.get(f"/v1/artifacts/{before}").content == b"kept before"
        after = upload(client, None, b"kept after")
        done = client.put(
            f"/v1/artifacts/{address_of(b'an upload')}", content=b"pload", params={"offset": 4, "size": 9}
        )
        assert done.status_code == 201
        assert service.runtime.vault.keys_in_use() == {2}
        assert soma(repository_root, tmp_path, "vault", "sweep") == "removed 0; 3 objects stay\n"
        assert client.get(f"/v1/artifacts/{after}").content == b"kept after"
