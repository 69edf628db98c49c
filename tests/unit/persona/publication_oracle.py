"""An auditor of publications who trusts nobody: it reads the log's bytes and computes everything again.

It shares no code with what it audits. Addresses are hashed with hashlib over rfc8785, signatures are verified with the
cryptography library over a pre-authentication encoding written out here, approvals and constitutions are counted from
events. What a policy answered is taken from whoever answered, not from what the log says it answered.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# (package, digest of the input) -> (was it allowed, the input)
Answers = Mapping[tuple[str, str], tuple[bool, dict[str, Any]]]


def address(context: str, document: Any) -> str:
    """Hash a document in a context."""
    return "sha3-512:" + hashlib.sha3_512(context.encode() + b"\0" + rfc8785.dumps(document)).hexdigest()


class Oracle:
    """Reads a log as it grows, and holds every publication in it against all that came before."""

    def __init__(self, answers: Answers) -> None:
        self.records: list[dict[str, Any]] = []
        self.publications = 0
        self._answers = answers

    def see(self, rows: Sequence[bytes]) -> None:
        """Read the rows that are new."""
        for row in rows[len(self.records) :]:
            record = json.loads(row)
            if record["type"] in ("capsule.published", "capsule.reinstated"):
                _check_publication(self.records, record, self._answers)
                self.publications += 1
            elif record["type"] == "persona.listed":
                shown = record["data"]["listing"]["capsule"]
                assert _standing(self.records, shown) == "on show", (
                    "the catalogue shows what is not published"
                )
            self.records.append(record)

    def on_show(self) -> set[str]:
        """Name the capsules that are on show now."""
        begun = ("capsule.exported", "capsule.imported")
        named = {r["data"]["capsule"] for r in self.records if r["type"] in begun}
        return {capsule for capsule in named if _standing(self.records, capsule) == "on show"}


def _standing(past: Sequence[dict[str, Any]], capsule: str) -> str:
    standing = "hidden"
    for record in _stream(past, "capsule", capsule):
        standing = {
            "capsule.published": "on show", "capsule.reinstated": "on show", "capsule.suspended": "suspended",
            "capsule.revoked": "ended", "capsule.withdrawn": "ended",
        }.get(record["type"], standing)  # fmt: skip
    return standing


def _check_publication(past: Sequence[dict[str, Any]], record: dict[str, Any], answers: Answers) -> None:
    digits = record["stream"].partition("/")[2]
    capsule = f"sha3-512:{digits}"
    own = _stream(past, "capsule", capsule)
    manifest = own[0]["data"]["manifest"]
    assert address("soma/capsule/v1", manifest) == capsule, "the capsule is not what its name says"
    wanted = "hidden" if record["type"] == "capsule.published" else "suspended"
    assert _standing(past, capsule) == wanted
    submitters = {one["actor"] for one in own if one["type"] == "capsule.submitted"}
    assert submitters, "nobody submitted it"
    barred = submitters | {owner["subject"] for owner in manifest["metadata"]["owners"]}
    constitution = [r["data"]["address"] for r in past if r["type"] == "constitution.adopted"][-1]
    assert manifest["governance"]["constitution"] == constitution, "another constitution is in force"
    is_override = _check_approvals(past, capsule, barred)
    _check_inspection(own, is_override)
    _check_signatures(past, capsule, constitution, barred, record)
    _check_judgement(record, capsule, answers)


def _check_inspection(own: Sequence[dict[str, Any]], is_override: bool) -> None:
    last = max(index for index, one in enumerate(own) if one["type"] == "capsule.submitted")
    verdicts = [one["data"]["verdict"] for one in own[last:] if one["type"] == "capsule.scanned"]
    passed = [one["data"]["passed"] for one in own[last:] if one["type"] == "capsule.evaluated"]
    assert verdicts, "it was not scanned since it was submitted"
    assert verdicts[-1] in ("pass", "warn") or is_override, "the scan blocks it and nobody overrode that"
    assert passed, "it was not evaluated since it was submitted"
    assert passed[-1] is True, "its evaluation did not pass"


def _check_approvals(past: Sequence[dict[str, Any]], capsule: str, barred: set[str]) -> bool:
    """Count the approvals of the last round; say whether an override settled it."""
    stream = _stream(past, "review", capsule)
    begins = max(index for index, one in enumerate(stream) if one["type"] == "review.opened")
    votes = [one for one in stream[begins:] if one["type"] == "review.decided"]
    assert stream[-1]["type"] == "review.decided", "the review ended by something else than a vote"
    for vote in votes:
        assert vote["actor"] == vote["data"]["reviewer"] not in barred, "somebody voted on their own"
    ordinary = [vote for vote in votes if not vote["data"]["is_override"]]
    assert len({vote["actor"] for vote in ordinary}) == len(ordinary), "somebody voted twice"
    assert votes[-1]["data"]["decision"] == "approve", "the last word was a rejection"
    if votes[-1]["data"]["is_override"]:
        return True
    assert all(vote["data"]["decision"] == "approve" for vote in ordinary), "somebody rejected it"
    opened = stream[begins]
    policy = _policies(past[: past.index(opened)])[-1]
    # An approval that somebody gave by overriding counts as theirs, and as no more.
    given = {vote["actor"] for vote in votes if vote["data"]["decision"] == "approve"}
    assert len(given) >= policy["approvals_required"], "there are too few approvals"
    assert all(vote["at"] < opened["data"]["due_at"] for vote in ordinary), "somebody voted too late"
    return False


def _check_signatures(
    past: Sequence[dict[str, Any]], capsule: str, constitution: str, barred: set[str], record: dict[str, Any]
) -> None:
    stream = _stream(past, "signing", capsule)
    begins = max(index for index, one in enumerate(stream) if one["type"] == "signing.opened")
    completed = [one for one in stream[begins:] if one["type"] == "signing.completed"]
    # What was used before stands as of then, and under the policy of then; what is used now must hold now.
    at = completed[0]["at"] if completed else record["at"]
    in_force = _policies(past[: past.index(completed[0])] if completed else past)[-1]
    envelopes = [one["data"]["envelope"] for one in stream[begins:] if one["type"] == "signing.signed"]
    named = {address("soma/signer-policy/v1", document): document for document in _policies(past)}
    revoked = {r["data"]["public_key"] for r in past if r["type"] == "signer_policy.key_revoked"}
    keys: dict[str, str] = {}
    for envelope in envelopes:
        payload = base64.b64decode(envelope["payload"])
        said = json.loads(payload)
        policy = named[said["policy"]]
        assert policy == in_force, "it was signed under a policy that was not in force"
        right = said["capsule"] == capsule and said["constitution"] == constitution
        assert right, "something else was signed"
        assert said["purpose"] == "publication", "it was signed for something else"
        for signature in envelope["signatures"]:
            for key in policy["keys"]:
                counts = key["valid_from"] <= at < key["valid_until"] and at < said["not_after"]
                counts = counts and key["public_key"] not in revoked and key["subject"] not in barred
                if counts and _signed(key["public_key"], envelope["payloadType"], payload, signature["sig"]):
                    keys[key["public_key"]] = key["subject"]
    assert len(set(keys.values())) == len(keys), "one person signed twice"
    assert len(keys) >= in_force["threshold"] >= 2, "too few of the pinned keys signed"


def _signed(public_key: str, kind: str, payload: bytes, signature: str) -> bool:
    message = b" ".join(
        [b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload]
    )
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key))
        key.verify(base64.b64decode(signature), message)
    except InvalidSignature:
        return False
    return True


def _check_judgement(record: dict[str, Any], capsule: str, answers: Answers) -> None:
    told = record["data"]["judgement"]
    allowed, question = answers[told["package"], told["input_digest"]]
    assert told["package"] == "soma.publish", "another policy was asked"
    assert allowed, "the policy did not allow it"
    assert told["allow"], "the log says that the policy did not allow it"
    assert address("soma/policy-input/v1", question) == told["input_digest"], "something else was asked"
    assert question["capsule"]["address"] == capsule, "another capsule was asked about"
    assert question["environment"]["day"] == record["at"][:10], "the answer is of another day"
    wish = "publish" if record["type"] == "capsule.published" else "reinstate"
    asker = (question["who"]["subject"], question["action"])
    assert asker == (record["actor"], wish), "somebody else asked, or something else"
    assert question["signatures"]["verified"], "the policy was not told of the signatures"


def _policies(past: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the versions of the publication policy that were adopted."""
    adopted = [r for r in past if r["type"] == "signer_policy.adopted"]
    return [r["data"]["document"] for r in adopted if r["stream"] == "signer_policy/publication"]


def _stream(past: Sequence[dict[str, Any]], kind: str, capsule: str) -> list[dict[str, Any]]:
    name = f"{kind}/{capsule.removeprefix('sha3-512:')}"
    return [record for record in past if record["stream"] == name]
