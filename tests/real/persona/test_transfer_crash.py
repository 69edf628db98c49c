"""Workers killed at each of their numbered states: the next start takes the transfer up, and ends it once, the same."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from domain.ledger import Answer
from domain.persona.imports import RequestImport, request_import
from domain.persona.transfers import RequestExport, request_export
from ops.judging import act_judged
from tests.real.persona.capsule_world import OLIVIA, RIVAL, CapsuleWorld, ended, topics_of, upload
from tests.real.service import Service, serving, settings_on
from tests.unit.persona.capsule_maker import Capsule, address_of

STATES = (1, 2, 3, 4, 5)


def killed_at(root: Path, kind: str, state: int, database_url: str, data_dir: Path) -> None:
    """Run the workers in a process of their own, and kill it without a word at a state."""
    plan = {"kind": kind, "state": state, "database_url": database_url, "data_dir": str(data_dir)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.real.persona.transfer_child", json.dumps(plan)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert [_said(child), _said(child)] == [{"resumed": 1}, {"at": state}]
        finally:
            child.kill()


def _said(child: subprocess.Popen[str]) -> dict[str, int]:
    """Read the next line that is not one of the log."""
    assert child.stdout is not None
    while line := child.stdout.readline():
        if line.startswith("{"):
            found: dict[str, int] = json.loads(line)
            return found
    raise AssertionError("the child came to an end")


def name_of(answer: Answer) -> str:
    return str(msgspec.json.decode(answer.body)["id"])


@pytest.mark.parametrize("state", STATES)
def test_a_killed_export_is_taken_up_and_gives_the_same_archive(
    state: int, database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    settings = settings_on(database_url, tmp_path)
    with serving(settings) as service:
        world = CapsuleWorld(service)
        world.found()
        capsule: Capsule = world.capsule()
        world.prepare(capsule)
        command = RequestExport(persona_id="tax-advisor", manifest=capsule.manifest.document())
        asked = act_judged(service.runtime.ledger, service.app.state.engine, request_export, command, OLIVIA)
        export_id = name_of(service.run(asked))
    killed_at(repository_root, "export", state, database_url, tmp_path)
    with serving(settings) as service, service.client(OLIVIA) as client:
        found = ended(client, f"/v1/exports/{export_id}")
        assert (found["status"], found["archive"]) == ("completed", address_of(capsule.archive()))
        assert client.get(f"/v1/capsules/{capsule.address}/archive").content == capsule.archive()
        seen = topics_of(service)
        assert (seen["export.completed"], seen["capsule.exported"], seen["export.failed"]) == (1, 1, 0)
        _check_vault(service, 5)


@pytest.mark.parametrize("state", STATES)
def test_a_killed_import_is_taken_up_and_ends_once(
    state: int, database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    settings = settings_on(database_url, tmp_path)
    with serving(settings) as service, service.client(RIVAL) as client:
        world = CapsuleWorld(service)
        world.found()
        capsule = world.capsule()
        command = RequestImport(
            archive=upload(client, None, capsule.archive()), attestations=world.attestations(capsule.address)
        )
        import_id = name_of(service.run(service.runtime.ledger.act(request_import, command, RIVAL)))
    killed_at(repository_root, "import", state, database_url, tmp_path)
    with serving(settings) as service, service.client(RIVAL) as client:
        found = ended(client, f"/v1/imports/{import_id}")
        assert (found["status"], found["capsule"]) == ("completed", capsule.address)
        for part in capsule.manifest.parts:
            assert client.get(f"/v1/artifacts/{part.digest}").content == capsule.data[part.name]
        seen = topics_of(service)
        assert (seen["import.accepted"], seen["capsule.imported"], seen["import.refused"]) == (1, 1, 0)
        assert seen["artifact.received"] == len(capsule.manifest.parts)
        _check_vault(service, 5)


def _check_vault(service: Service, object_count: int) -> None:
    """See that the vault holds what the log names, each once, and at most one body that a crash left."""
    vault = service.runtime.vault
    assert len([name for name in vault.names() if "/objects/" in name]) == object_count
    assert vault.sweep(timedelta(0)).changed <= 1
    assert vault.sweep(timedelta(0)) == (object_count, 0)
