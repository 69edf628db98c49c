"""The word `soma persona` as a process: from a folder to a published capsule, into another house, and each way out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.cli_remote import Remote
from api.persona_remote import PIECE_BYTES, upload
from domain.errors import UnavailableError
from domain.ledger import Caller
from ops.settings import Settings
from ops.tokens import LocalIssuer
from tests.real.persona.capsule_world import OLIVIA, OPERATOR, RIVAL, topics_of
from tests.real.persona.persona_desk import REVIEWER, Desk, pilot
from tests.real.service import Service
from tests.real.test_cli import ROOT, SOMA, an_environment, soma
from tests.real.test_first_ten_minutes import a_free_port

END_S_MAX = 60
AUDITOR = Caller("aude", "platform", frozenset({"auditor"}))


@pytest.fixture(scope="module")
def desk(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Found the platform: key files, a signer policy and a constitution."""
    desk = Desk(service, tmp_path_factory.mktemp("desk"))
    desk.found()
    return desk


def code_of(ended: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """Give the status and the code of a refusal."""
    return ended.returncode, ended.stderr.split(":")[0]


# --------------------------------------------------------------------------- the story


def test_the_whole_story_from_a_folder_to_another_tenant(desk: Desk) -> None:
    folder = desk.folder("story-pilot")
    sound = desk.say(OLIVIA, "persona", "evaluate", folder, "--json")
    assert (sound.returncode, json.loads(sound.stdout)["named_report"]) == (0, "equal")

    waits = desk.say(OLIVIA, "persona", "publish", folder)
    assert waits.returncode == 3
    capsule = waits.stdout.strip()
    for words in ("the review is pending", "0 of the 2 signatures", "soma trust decide", "soma sign"):
        assert words in waits.stderr
    again = desk.say(OLIVIA, "persona", "publish", capsule, "--json")
    told = json.loads(again.stdout)
    assert (again.returncode, told["capsule"], told["status"]) == (3, capsule, "inspected")
    assert {one["code"] for one in told["missing"]} == {"not_approved", "threshold_not_met", "policy_denied"}

    desk.agreed(capsule)
    done = desk.say(OLIVIA, "persona", "publish", folder)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, capsule, "published")
    told = json.loads(desk.say(OLIVIA, "persona", "publish", capsule, "--json").stdout)
    assert told == {"capsule": capsule, "status": "published", "missing": []}

    listed = json.loads(desk.say(RIVAL, "marketplace", "list-personas", "-q", "pilot", "--json").stdout)
    assert [one["attestation_hash"] for one in listed["items"] if one["persona_id"] == "story-pilot"] == [
        capsule
    ]

    archive = desk.taken(capsule, "story.tar")
    verified = soma("persona", "verify", str(archive), "--policy", desk.policy, "--capsule", capsule)
    assert (verified.returncode, verified.stdout.strip()) == (0, capsule)
    for words in ("every byte as sealed", "signed   anna", "signed   carla", "missing  ben", "verified"):
        assert words in verified.stderr
    told = json.loads(soma("persona", "verify", str(archive), "--policy", desk.policy, "--json").stdout)
    assert (told["capsule"], told["verification"]["verified"]) == (capsule, True)

    assert desk.done(RIVAL, "persona", "import", archive) == capsule
    told = json.loads(desk.say(RIVAL, "persona", "import", archive, "--json").stdout)
    assert (told["status"], told["capsule"], told["tenant"]) == ("completed", capsule, "rival")


def test_exported_twice_it_is_the_same_file_and_none_is_written_over(desk: Desk, tmp_path: Path) -> None:
    folder = desk.folder("export-pilot")
    capsule = desk.done(OLIVIA, "persona", "export", folder)
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    told = json.loads(desk.say(OLIVIA, "persona", "export", folder, "--out", first, "--json").stdout)
    # Nobody was asked to sign it yet, so there is nothing to lie beside it.
    assert told == {"capsule": capsule, "archive": str(first)}
    desk.done(OLIVIA, "persona", "export", capsule, "--out", second)
    assert first.read_bytes() == second.read_bytes()
    assert code_of(desk.say(OLIVIA, "persona", "export", capsule, "--out", second)) == (2, "invalid_request")
    alone = soma("persona", "verify", str(first), "--unsigned")
    assert (alone.returncode, alone.stdout.strip()) == (0, capsule)
    assert "nobody's signature was looked at" in alone.stderr


