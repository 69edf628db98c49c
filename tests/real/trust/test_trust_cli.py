"""The words of signers and operators as processes: keys stay in their files, and only envelopes travel."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from domain.ledger import Caller
from tests.real.test_cli import soma
from tests.real.trust.conftest import World
from tests.unit.trust.trust_maker import (
    COURIER,
    OPERATOR,
    OWNER,
    REVIEWER,
    VALID_FROM,
    VALID_UNTIL,
    a_capsule,
    constitution_terms,
    policy_terms,
)

PEOPLE = ("ada", "ben", "cleo")


class Desk:
    """A directory with somebody's files, and the words as they are spoken there."""

    def __init__(self, world: World, place: Path) -> None:
        self.world, self.place = world, place

    def say(self, caller: Caller, *words: str | Path, **given: str) -> Any:
        """Speak to the service as somebody."""
        token = self.world.service.token(caller)
        return soma(*map(str, words), url=self.world.service.url, token=token, **given)

    def done(self, caller: Caller, *words: str | Path, **given: str) -> str:
        """Speak, and be understood."""
        ended = self.say(caller, *words, **given)
        assert ended.returncode == 0, ended.stderr
        return str(ended.stdout)

    def file(self, name: str, value: Any) -> Path:
        """Write a file."""
        path = self.place / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    def key(self, name: str) -> str:
        """Make somebody's key file; give the public key."""
        return soma("keys", "new", str(self.place / f"{name}.pem")).stdout.strip()

    def terms(self, names: tuple[str, ...], **terms: Any) -> dict[str, Any]:
        """Write a policy with the keys that are here."""
        keys = [
            {
                "name": name,
                "subject": f"{name}@platform",
                "role": "signer",
                "public_key": soma("keys", "show", str(self.place / f"{name}.pem")).stdout.strip(),
                "valid_from": VALID_FROM,
                "valid_until": VALID_UNTIL,
            }
            for name in names
        ]
        return policy_terms(keys=keys, **terms)

    def vouched(self, document: Path, *names: str) -> list[str]:
        """Have these vouch for a document; give the words that bring their envelopes."""
        words = []
        for name in names:
            printed = self.done(
                OPERATOR, "trust", "vouch", document, "--key", self.place / f"{name}.pem", "--yes"
            )
            words += ["--envelope", str(self.file(f"{document.stem}.{name}.json", printed))]
        return words


@pytest.fixture
def desk(bare: World, tmp_path: Path) -> Desk:
    """Make the keys of three people, and adopt a policy and a constitution with them."""
    desk = Desk(bare, tmp_path)
    for name in PEOPLE:
        desk.key(name)
    policy = desk.file("policy.json", desk.terms(PEOPLE))
    address = desk.done(OPERATOR, "trust", "adopt", policy).strip()
    assert address == soma("trust", "address", str(policy)).stdout.strip()
    law = desk.file("law.json", constitution_terms())
    refused = desk.say(OPERATOR, "trust", "adopt", law, *desk.vouched(law, "ada"))
    assert (refused.returncode, refused.stderr.split(":")[0]) == (2, "threshold_not_met")
    desk.done(OPERATOR, "trust", "adopt", law, *desk.vouched(law, "ada", "ben"))
    return desk


def test_a_capsule_is_signed_from_key_files_on_and_off_the_network(desk: Desk) -> None:
    capsule = a_capsule(1)
    desk.world.submitted(capsule)
    missing = desk.say(OWNER, "trust", "verify", capsule)
    assert (missing.returncode, "0 of 2: the threshold is not met" in missing.stdout) == (1, True)

    signed = desk.say(COURIER, "sign", capsule, "--key", desk.place / "ada.pem")
    assert (signed.returncode, "signed by ada" in signed.stderr) == (0, True)
    assert capsule in signed.stderr

    request = desk.file("request.json", desk.world.read(OWNER, f"/v1/signings/{capsule}/request"))
    alone = soma("sign", capsule, "--key", str(desk.place / "cleo.pem"), "--request", str(request))
    assert alone.returncode == 0, alone.stderr
    desk.done(COURIER, "trust", "submit", capsule, desk.file("cleo.json", alone.stdout))

    found = json.loads(desk.done(OWNER, "trust", "verify", capsule, "--json"))
    assert ([one["name"] for one in found["signed"]], found["verified"]) == (["ada", "cleo"], True)
    assert "2 of 2: the threshold is met" in desk.done(OWNER, "trust", "verify", capsule)
    again = desk.say(COURIER, "sign", capsule, "--key", desk.place / "ada.pem")
    assert (again.returncode, again.stderr.splitlines()[-4].split(":")[0]) == (2, "signature_repeated")


