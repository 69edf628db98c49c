"""The log over HTTP, read as a stranger would: files, events, time travel, proofs, witnesses and whole audits."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from api.cli import app as command_line
from domain.log.audit import audit
from domain.log.audit_proof import inclusion_root, verify_receipt
from domain.log.notes import Cosigner, Signer, VerifierKey, open_checkpoint
from domain.log.policies import parse_policy
from domain.log.tiles import bundles_of, decode_bundle, tiles_of
from ops.audit_sources import HttpSource
from ops.settings import Settings
from tests.real.conftest import lend
from tests.real.log.market_log import AUDITOR, LAB, OPERATOR, Told, ok, tell
from tests.real.log.served import Served, serving
from tests.real.log.world import give
from tests.unit.log.reference import SlowTree, leaf

WITNESS = Cosigner("witness.example/w1", hashlib.sha256(b"a witness of the tests").digest())
STRANGER = Cosigner("witness.example/w9", hashlib.sha256(b"nobody knows this one").digest())


class World(NamedTuple):
    """A service with a story told on it, and its records as the database of the auditor would hold them."""

    service: Served
    told: Told
    records: list[bytes]
    tree: SlowTree


@pytest.fixture(scope="module")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    for url in lend(server_url, template_database):
        settings = Settings(database_url=SecretStr(url), data_dir=tmp_path_factory.mktemp("service"))
        with serving(settings) as service:
            told = tell(service, 700)
            stored = service.run(service.runtime.reader.span(0, 10**6))
            records = [one.record for one in stored]
            yield World(service, told, records, SlowTree(records))


@pytest.fixture(scope="module")
def nobody(world: World) -> Iterator[httpx.Client]:
    with world.service.client() as client:
        yield client


@pytest.fixture(scope="module")
def auditor(world: World) -> Iterator[httpx.Client]:
    with world.service.client(AUDITOR) as client:
        yield client


@pytest.fixture(scope="module")
def lab(world: World) -> Iterator[httpx.Client]:
    with world.service.client(LAB) as client:
        yield client


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def note_of(client: httpx.Client) -> tuple[bytes, int, bytes]:
    """Fetch the checkpoint: the note, its size and root."""
    note = client.get("/checkpoint").content
    lines = note.split(b"\n")
    return note, int(lines[1]), base64.b64decode(lines[2])


class TestFiles:
    def test_the_checkpoint_is_signed_and_states_the_root_of_all_records(
        self, world: World, nobody: httpx.Client
    ) -> None:
        answer = nobody.get("/checkpoint")
        key = VerifierKey.parse(nobody.get("/log.vkey").text.strip())
        checkpoint, _ = open_checkpoint(answer.content, [key])
        assert checkpoint.size == len(world.records)
        assert checkpoint.root == world.tree.root(0, len(world.records))
        assert checkpoint.origin == key.name
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["access-control-allow-origin"] == "*"

    def test_every_hash_tile_is_public_and_holds_the_hashes_of_its_place(
        self, world: World, nobody: httpx.Client
    ) -> None:
        for tile in tiles_of(len(world.records)):
            answer = nobody.get("/" + tile.path)
            assert answer.status_code == 200
            assert answer.content == world.tree.tile(tile.level, tile.index, tile.width)
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'

    def test_a_partial_tile_of_every_earlier_checkpoint_is_still_served(
        self, world: World, nobody: httpx.Client
    ) -> None:
        sizes = [json.loads(line)["size"] for line in self._history(world)]
        for size in sizes[:: len(sizes) // 20]:
            for tile in tiles_of(size):
                assert len(nobody.get("/" + tile.path).content) == 32 * tile.width

    @staticmethod
    def _history(world: World) -> list[str]:
        with world.service.client(AUDITOR) as auditor:
            return auditor.get("/checkpoints").text.splitlines()

    def test_entry_bundles_hold_the_records_byte_for_byte(self, world: World, auditor: httpx.Client) -> None:
        found: list[bytes] = []
        for tile in bundles_of(len(world.records)):
            answer = auditor.get("/" + tile.path)
            assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
            found += decode_bundle(answer.content)
        assert found == world.records

    def test_a_bundle_is_packed_only_for_who_can_unpack_it(self, auditor: httpx.Client) -> None:
        plain = auditor.get("/tile/entries/000", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        refusing = auditor.get("/tile/entries/000", headers={"accept-encoding": "br, gzip;q=0"})
        assert "content-encoding" not in refusing.headers
        with auditor.stream("GET", "/tile/entries/000", headers={"accept-encoding": "gzip"}) as packed:
            raw = b"".join(packed.iter_raw())
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == "Accept-Encoding"
        assert packed.headers["etag"] == f'"{hashlib.sha256(raw).hexdigest()}"'
        assert gzip.decompress(raw) == plain.content
        assert len(raw) < len(plain.content) / 2

    def test_entries_need_the_token_of_an_auditor_or_operator(
        self, world: World, nobody: httpx.Client, lab: httpx.Client
    ) -> None:
        refused(nobody.get("/tile/entries/000"), 401, "unauthorized")
        refused(lab.get("/tile/entries/000"), 403, "forbidden")
        refused(nobody.get("/checkpoints"), 401, "unauthorized")
        refused(lab.get("/checkpoints"), 403, "forbidden")
        with world.service.client(OPERATOR) as operator:
            assert operator.get("/tile/entries/000").status_code == 200

    @pytest.mark.parametrize(
        "path",
        [
            "tile/00/000", "tile/0/0", "tile/0/1", "tile/0/0000", "tile/0/000.p/0", "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/x000/000", "tile/0/x001/1", "tile/0/001.p/", "tile/0/999", "tile/63/000", "tile/64/000",
            "tile/7/000",
            "tile/-1/000", "tile/entries/00", "tile/entries/999", "tile/entries/000.p/0", "tile/8/0/000",
            "tile/0/00%30",
            "tile/0/000%2ep/1", "tile/%30/000", "tile/0/000/", "tile/0//000", "tile/", "tile/0/../0/000",
            "tile/0/%D9%A0%D9%A0%D9%A0",
            "tile/0/x999/x999/x999/x999/x999/x999/999", "tile/1/000.p/3", "tile/0/002.p/255", "tile/entries/002.p/255",
        ],
    )  # fmt: skip
    def test_what_is_not_there_or_not_canonical_is_404(self, auditor: httpx.Client, path: str) -> None:
        # A client library would tidy dots and escapes away, so the path goes out as it is.
        connection = HTTPConnection(auditor.base_url.host, auditor.base_url.port)
        connection.request("GET", f"/{path}", headers={"authorization": auditor.headers["authorization"]})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
        connection.close()

    @pytest.mark.parametrize(
        "path", ["checkpoint", "log.vkey", "policy", "tile/0/000", "tile/1/000.p/2", "tile/entries/000"]
    )
    def test_head_answers_as_get_does_without_the_body(self, auditor: httpx.Client, path: str) -> None:
        got, head = auditor.get(path), auditor.head(path)
        assert head.status_code == 200
        assert head.content == b""
        for name in (
            "etag",
            "content-length",
            "content-type",
            "cache-control",
            "access-control-allow-origin",
        ):
            assert head.headers[name] == got.headers[name]

    @pytest.mark.parametrize("path", ["checkpoint", "log.vkey", "policy", "tile/0/000"])
    def test_a_slash_more_is_another_path_and_other_methods_hear_which_there_are(
        self, nobody: httpx.Client, path: str
    ) -> None:
        assert nobody.get(f"/{path}/").status_code == nobody.head(f"/{path}/").status_code == 404
        for method in ("OPTIONS", "POST", "DELETE"):
            refused = nobody.request(method, f"/{path}")
            assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
            assert refused.headers["allow"] == "GET, HEAD"

    def test_who_has_the_bytes_already_hears_not_changed(self, nobody: httpx.Client) -> None:
        etag = nobody.get("/tile/0/000").headers["etag"]
        again = nobody.get("/tile/0/000", headers={"if-none-match": f'W/"other", {etag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert nobody.get("/tile/0/000", headers={"if-none-match": '"other"'}).status_code == 200

    def test_the_history_holds_every_checkpoint_once_and_stops_at_a_size(
        self, world: World, auditor: httpx.Client
    ) -> None:
        lines = [json.loads(line) for line in auditor.get("/checkpoints").text.splitlines()]
        sizes = [line["size"] for line in lines]
        assert sizes == sorted(set(sizes))
        assert (sizes[0], sizes[-1]) == (0, len(world.records))
        assert len(sizes) > 50
        cut = [
            json.loads(line)["size"]
            for line in auditor.get("/checkpoints", params={"size": 100}).text.splitlines()
        ]
        assert cut == [size for size in sizes if size <= 100]


class TestEvents:
    def test_an_event_is_found_by_position_and_by_address_with_its_exact_bytes(
        self, world: World, auditor: httpx.Client
    ) -> None:
        for position in (0, 255, 256, len(world.records) - 1):
            record = world.records[position]
            event = ok(auditor.get(f"/v1/log/events/{position}", params={"raw": True}))
            assert event["position"] == position
            assert event["address"] == "sha3-512:" + hashlib.sha3_512(record).hexdigest()
            assert event["record"] == json.loads(record)
            assert event["raw"].encode() == record
            assert (
                ok(auditor.get(f"/v1/log/events/by-address/{event['address']}", params={"raw": True}))
                == event
            )
            assert auditor.get(f"/v1/log/records/{position}").content == record
            assert "raw" not in ok(auditor.get(f"/v1/log/events/{position}"))

    def test_what_is_not_in_the_log_has_its_own_code(self, auditor: httpx.Client) -> None:
        refused(auditor.get("/v1/log/events/99999999"), 404, "position_not_found")
        refused(auditor.get("/v1/log/events/by-address/sha3-512:" + "00" * 64), 404, "address_not_found")
        refused(auditor.get("/v1/log/events/by-address/sha3-512:00"), 400, "invalid_address")
        refused(auditor.get("/v1/log/events/-1"), 400, "invalid_field")
        refused(auditor.get("/v1/log/streams/contract/none"), 404, "stream_not_found")
        refused(auditor.get("/v1/log/streams/nothing/none/state"), 404, "stream_not_found")
        refused(auditor.get("/v1/log/timeline/contract/none"), 404, "stream_not_found")
        refused(auditor.get("/v1/log/streams/contract/a%00b"), 400, "invalid_field")

    def test_pages_of_events_give_the_log_without_gap_or_repeat(
        self, world: World, auditor: httpx.Client
    ) -> None:
        found, after = [], -1
        while after is not None:
            page = ok(auditor.get("/v1/log/events", params={"after": after, "limit": 97}))
            found += [event["record"] for event in page["items"]]
            after = page["next"]
        assert found == [json.loads(record) for record in world.records]
        assert page["size"] == len(world.records)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("type", "transfer.posted"), ("tenant", "clinic"), ("actor", "olga"), ("actor", "nobody")],
    )
    def test_filters_give_exactly_what_they_name(
        self, world: World, auditor: httpx.Client, name: str, value: str
    ) -> None:
        found, after = [], -1
        while after is not None:
            page = ok(auditor.get("/v1/log/events", params={name: value, "after": after, "limit": 50}))
            found += [event["position"] for event in page["items"]]
            after = page["next"]
        records = map(json.loads, world.records)
        assert found == [position for position, record in enumerate(records) if record[name] == value]

    def test_another_tenants_records_are_as_good_as_absent(
        self, world: World, lab: httpx.Client, nobody: httpx.Client
    ) -> None:
        own, after = [], -1
        while after is not None:
            page = ok(lab.get("/v1/log/events", params={"after": after}))
            own += page["items"]
            after = page["next"]
        assert {event["record"]["tenant"] for event in own} == {"lab"}
        records = [json.loads(record) for record in world.records]
        assert [event["position"] for event in own] == [
            n for n, r in enumerate(records) if r["tenant"] == "lab"
        ]
        assert ok(lab.get("/v1/log/events", params={"tenant": "clinic"}))["items"] == []
        foreign = next(n for n, record in enumerate(records) if record["tenant"] == "clinic")
        address = "sha3-512:" + hashlib.sha3_512(world.records[foreign]).hexdigest()
        stream = records[foreign]["stream"]
        refused(lab.get(f"/v1/log/events/{foreign}"), 404, "position_not_found")
        refused(lab.get(f"/v1/log/records/{foreign}"), 404, "position_not_found")
        refused(lab.get(f"/v1/log/receipts/{foreign}"), 404, "position_not_found")
        refused(lab.get(f"/v1/log/events/by-address/{address}"), 404, "address_not_found")
        refused(lab.get("/v1/log/proofs/inclusion", params={"position": foreign}), 404, "position_not_found")
        refused(lab.get("/v1/log/proofs/inclusion", params={"address": address}), 404, "address_not_found")
        for path in (f"streams/{stream}", f"streams/{stream}/state", f"timeline/{stream}"):
            refused(lab.get(f"/v1/log/{path}"), 404, "stream_not_found")
        refused(nobody.get("/v1/log/events"), 401, "unauthorized")


class TestTimeTravel:
    def test_a_stream_is_told_in_order_and_in_pages(self, world: World, lab: httpx.Client) -> None:
        path = f"/v1/log/timeline/contract/{world.told.refunded_id}"
        told = ok(lab.get(path))
        assert [entry["event"] for entry in told["entries"]] == [
            "created",
            "escrow_funded",
            "escrow_refunded",
        ]
        assert [entry["type"].partition(".")[0] for entry in told["entries"]] == ["contract"] * 3
        assert [entry["version"] for entry in told["entries"]] == [1, 2, 3]
        first = ok(lab.get(path, params={"limit": 2}))
        assert first["next"] == 2
        second = ok(lab.get(path, params={"limit": 2, "after": first["next"]}))
        assert first["entries"] + second["entries"] == told["entries"]
        assert second["next"] is None
        events = ok(lab.get(f"/v1/log/streams/contract/{world.told.refunded_id}"))["items"]
        assert [event["address"] for event in events] == [entry["address"] for entry in told["entries"]]

    def test_the_state_at_a_position_is_that_of_the_events_up_to_it(
        self, world: World, lab: httpx.Client
    ) -> None:
        stream = f"contract/{world.told.refunded_id}"
        entries = ok(lab.get(f"/v1/log/timeline/{stream}"))["entries"]
        statuses = ["unfunded", "locked", "refunded"]
        for entry, status in zip(entries, statuses, strict=True):
            then = ok(lab.get(f"/v1/log/streams/{stream}/state", params={"as_of": entry["position"]}))
            assert (then["version"], then["state"]["escrow_status"]) == (entry["version"], status)
            assert then["as_of_size"] == entry["position"] + 1
            known = ok(lab.get(f"/v1/log/timeline/{stream}", params={"as_of": entry["position"]}))["entries"]
            assert known == entries[: entry["version"]]
        before = entries[0]["position"] - 1
        refused(lab.get(f"/v1/log/streams/{stream}/state", params={"as_of": before}), 404, "stream_not_found")
        refused(lab.get(f"/v1/log/timeline/{stream}", params={"as_of": before}), 404, "stream_not_found")
        now = ok(lab.get(f"/v1/log/streams/{stream}/state"))
        assert (
            now["state"] == ok(lab.get(f"/v1/log/streams/{stream}/state", params={"as_of": 10**9}))["state"]
        )

    def test_the_state_at_a_time_is_that_of_what_was_committed_by_then(
        self, world: World, lab: httpx.Client
    ) -> None:
        stream = f"contract/{world.told.refunded_id}"
        funded = ok(lab.get(f"/v1/log/timeline/{stream}"))["entries"][1]["position"]
        heads = ok(lab.get("/v1/log/checkpoints", params={"after": funded, "limit": 1}))["items"]
        at = datetime.fromisoformat(heads[0]["committed_at"])
        for moment, status in ((at, "locked"), (at - timedelta(microseconds=1), "unfunded")):
            answer = lab.get(f"/v1/log/streams/{stream}/state", params={"as_of": moment.isoformat()})
            assert ok(answer)["state"]["escrow_status"] == status
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        answer = lab.get(f"/v1/log/streams/{stream}/state", params={"as_of": later})
        assert ok(answer)["state"]["escrow_status"] == "refunded"

    @pytest.mark.parametrize("as_of", ["yesterday", "2026-01-01T00:00:00", "-1", "1e3", ""])
    def test_a_moment_that_is_none_is_refused(self, world: World, lab: httpx.Client, as_of: str) -> None:
        answer = lab.get(f"/v1/log/streams/contract/{world.told.contract_id}/state", params={"as_of": as_of})
        refused(answer, 400, "invalid_as_of")


class TestProofs:
    @pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, None])
    def test_inclusion_proofs_lead_to_the_root_of_their_size(
        self, world: World, auditor: httpx.Client, size: int | None
    ) -> None:
        end = len(world.records) if size is None else size
        for position in sorted({0, end // 3, end // 2, end - 1}):
            asked = {"position": position} | ({} if size is None else {"size": size})
            proof = ok(auditor.get("/v1/log/proofs/inclusion", params=asked))
            assert proof["size"] == end
            hashed = leaf(world.records[position])
            assert base64.b64decode(proof["leaf_hash"]) == hashed
            hashes = tuple(base64.b64decode(one) for one in proof["hashes"])
            root = world.tree.root(0, end)
            assert list(hashes) == world.tree.path(position, 0, end)
            assert inclusion_root(hashed, position, end, hashes) == root == base64.b64decode(proof["root"])
            by_address = ok(
                auditor.get("/v1/log/proofs/inclusion", params={"address": proof["address"], "size": end})
            )
            assert by_address == proof

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (0, 5),
            (1, 1),
            (1, 2),
            (3, 7),
            (128, 256),
            (255, 257),
            (256, 512),
            (256, 700),
            (300, None),
            (600, 601),
        ],
    )
    def test_consistency_proofs_are_the_ones_the_definition_gives(
        self, world: World, nobody: httpx.Client, start: int, end: int | None
    ) -> None:
        proof = ok(
            nobody.get(
                "/v1/log/proofs/consistency", params={"from": start} | ({} if end is None else {"to": end})
            )
        )
        stop = len(world.records) if end is None else end
        assert (proof["from"], proof["to"]) == (start, stop)
        assert base64.b64decode(proof["from_root"]) == world.tree.root(0, start)
        assert base64.b64decode(proof["to_root"]) == world.tree.root(0, stop)
        expected = world.tree.consistency(start, 0, stop) if start else []
        assert [base64.b64decode(one) for one in proof["hashes"]] == expected

    def test_sizes_and_places_the_log_does_not_have_are_refused(self, auditor: httpx.Client) -> None:
        inclusion, consistency = "/v1/log/proofs/inclusion", "/v1/log/proofs/consistency"
        refused(auditor.get(inclusion, params={"position": 5, "size": 5}), 400, "invalid_tree_size")
        refused(auditor.get(inclusion, params={"position": 5, "size": 10**9}), 400, "invalid_tree_size")
        refused(auditor.get(inclusion), 400, "missing_field")
        refused(
            auditor.get(inclusion, params={"position": 1, "address": "sha3-512:" + "0" * 128}),
            400,
            "missing_field",
        )
        refused(auditor.get(consistency, params={"from": 9, "to": 8}), 400, "invalid_tree_size")
        refused(auditor.get(consistency, params={"from": 9, "to": 10**9}), 400, "invalid_tree_size")
        refused(auditor.get(consistency), 400, "missing_field")

    def test_a_receipt_is_verified_offline_and_fails_for_another_record(
        self, world: World, lab: httpx.Client
    ) -> None:
        position = ok(lab.get(f"/v1/log/timeline/contract/{world.told.contract_id}"))["entries"][0][
            "position"
        ]
        answer = lab.get(f"/v1/log/receipts/{position}")
        assert answer.headers["content-disposition"] == f'attachment; filename="{position}.tlog-proof"'
        vkey = world.service.runtime.signer.key.text
        report = verify_receipt(answer.content, world.records[position], vkey)
        assert report.ok, report.findings
        assert report.position == position
        assert not verify_receipt(answer.content, world.records[position + 1], vkey).ok
        size = report.size
        older = lab.get(f"/v1/log/receipts/{position}", params={"size": position + 1})
        refused(lab.get(f"/v1/log/receipts/{position}", params={"size": 10**9}), 404, "checkpoint_not_found")
        assert older.status_code in (200, 404)
        assert size == len(world.records)


class TestWitnesses:
    """A service of its own, for a witness changes the checkpoint everybody reads."""

    @pytest.fixture
    def service(self, database_url: str, tmp_path: Path) -> Iterator[Served]:
        with serving(Settings(database_url=SecretStr(database_url), data_dir=tmp_path)) as service:
            service.run(give(service.runtime.ledger, "lab", "5"))
            yield service

    def test_a_witness_is_added_by_an_operator_only(self, service: Served) -> None:
        body = {"vkey": WITNESS.key.text, "url": "https://witness.example/"}
        with service.client() as nobody, service.client(LAB) as lab, service.client(OPERATOR) as operator:
            refused(nobody.post("/v1/log/witnesses", json=body), 401, "unauthorized")
            refused(lab.post("/v1/log/witnesses", json=body), 403, "forbidden")
            for bad, code in (
                ({"vkey": "nonsense"}, "malformed_key"),
                ({"vkey": Signer("log.example", b"1" * 32).key.text}, "malformed_key"),
                ({"vkey": WITNESS.key.text, "url": "ftp://x"}, "invalid_field"),
                ({"vkey": WITNESS.key.text, "more": 1}, "unknown_field"),
                ({}, "missing_field"),
            ):
                refused(operator.post("/v1/log/witnesses", json=bad), 400, code)
            for _ in range(2):
                added = operator.post("/v1/log/witnesses", json=body)
                assert (added.status_code, added.json()) == (201, body | {"name": WITNESS.name})
            namesake = Cosigner(WITNESS.name, b"2" * 32).key.text
            refused(operator.post("/v1/log/witnesses", json={"vkey": namesake}), 409, "witness_exists")
            assert ok(nobody.get("/v1/log/witnesses"))["items"] == [body | {"name": WITNESS.name}]
            policy = parse_policy(nobody.get("/policy").content)
            assert [witness.key for witness in policy.witnesses] == [WITNESS.key]
            assert not policy.evaluate(nobody.get("/checkpoint").content).is_satisfied

    def test_cosignatures_are_verified_kept_once_and_served(self, service: Served) -> None:
        with service.client() as nobody, service.client(OPERATOR) as operator:
            ok(operator.post("/v1/log/witnesses", json={"vkey": WITNESS.key.text}))
            note, size, _ = note_of(nobody)
            text = note.decode().partition("\n\n")[0] + "\n"
            line = WITNESS.cosignature_line(text, 1_780_000_000)
            stranger = STRANGER.cosignature_line(text, 1_780_000_000)
            first = ok(nobody.post("/v1/log/cosignatures", json={"size": size, "line": line}))
            assert first == {"size": size, "added": 1, "cosignatures": [line]}
            again = ok(nobody.post("/v1/log/cosignatures", json={"size": size, "line": line}))
            assert again == first | {"added": 0}
            whole = nobody.post("/v1/log/cosignatures", content=note + (stranger + line).encode())
            assert ok(whole) == again
            assert nobody.get("/checkpoint").content == note + line.encode()
            shown = ok(nobody.get(f"/v1/log/checkpoints/{size}"))
            assert shown["cosignatures"] == [line]
            assert shown["note"].encode() == note + line.encode()
            verdict = parse_policy(nobody.get("/policy").content).evaluate(shown["note"].encode())
            assert (verdict.is_satisfied, verdict.cosigned) == (True, (WITNESS.name,))

    def test_a_cosignature_that_says_anything_else_is_refused(self, service: Served) -> None:
        with service.client() as nobody, service.client(OPERATOR) as operator:
            ok(operator.post("/v1/log/witnesses", json={"vkey": WITNESS.key.text}))
            note, size, _ = note_of(nobody)
            text = note.decode().partition("\n\n")[0] + "\n"
            line = WITNESS.cosignature_line(text, 1_780_000_000)
            url = "/v1/log/cosignatures"
            spoiled = line[:-10] + ("A" if line[-10] != "A" else "B") + line[-9:]
            refused(nobody.post(url, json={"size": size, "line": spoiled}), 400, "invalid_cosignature")
            stranger = STRANGER.cosignature_line(text, 1_780_000_000)
            refused(nobody.post(url, json={"size": size, "line": stranger}), 400, "invalid_cosignature")
            refused(nobody.post(url, json={"size": 0, "line": line}), 400, "invalid_cosignature")
            refused(nobody.post(url, json={"size": 10**9, "line": line}), 404, "checkpoint_not_found")
            refused(nobody.post(url, json={"size": size, "line": "words"}), 400, "malformed_note")
            refused(nobody.post(url, json={"size": size}), 400, "missing_field")
            refused(nobody.post(url, content=b"words"), 400, "malformed_note")
            refused(nobody.post(url, content=note), 400, "invalid_cosignature")
            far = WITNESS.cosignature_line(text, 2**62)
            refused(nobody.post(url, json={"size": size, "line": far}), 400, "invalid_cosignature")
            fork = text.replace(text.split("\n")[2], base64.b64encode(b"\x01" * 32).decode())
            forked = f"{fork}\n{WITNESS.cosignature_line(fork, 1_780_000_000)}"
            refused(nobody.post(url, content=forked.encode()), 400, "invalid_cosignature")
            assert ok(nobody.get(f"/v1/log/checkpoints/{size}"))["cosignatures"] == []

    def test_a_receipt_leads_to_the_latest_checkpoint_a_witness_has_seen(self, service: Served) -> None:
        with service.client() as nobody, service.client(OPERATOR) as operator:
            ok(operator.post("/v1/log/witnesses", json={"vkey": WITNESS.key.text}))
            note, size, _ = note_of(nobody)
            text = note.decode().partition("\n\n")[0] + "\n"
            line = WITNESS.cosignature_line(text, 1_780_000_000)
            ok(nobody.post("/v1/log/cosignatures", json={"size": size, "line": line}))
            service.run(give(service.runtime.ledger, "lab", "6"))
            policy, vkey = nobody.get("/policy").text, nobody.get("/log.vkey").text.strip()
            seen, fresh = (operator.get(f"/v1/log/receipts/{position}").content for position in (0, size))
            record = operator.get("/v1/log/records/0").content
            report = verify_receipt(seen, record, vkey, policy)
            assert (report.ok, report.size, report.quorum) == (True, size, True)
            record = operator.get(f"/v1/log/records/{size}").content
            report = verify_receipt(fresh, record, vkey, policy)
            assert {one.code for one in report.findings} == {"quorum_missing"}
            assert verify_receipt(fresh, record, vkey).ok

    def test_entries_are_public_where_the_settings_say_so(self, database_url: str, tmp_path: Path) -> None:
        settings = Settings(database_url=SecretStr(database_url), data_dir=tmp_path, public_log_entries=True)
        with serving(settings) as service, service.client() as nobody:
            service.run(give(service.runtime.ledger, "lab", "5"))
            _, size, _ = note_of(nobody)
            answer = nobody.get(f"/tile/entries/000.p/{size}")
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            refused(nobody.get("/v1/log/events"), 401, "unauthorized")
            source = HttpSource(service.url)
            assert audit(source.read).findings == []
            source.close()

    def test_an_empty_log_can_be_audited(self, database_url: str, tmp_path: Path) -> None:
        with serving(Settings(database_url=SecretStr(database_url), data_dir=tmp_path)) as service:
            source = HttpSource(service.url, token=service.token(AUDITOR))
            report = audit(source.read, vkey=service.runtime.signer.key.text)
            source.close()
            assert (report.findings, report.size, report.checkpoints) == ([], 0, 1)


class TestCommandLine:
    """`soma ledger` and `soma audit` on a real database and a real service."""

    def _run(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(command_line, list(words), env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    def _json(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        code, out = self._run(*words, "--json", env=env)
        return code, json.loads(out)

    def _env(self, world: World) -> dict[str, str]:
        url = world.service.settings.database_url
        assert url is not None
        return {
            "SOMA_DATABASE_URL": url.get_secret_value(),
            "SOMA_DATA_DIR": str(world.service.settings.data_dir),
            "SOMA_TOKEN": world.service.token(AUDITOR),
        }

    def test_the_exports_of_a_database_and_of_a_server_are_verified(
        self, world: World, tmp_path: Path
    ) -> None:
        env, vkey = self._env(world), world.service.runtime.signer.key.text
        exports = {
            "database.zip": ("ledger", "export", str(tmp_path / "database.zip")),
            "database": ("audit", "export", str(tmp_path / "database"), "--directory"),
            "server.zip": ("audit", "export", str(tmp_path / "server.zip"), "--url", world.service.url),
            "server": (
                "audit",
                "export",
                str(tmp_path / "server"),
                "--url",
                world.service.url,
                "--directory",
            ),
        }
        digests = set()
        for name, words in exports.items():
            code, exported = self._json(*words, env=env)
            assert (code, exported["size"]) == (0, len(world.records))
            code, report = self._json("audit", "verify", str(tmp_path / name), "--key", vkey)
            assert (code, report["ok"], report["findings"]) == (0, True, [])
            digests.add(report["digest"])
        code, report = self._json("audit", "verify", world.service.url, "--key", vkey, env=env)
        assert (code, report["records"]) == (0, len(world.records))
        digests.add(report["digest"])
        code, report = self._json("ledger", "verify", env=env)
        assert (code, report["findings"]) == (0, [])
        digests.add(report["digest"])
        assert len(digests) == 1

    def test_a_damaged_export_ends_with_1_and_names_the_first_broken_promise(
        self, world: World, tmp_path: Path
    ) -> None:
        assert (
            self._run("ledger", "export", str(tmp_path / "log"), "--directory", env=self._env(world))[0] == 0
        )
        bundle = tmp_path / "log" / "tile" / "entries" / "001"
        body = bytearray(bundle.read_bytes())
        body[100] ^= 4
        bundle.write_bytes(body)
        code, report = self._json("audit", "verify", str(tmp_path / "log"))
        assert (code, report["ok"], report["first"]["code"]) == (1, False, "record_altered")
        assert report["first"]["position"] == 256
        code, out = self._run("audit", "verify", str(tmp_path / "log"))
        assert code == 1
        assert "record_altered" in out

    def test_a_receipt_is_written_and_checked(self, world: World, tmp_path: Path) -> None:
        vkey = tmp_path / "log.vkey"
        vkey.write_text(world.service.runtime.signer.key.text + "\n")
        proof, record = tmp_path / "9.tlog-proof", tmp_path / "9.json"
        words = ("ledger", "prove", "9", "-o", str(proof), "--record", str(record))
        assert self._run(*words, env=self._env(world))[0] == 0
        assert record.read_bytes() == world.records[9]
        check = ("audit", "receipt", str(proof), "--record", str(record), "--key", str(vkey))
        assert self._json(*check)[1]["ok"]
        assert self._run(*check)[0] == 0
        record.write_bytes(world.records[8])
        assert self._run(*check)[0] == 1
        address = "sha3-512:" + hashlib.sha3_512(world.records[9]).hexdigest()
        other = tmp_path / "by-address"
        assert self._run("ledger", "prove", address, "-o", str(other), env=self._env(world))[0] == 0
        assert other.read_bytes() == proof.read_bytes()

    def test_a_rebuild_finds_every_row_identical(self, world: World) -> None:
        code, report = self._json("ledger", "rebuild", env=self._env(world))
        assert (code, report["identical"]) == (0, True)
        assert report["event_count"] == len(world.records)

    def test_an_earlier_checkpoint_and_a_policy_are_held_against_the_log(
        self, world: World, tmp_path: Path
    ) -> None:
        with world.service.client() as nobody:
            page = ok(nobody.get("/v1/log/checkpoints", params={"limit": 5, "after": 40}))["items"]
        kept = tmp_path / "kept"
        kept.write_text(page[-1]["note"])
        vkey = world.service.runtime.signer.key.text
        policy = tmp_path / "policy"
        policy.write_text(f"log {vkey}\nwitness w1 {WITNESS.key.text}\nquorum w1\n")
        words = ("audit", "verify", world.service.url, "--since", str(kept))
        assert self._run(*words, env=self._env(world))[0] == 0
        code, report = self._json(*words, "--policy", str(policy), env=self._env(world))
        assert (code, [one["code"] for one in report["findings"]]) == (1, ["quorum_missing"])
