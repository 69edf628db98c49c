"""Governance in columns, over the log of a persona's whole life."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domain.log.records import EVENTS
from ops.reads import Stored
from projections import columns
from projections.columns_governance import GOVERNANCE_ROWS, KINDS, governance
from tests.unit.persona.persona_world import PERSONA
from tests.unit.projections.persona_story import Story, a_story


@pytest.fixture(scope="module")
def story() -> Story:
    return a_story()


def told(log: Any, parents: Any = None) -> list[dict[str, Any]]:
    """Tell the governance of a log."""
    rows = GOVERNANCE_ROWS.read(log)
    known = (parents or {}) | columns.adopt(columns.RECORD_ROWS.read(log))
    table = governance(rows, known)["governance_events"]
    assert not rows.unread
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def one(rows: list[dict[str, Any]], kind: str, event: str) -> dict[str, Any]:
    return next(row for row in rows if (row["kind"], row["event"]) == (kind, event))


def test_every_record_of_governance_is_told_once_and_no_other(story: Story) -> None:
    kinds = [json.loads(stored.record)["stream"].partition("/")[0] for stored in story.log]
    rows = told(story.log)
    assert [row["position"] for row in rows] == [at for at, kind in enumerate(kinds) if kind in KINDS]
    assert {row["kind"] for row in rows} >= {
        "persona", "capsule", "export", "review", "signing", "signer_policy", "constitution", "claim",
    }  # fmt: skip


def test_all_that_happened_to_a_capsule_names_its_persona(story: Story) -> None:
    for row in told(story.log):
        if row["kind"] in ("persona", "capsule", "export", "review", "signing", "claim"):
            assert row["persona_id"] == PERSONA, (row["kind"], row["event"])
        if row["kind"] in ("capsule", "review", "signing", "claim"):
            assert row["capsule"] in (story.published, story.claimed)


def test_publication_tells_whose_keys_signed_and_what_was_asked(story: Story) -> None:
    published = one(told(story.log), "capsule", "published")
    record = json.loads(story.log[published["position"]].record)["data"]
    assert published["signed"] == record["signed"]
    assert len(published["signed"]) == published["threshold"] == 2
    assert published["policy"] == record["policy"] != ""
    assert published["constitution"] == story.world.constitution
    assert published["judged_by"] == record["judgement"]["policy_digest"]
    assert not published["is_override"]


def test_reviews_scans_signatures_claims_and_refusals_say_who_and_why(story: Story) -> None:
    rows = told(story.log)
    rejected = next(row for row in rows if row["decision"] == "reject")
    assert (rejected["person"], rejected["reason"]) == ("rita", "where is the source?")
    scans = [row for row in rows if row["event"] == "scanned"]
    assert [(row["verdict"], row["findings"]) for row in scans] == [("pass", 0), ("warn", 1)]
    assert all(row["rules"].startswith("sha3-512:") for row in scans)
    assert sorted(one(rows, "signing", "signed")["signed"]) == ["ada", "ben"]
    refused = one(rows, "export", "refused")
    assert (refused["code"], refused["persona_version"]) == ("artifact_not_found", "0.9.0")
    assert one(rows, "claim", "opened")["person"] == "strange"
    assert one(rows, "claim", "upheld")["reason"] == "they are"
    assert one(rows, "capsule", "revoked")["persona_version"] == "1.0.0"
    lost = one(rows, "signer_policy", "key_revoked")
    assert (lost["person"], lost["reason"]) == ("ada", "lost on a train")
    assert one(rows, "export", "completed")["bytes"] == 4_096


def test_one_batch_tells_what_many_do(story: Story) -> None:
    whole = told(story.log)
    parents: dict[str, Any] = {}
    apart = []
    for stored in story.log:
        parents |= columns.adopt(columns.RECORD_ROWS.read([stored]))
        apart += told([stored], parents)
    assert apart == whole


def test_what_begins_before_a_batch_is_asked_for_by_its_root(story: Story) -> None:
    batch = [s for s in story.log if json.loads(s.record)["stream"].startswith(("review/", "signing/"))]
    digits = {story.published.removeprefix("sha3-512:"), story.claimed.removeprefix("sha3-512:")}
    assert columns.orphans(columns.RECORD_ROWS.read(batch), {}) == sorted(f"capsule/{one}" for one in digits)
    late = [s for s in story.log if json.loads(s.record)["type"] == "capsule.revoked"]
    assert columns.orphans(columns.RECORD_ROWS.read(late), {}) == [f"capsule/{story.published[9:]}"]
    assert (
        columns.orphans(
            columns.RECORD_ROWS.read(story.log), columns.adopt(columns.RECORD_ROWS.read(story.log))
        )
        == []
    )


def test_the_timeline_of_a_persona_holds_its_capsules_their_reviews_and_signatures(story: Story) -> None:
    rows = columns.RECORD_ROWS.read(story.log)
    lines = columns.timelines(rows, columns.adopt(rows)).to_pylist()
    mine = {
        line["position"] for line in lines if (line["subject_kind"], line["subject"]) == ("persona", PERSONA)
    }
    wanted = {row["position"] for row in told(story.log) if row["persona_id"] == PERSONA}
    assert mine == wanted
    capsule = [line["stream"].partition("/")[0] for line in lines if line["subject"] == story.published[9:]]
    assert {"capsule", "review", "signing", "export", "claim"} <= set(capsule)


def test_an_event_of_a_newer_release_is_named_and_its_neighbours_are_told(story: Story) -> None:
    envelope = json.loads(story.log[-1].record) | {"type": "capsule.gilded", "stream": "capsule/00"}
    strange = Stored(0, b"\0" * 64, json.dumps(envelope).encode())
    rows = GOVERNANCE_ROWS.read([strange, story.log[-1]])
    table = governance(rows, {})["governance_events"]
    assert [one.position for one in rows.unread] == [0]
    assert table.num_rows == 1


def test_every_kind_that_is_told_has_events() -> None:
    prefixes = {wire_type.partition(".")[0] for wire_type in EVENTS}
    assert set(KINDS) - {"download"} <= prefixes