def test_nothing_else_is_signed_than_what_was_asked_for(desk: Desk) -> None:
    capsule, other = a_capsule(1), a_capsule(2)
    for one in (capsule, other):
        desk.world.submitted(one)
    key = desk.place / "ada.pem"
    asked = desk.world.read(OWNER, f"/v1/signings/{other}/request")
    for words in [
        ["sign", capsule, "--key", key, "--request", desk.file("other.json", asked)],
        ["sign", other, "--key", key, "--policy", other],
        ["sign", other, "--key", key, "--constitution", other],
        [
            "sign",
            other,
            "--key",
            key,
            "--request",
            desk.file("type.json", asked | {"payloadType": "text/plain"}),
        ],
        ["sign", other, "--key", key, "--request", desk.file("bytes.json", asked | {"payload": "e30="})],
    ]:
        refused = desk.say(COURIER, *words)
        assert (refused.returncode, refused.stderr.split(":")[0]) == (2, "statement_unexpected")
    assert desk.world.read(OWNER, f"/v1/signings/{other}")["kept"] == []
    # What a request says beside its bytes is not looked at, so it cannot deceive.
    lying = asked | {"statement": asked["statement"] | {"capsule": capsule}}
    refused = desk.say(COURIER, "sign", capsule, "--key", key, "--request", desk.file("lie.json", lying))
    assert refused.returncode == 2


def test_keys_are_rotated_and_revoked_from_the_command_line(desk: Desk) -> None:
    desk.key("dan")
    following = desk.file("second.json", desk.terms(("ben", "cleo", "dan"), version=2))
    desk.done(OPERATOR, "trust", "adopt", following, *desk.vouched(following, "ada", "cleo"))
    ada = soma("keys", "show", str(desk.place / "ada.pem")).stdout.strip()
    desk.done(OPERATOR, "trust", "revoke-key", ada, "--reason", "she left")
    policy = json.loads(desk.done(OWNER, "trust", "policy"))
    assert [one["version"] for one in policy["versions"]] == [1, 2]
    assert [(one["name"], one["reason"]) for one in policy["revoked"]] == [("ada", "she left")]
    assert json.loads(desk.done(OWNER, "trust", "constitution"))["versions"][0]["version"] == 1


def test_lost_keys_are_recovered_by_a_proposal_that_everybody_can_see(desk: Desk) -> None:
    for name in ("ada", "ben"):
        public = soma("keys", "show", str(desk.place / f"{name}.pem")).stdout.strip()
        desk.done(OPERATOR, "trust", "revoke-key", public, "--reason", "lost")
    desk.key("dan")
    following = desk.file("second.json", desk.terms(("cleo", "dan"), version=2))
    proposed = desk.say(OPERATOR, "trust", "recover", following, "--reason", "two laptops were lost")
    assert (proposed.returncode, proposed.stderr.strip()) == (0, "proposed")
    shown = json.loads(desk.done(OWNER, "trust", "policy"))["recovery"]
    assert (shown["proposed_by"], shown["address"]) == ("oscar", proposed.stdout.strip())
    second = Caller("otto", "platform", frozenset(["operator"]))
    early = desk.say(second, "trust", "recover", following, "--reason", "yes")
    assert (early.returncode, early.stderr.split(":")[0]) == (2, "invalid_status_transition")


def test_reviews_are_listed_and_decided(desk: Desk) -> None:
    capsule = a_capsule(1)
    desk.world.submitted(capsule)
    assert capsule[:40] in desk.done(REVIEWER, "trust", "reviews").replace("\n", "")
    listed = json.loads(desk.done(REVIEWER, "trust", "reviews", "--json"))
    assert [one["capsule"] for one in listed] == [capsule]
    assert (
        desk.done(REVIEWER, "trust", "decide", capsule, "approve", "--notes", "clean").strip() == "approved"
    )
    assert json.loads(desk.done(REVIEWER, "trust", "reviews", "--json")) == []


# --------------------------------------------------------------------------- files


def test_a_key_file_is_its_owners_alone_and_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "ada.pem"
    made = soma("keys", "new", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    before = path.read_bytes()
    again = soma("keys", "new", str(path))
    assert (again.returncode, again.stderr.split(":")[0]) == (2, "key_file_unusable")
    assert path.read_bytes() == before
    assert soma("keys", "show", str(path)).stdout == made.stdout
    path.chmod(0o644)
    assert soma("keys", "show", str(path)).returncode == 2


def test_a_passphrase_locks_a_key_file(tmp_path: Path) -> None:
    path = str(tmp_path / "ada.pem")
    made = soma("keys", "new", path, key_passphrase="open sesame")
    assert "ENCRYPTED" in Path(path).read_text()
    assert soma("keys", "show", path, key_passphrase="open sesame").stdout == made.stdout
    for given in [{}, {"key_passphrase": "open"}]:
        refused = soma("keys", "show", path, **given)
        assert (refused.returncode, refused.stderr.split(":")[0]) == (2, "key_file_unusable")


@pytest.mark.parametrize("content", [b"", b"\x20" * 32, bytes(range(32)), b"-----BEGIN PRIVATE KEY-----\n"])
def test_bytes_that_are_no_pem_are_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "raw"
    path.write_bytes(content)
    path.chmod(0o600)
    assert soma("keys", "show", str(path)).stderr.startswith("key_file_unusable")


def test_without_a_token_and_without_a_service_the_words_say_what_is_missing() -> None:
    assert soma("trust", "policy").stderr.startswith("unauthorized")
    away = soma("trust", "policy", "--url", "http://127.0.0.1:9", token="x")
    assert (away.returncode, away.stderr.split(":")[0]) == (2, "unavailable")