def test_a_persona_evaluated_from_its_archive_gives_the_report_of_its_folder(
    desk: Desk, tmp_path: Path
) -> None:
    folder = desk.folder("report-pilot")
    archive = tmp_path / "report.tar"
    desk.done(OLIVIA, "persona", "export", folder, "--out", archive)
    law = str(ROOT / "docs/examples/persona_capsules/constitution.json")
    found = []
    for name, source in (("folder", folder), ("archive", archive)):
        words = ["--constitution", law, "--report", str(tmp_path / name), "--json"]
        found.append(json.loads(soma("persona", "evaluate", str(source), *words).stdout)["report"])
    assert found[0] == found[1]
    shown = soma("persona", "evaluate", str(archive), "--constitution", law)
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[-2:] == ["the report in the manifest: equal", "passed"]


def test_a_report_that_does_not_come_out_again_ends_with_one(desk: Desk) -> None:
    folder = desk.folder("boast-pilot", _boast)
    shown = desk.say(OLIVIA, "persona", "evaluate", folder)
    assert shown.returncode == 1
    assert shown.stdout.splitlines()[-1] == "not passed"


def _boast(manifest: dict[str, Any]) -> None:
    manifest["evaluations"][0]["score"] = "0.123"


# --------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def sealed(desk: Desk) -> tuple[str, Path]:
    """Publish a persona, and take its archive away."""
    capsule = desk.published("sealed-pilot")
    return capsule, desk.taken(capsule, "sealed.tar")


@pytest.fixture
def copied(sealed: tuple[str, Path], tmp_path: Path) -> Path:
    """Copy the archive and what lies beside it, to be spoiled."""
    for path in (sealed[1], sealed[1].with_name(sealed[1].name + ".attestations.json")):
        shutil.copy(path, tmp_path)
    return tmp_path / sealed[1].name


@pytest.mark.parametrize("part", sorted(pilot()[1]))
def test_a_tampered_archive_is_refused_at_both_doors_by_the_name_of_the_part(
    part: str, desk: Desk, copied: Path
) -> None:
    data = bytearray(copied.read_bytes())
    place = data.find(pilot()[1][part])
    data[place + len(pilot()[1][part]) // 2] ^= 1
    copied.write_bytes(data)
    for ended in (
        soma("persona", "verify", str(copied), "--policy", desk.policy),
        desk.say(RIVAL, "persona", "import", copied),
    ):
        assert code_of(ended) == (2, "capsule_tampered")
        assert f"part: {part}" in ended.stderr
        assert ended.stdout == ""


def test_signatures_that_are_too_few_end_with_one_offline_and_two_at_the_import(
    desk: Desk, copied: Path
) -> None:
    beside = copied.with_name(copied.name + ".attestations.json")
    sent = json.loads(beside.read_text())
    for envelope in sent["envelopes"]:
        del envelope["signatures"][1:]
    sent["envelopes"] = sent["envelopes"][:1]
    beside.write_text(json.dumps(sent))
    alone = soma("persona", "verify", str(copied), "--policy", desk.policy)
    assert alone.returncode == 1
    assert alone.stderr.splitlines()[-1] == "NOT verified"
    assert code_of(desk.say(RIVAL, "persona", "import", copied)) == (2, "threshold_not_met")


def test_who_is_trusted_must_be_said(desk: Desk, sealed: tuple[str, Path], copied: Path) -> None:
    capsule, archive = sealed
    unnamed = soma("persona", "verify", str(archive))
    assert code_of(unnamed) == (2, "invalid_request")
    assert "--policy" in unnamed.stderr
    other = soma("persona", "verify", str(archive), "--policy", capsule)
    assert (code_of(other), "wrong_policy" in other.stderr) == ((2, "signature_refused"), True)
    law = soma("persona", "verify", str(archive), "--policy", desk.policy, "--constitution", capsule)
    assert code_of(law) == (2, "constitution_mismatch")
    copied.with_name(copied.name + ".attestations.json").unlink()
    bare = soma("persona", "verify", str(copied), "--policy", desk.policy)
    assert (code_of(bare), "attestations.json is not there" in bare.stderr) == ((2, "invalid_request"), True)


def test_a_revoked_capsule_is_neither_imported_nor_published_nor_taken_away(
    desk: Desk, tmp_path: Path
) -> None:
    capsule = desk.published("revoked-pilot")
    archive = desk.taken(capsule, "revoked.tar")
    with httpx.Client(base_url=desk.served.url) as client:
        headers = {"Authorization": f"Bearer {desk.served.token(OPERATOR)}"}
        body = {"reason": "it passed for a pilot of a real harbour", "rentals": "end"}
        answer = client.post(f"/v1/capsules/{capsule}/revoke", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert code_of(desk.say(RIVAL, "persona", "import", archive)) == (2, "capsule_revoked")
    assert code_of(desk.say(OLIVIA, "persona", "publish", capsule)) == (2, "capsule_revoked")
    taken = desk.say(RIVAL, "persona", "export", capsule, "--out", tmp_path / "late.tar")
    assert taken.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_what_no_signature_can_mend_ends_with_one(desk: Desk) -> None:
    folder = desk.folder("rejected-pilot")
    capsule = desk.say(OLIVIA, "persona", "publish", folder).stdout.strip()
    assert desk.done(REVIEWER, "trust", "decide", capsule, "reject", "--notes", "wrong harbour") == "rejected"
    ended = desk.say(OLIVIA, "persona", "publish", folder)
    assert ended.returncode == 1
    assert "the review is rejected (not_approved)" in ended.stderr
    assert "as another version" in ended.stderr


def test_a_secret_in_a_prompt_is_told_by_its_place_and_never_shown(desk: Desk) -> None:
    folder = desk.folder("leaky-pilot", _undescribed)
    secret = "AKIA" + "Z7QW3RTY5U1OPASD"
    prompt = folder / "system.txt"
    prompt.write_text(prompt.read_text() + f"\naws_access_key_id = {secret}\n")
    ended = desk.say(OLIVIA, "persona", "publish", folder)
    assert ended.returncode == 1, ended.stderr
    assert "(scan_blocked)" in ended.stderr
    assert f"in system.txt, line {len(prompt.read_text().splitlines())}" in ended.stderr
    assert secret not in ended.stderr + ended.stdout


def _undescribed(manifest: dict[str, Any]) -> None:
    """Leave to the files what they say themselves."""
    manifest["artifacts"] = [{"name": one["name"], "role": one["role"]} for one in manifest["artifacts"]]


def test_an_id_and_a_version_are_given_once(desk: Desk) -> None:
    desk.done(OLIVIA, "persona", "export", desk.folder("taken-pilot"))
    folder = desk.folder("taken-pilot", lambda manifest: manifest["metadata"].update(version="1.0.1"))
    theirs = desk.say(RIVAL, "persona", "export", folder)
    assert theirs.returncode == 2
    assert code_of(theirs)[1] in ("persona_not_found", "persona_id_taken")
    shutil.rmtree(folder)
    desk.done(OLIVIA, "persona", "export", desk.folder("taken-pilot", _second))
    shutil.rmtree(folder)
    assert code_of(desk.say(OLIVIA, "persona", "export", desk.folder("taken-pilot", _third))) == (
        2,
        "capsule_version_taken",
    )


def _second(manifest: dict[str, Any]) -> None:
    manifest["metadata"]["version"] = "1.0.1"


def _third(manifest: dict[str, Any]) -> None:
    manifest["metadata"].update(version="1.0.1", summary="Other words under the same version.")


def test_a_folder_with_faults_names_each_of_them(desk: Desk) -> None:
    folder = desk.folder(
        "faulty-pilot", lambda manifest: manifest["metadata"].update(version="one", colour="red")
    )
    ended = desk.say(OLIVIA, "persona", "publish", folder)
    assert code_of(ended) == (2, "manifest_invalid")
    for place in (
        "/metadata/version: it must be",
        "/metadata/colour: there is no such field; there stands 'red'",
    ):
        assert f"\n    {place}" in ended.stderr, ended.stderr


def test_without_a_token_or_a_service_it_says_so(desk: Desk, tmp_path: Path) -> None:
    folder = desk.folder("lonely-pilot")
    assert code_of(soma("persona", "publish", str(folder), url=desk.served.url)) == (2, "unauthorized")
    ended = soma("persona", "publish", str(folder), url="http://127.0.0.1:1", token="nobody's")
    assert code_of(ended) == (2, "unavailable")


# --------------------------------------------------------------------------- going on


def test_a_broken_upload_goes_on_where_it_broke_off(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(2 * PIECE_BYTES + 12_345))
    address = "sha3-512:" + hashlib.sha3_512(path.read_bytes()).hexdigest()
    asked: list[tuple[str, int]] = []

    def heard(request: httpx.Request) -> None:
        if request.method == "PUT":
            asked.append((request.method, int(request.url.params["offset"])))
            if asked == [("PUT", 0), ("PUT", PIECE_BYTES)]:
                raise httpx.ConnectError("the line broke")

    with Remote(desk.served.url, desk.served.token(OLIVIA)) as remote:
        remote.client.event_hooks["request"] = [heard]
        with pytest.raises(UnavailableError):
            upload(remote, path, address)
        seen: list[tuple[int, int]] = []
        upload(remote, path, address, lambda _name, done, total: seen.append((done, total)))
        size = path.stat().st_size
        assert seen == [(PIECE_BYTES, size), (2 * PIECE_BYTES, size), (size, size)]
        upload(remote, path, address)
        assert [offset for _, offset in asked] == [0, PIECE_BYTES, PIECE_BYTES, 2 * PIECE_BYTES]
        kept = remote.client.get(f"/v1/artifacts/{address}").content
    assert kept == path.read_bytes()


def test_a_part_that_lay_there_half_is_gone_on_with_by_publish(desk: Desk, service: Service) -> None:
    folder = desk.folder("half-pilot", _undescribed)
    (folder / "system.txt").write_text("You are the pilot of Larkhaven, and you know no other harbour. " * 40)
    data = (folder / "system.txt").read_bytes()
    address = "sha3-512:" + hashlib.sha3_512(data).hexdigest()
    with service.client(OLIVIA) as client:
        path = f"/v1/artifacts/{address}"
        sent = client.put(path, params={"offset": 0, "size": len(data)}, content=data[:1_000])
        assert sent.is_success, sent.text
        assert client.head(path).headers["upload-offset"] == "1000"
        before = topics_of(service)["artifact.uploaded"]
        desk.done(OLIVIA, "persona", "export", folder)
        assert client.get(path).content == data
    assert topics_of(service)["artifact.uploaded"] > before


class Killable:
    """A service as a process of its own, which is killed without a word and started again on the same data."""

    def __init__(self, database_url: str, place: Path) -> None:
        self.url = f"http://127.0.0.1:{a_free_port()}"
        self._given = {
            "database_url": database_url,
            "data_dir": str(place),
            "port": self.url.rpartition(":")[2],
        }
        self._issuer = LocalIssuer(Settings(data_dir=place))
        self.child: subprocess.Popen[str] | None = None

    def token(self, caller: Caller) -> str:
        """Mint a token."""
        return str(self._issuer.mint(caller.subject, caller.tenant, sorted(caller.roles)))

    def start(self) -> None:
        """Start it, and wait until it listens."""
        words = [*SOMA, "serve"]
        self.child = subprocess.Popen(
            words, cwd=ROOT, env=an_environment(**self._given), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.child.stdout is not None
        assert self.child.stdout.readline()

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None

    def topics(self) -> Counter[str]:
        """Count the records of the log by their type."""
        headers = {"Authorization": f"Bearer {self.token(AUDITOR)}"}
        feed = httpx.get(f"{self.url}/v1/log/feed?from=0&follow=false", headers=headers, timeout=END_S_MAX)
        return Counter(
            line.removeprefix("event: ") for line in feed.text.splitlines() if line[:6] == "event:"
        )


@pytest.fixture
def house(database_url: str, tmp_path: Path) -> Iterator[Killable]:
    """Run a service that can be killed."""
    house = Killable(database_url, tmp_path / "data")
    house.start()
    try:
        yield house
    finally:
        house.kill()


def _uploading(client: httpx.Client) -> bool:
    return bool(client.get("/v1/artifacts").json()["items"])


def _exporting(client: httpx.Client) -> bool:
    return bool(client.get("/v1/exports").json()["items"])


def _submitted(client: httpx.Client) -> bool:
    return any(one["status"] == "submitted" for one in client.get("/v1/capsules").json()["items"])


@pytest.mark.parametrize(
    "reached", [_uploading, _exporting, _submitted], ids=lambda reached: reached.__name__
)
def test_a_service_killed_during_publish_is_finished_by_the_same_command(
    reached: Callable[[httpx.Client], bool], house: Killable, tmp_path: Path
) -> None:
    desk = Desk(house, tmp_path)
    desk.found()
    folder = desk.folder("killed-pilot")
    words = [*SOMA, "persona", "publish", str(folder)]
    headers = {"Authorization": f"Bearer {house.token(OLIVIA)}"}
    with (
        subprocess.Popen(
            words, cwd=ROOT, env=an_environment(url=house.url, token=house.token(OLIVIA)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as author,
        httpx.Client(base_url=house.url, headers=headers) as client,
    ):  # fmt: skip
        until = time.monotonic() + END_S_MAX
        while not reached(client):
            assert time.monotonic() < until
        house.kill()
        said = author.communicate(timeout=END_S_MAX)[1]
    # The author is told unless it was through already.
    assert (author.returncode, said.split(":")[0]) == (2, "unavailable") or author.returncode == 3, said
    house.start()
    again = desk.say(OLIVIA, "persona", "publish", folder)
    assert again.returncode == 3, again.stderr
    capsule = again.stdout.strip()
    desk.agreed(capsule)
    assert desk.done(OLIVIA, "persona", "publish", folder) == capsule
    counted = house.topics()
    for topic in (
        "persona.created",
        "capsule.exported",
        "capsule.submitted",
        "capsule.scanned",
        "capsule.published",
    ):
        assert counted[topic] == 1, (topic, counted)
    archive = desk.taken(capsule, "killed.tar")
    assert soma("persona", "verify", str(archive), "--policy", desk.policy).returncode == 0
