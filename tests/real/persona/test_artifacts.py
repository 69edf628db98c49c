"""Artifacts over HTTP: in one go or in pieces, back to whoever holds them, and to nobody else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha3_512
from typing import Any

import httpx
import pytest

from api.routes.artifacts import PIECE_BYTES_MAX
from domain.ledger import Caller
from tests.real.service import Service, serving, settings_on

ACME = Caller("anna", "acme", frozenset({"owner"}))
RIVAL = Caller("rolf", "rival", frozenset({"owner"}))
AUDITOR = Caller("aud", "acme", frozenset({"auditor"}))
MIB = 1 << 20


def address_of(data: bytes) -> str:
    return "sha3-512:" + sha3_512(data).hexdigest()


@pytest.fixture(scope="module")
def acme(service: Service) -> Iterator[httpx.Client]:
    with service.client(ACME) as client:
        yield client


@pytest.fixture(scope="module")
def rival(service: Service) -> Iterator[httpx.Client]:
    with service.client(RIVAL) as client:
        yield client


def put(client: httpx.Client, data: bytes | Iterator[bytes], address: str, **query: int) -> httpx.Response:
    """Send bytes under an address."""
    return client.put(f"/v1/artifacts/{address}", content=data, params=query)


def stands(answer: httpx.Response) -> tuple[str, str]:
    """Read how far an upload is."""
    return answer.headers["upload-offset"], answer.headers["upload-complete"]


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Read a refusal; give its facts."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    facts: dict[str, Any] = answer.json()["details"]
    return facts


class TestInOneGo:
    @pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 5])
    def test_what_was_sent_comes_back(self, acme: httpx.Client, size: int) -> None:
        data = os.urandom(size)
        address = address_of(data)
        answer = put(acme, data, address)
        assert answer.status_code == 201, answer.text
        assert (answer.json()["address"], answer.json()["size_bytes"]) == (address, size)
        back = acme.get(f"/v1/artifacts/{address}")
        assert back.content == data
        assert back.headers["content-length"] == str(size)
        assert back.headers["x-content-type-options"] == "nosniff"

    def test_a_body_without_a_stated_length_is_streamed(self, acme: httpx.Client) -> None:
        portions = [os.urandom(100_000) for _ in range(30)]
        address = address_of(b"".join(portions))
        assert put(acme, iter(portions), address).status_code == 201
        assert acme.get(f"/v1/artifacts/{address}").content == b"".join(portions)

    def test_it_is_one_event_however_often_it_is_sent(self, acme: httpx.Client) -> None:
        data = os.urandom(100)
        first = put(acme, data, address_of(data))
        second = put(acme, data, address_of(data))
        assert first.json()["receipt"]["event_count"] == 1
        assert (second.status_code, second.json()["receipt"]["event_count"]) == (201, 0)
        assert second.json()["version"] == 1

    def test_bytes_of_another_address_are_refused_and_not_kept(self, acme: httpx.Client) -> None:
        address = address_of(b"promised, never sent")
        facts = refused(put(acme, b"sent", address), 422, "artifact_mismatch")
        assert (facts["expected"], facts["found"]) == (address, address_of(b"sent"))
        refused(acme.get(f"/v1/artifacts/{address}"), 404, "artifact_not_found")
        refused(acme.get(f"/v1/artifacts/{address_of(b'sent')}"), 404, "artifact_not_found")

    def test_more_than_the_setting_allows_is_refused(self, acme: httpx.Client) -> None:
        portions = (bytes(MIB) for _ in range(31))
        try:
            answer = put(acme, portions, address_of(bytes(31 * MIB)))
        except httpx.TransportError:
            return  # the service hung up while it was still being sent to
        refused(answer, 413, "body_too_large")

    @pytest.mark.parametrize(
        "address", ["sha3-512:" + "0" * 127, "sha3-256:" + "0" * 128, "A" * 128, "..%2fkeys"]
    )
    def test_what_is_no_address_is_refused(self, acme: httpx.Client, address: str) -> None:
        assert put(acme, b"", address).status_code in (400, 404)

    def test_an_address_may_be_bare_hexadecimal(self, acme: httpx.Client) -> None:
        data = os.urandom(10)
        bare = address_of(data).removeprefix("sha3-512:")
        assert put(acme, data, bare).json()["address"] == address_of(data)
        assert acme.get(f"/v1/artifacts/{bare}").content == data

    def test_the_rest_can_be_asked_for(self, acme: httpx.Client) -> None:
        data = os.urandom(2 * MIB + 100)
        address = address_of(data)
        put(acme, data, address)
        rest = acme.get(f"/v1/artifacts/{address}", headers={"Range": f"bytes={MIB + 7}-"})
        assert (rest.status_code, rest.content) == (206, data[MIB + 7 :])
        assert rest.headers["content-range"] == f"bytes {MIB + 7}-{len(data) - 1}/{len(data)}"

    def test_a_damaged_one_is_refused_before_anything_of_it_is_sent(
        self, acme: httpx.Client, service: Service
    ) -> None:
        data = os.urandom(1_000)
        address = address_of(data)
        put(acme, data, address)
        store = service.settings.objects_path / "capsules"
        name = address.removeprefix("sha3-512:")
        envelope = store / "objects" / name[:2] / name[2:4] / name
        body = store / "bodies" / json.loads(envelope.read_bytes())["body"]
        sealed = bytearray(body.read_bytes())
        sealed[100] ^= 1
        body.write_bytes(sealed)
        refused(acme.get(f"/v1/artifacts/{address}"), 503, "log_damaged")
        refused(acme.get(f"/v1/artifacts/{address}", headers={"Range": "bytes=5-"}), 503, "log_damaged")


class TestInPieces:
    def test_an_upload_goes_on_where_it_stopped(self, acme: httpx.Client) -> None:
        data = os.urandom(2 * PIECE_BYTES_MAX + 1_000)
        address = address_of(data)
        refused(acme.get(f"/v1/artifacts/{address}"), 404, "artifact_not_found")
        assert acme.head(f"/v1/artifacts/{address}").status_code == 404
        first = put(acme, data[:PIECE_BYTES_MAX], address, offset=0, size=len(data))
        assert (first.status_code, stands(first)) == (202, (str(PIECE_BYTES_MAX), "?0"))
        offset = int(acme.head(f"/v1/artifacts/{address}").headers["upload-offset"])
        while offset < len(data):
            answer = put(
                acme, data[offset : offset + PIECE_BYTES_MAX], address, offset=offset, size=len(data)
            )
            offset = int(answer.headers["upload-offset"])
        assert (answer.status_code, stands(answer)) == (201, (str(len(data)), "?1"))
        assert stands(acme.head(f"/v1/artifacts/{address}")) == (str(len(data)), "?1")
        assert acme.get(f"/v1/artifacts/{address}").content == data

    def test_a_piece_that_starts_elsewhere_is_told_where_the_upload_ends(self, acme: httpx.Client) -> None:
        data = os.urandom(300)
        address = address_of(data)
        put(acme, data[:100], address, offset=0, size=300)
        for offset in (0, 50, 150):
            facts = refused(
                put(acme, data[offset : offset + 100], address, offset=offset, size=300),
                409,
                "artifact_offset",
            )
            assert facts["upload_offset"] == 100

    def test_the_same_piece_sent_at_once_is_kept_once(self, acme: httpx.Client) -> None:
        data = os.urandom(1_000)
        address = address_of(data)
        with ThreadPoolExecutor(8) as many:
            answers = list(many.map(lambda _: put(acme, data[:500], address, offset=0, size=1_000), range(8)))
        assert [a.status_code for a in answers].count(202) == 1
        assert {a.status_code for a in answers} == {202, 409}
        assert put(acme, data[500:], address, offset=500, size=1_000).status_code == 201
        assert acme.get(f"/v1/artifacts/{address}").content == data

    def test_an_upload_that_many_finish_at_once_is_done_once_and_called_wrong_by_nobody(
        self, acme: httpx.Client
    ) -> None:
        data = os.urandom(2_000)
        address = address_of(data)
        put(acme, data, address, offset=0, size=2_001)
        assert acme.head(f"/v1/artifacts/{address}").headers["upload-offset"] == "2000"
        with ThreadPoolExecutor(12) as many:
            ends = list(many.map(lambda _: put(acme, b"", address, offset=2_000, size=2_000), range(12)))
        assert {answer.status_code for answer in ends} <= {201, 409}
        assert acme.get(f"/v1/artifacts/{address}").content == data

    def test_pieces_of_other_bytes_are_forgotten(self, acme: httpx.Client) -> None:
        address = address_of(b"promised")
        put(acme, b"othe", address, offset=0, size=8)
        refused(put(acme, b"rwis", address, offset=4, size=8), 422, "artifact_mismatch")
        assert acme.head(f"/v1/artifacts/{address}").status_code == 404
        assert put(acme, b"promised", address, offset=0, size=8).status_code == 201

    def test_a_piece_is_not_larger_than_pieces_are(self, acme: httpx.Client) -> None:
        data = bytes(PIECE_BYTES_MAX + 1)
        refused(put(acme, data, address_of(data), offset=0, size=9 * MIB), 413, "body_too_large")
        refused(put(acme, b"abc", address_of(b"ab"), offset=0, size=2), 413, "body_too_large")
        refused(put(acme, b"", address_of(b""), offset=0, size=31_000_000), 413, "body_too_large")

    @pytest.mark.parametrize("query", [{"offset": 0}, {"size": 3}])
    def test_a_piece_says_both_where_and_of_how_much(self, acme: httpx.Client, query: dict[str, int]) -> None:
        refused(put(acme, b"abc", address_of(b"abc"), **query), 400, "invalid_request")

    def test_nothing_in_pieces_is_possible_too(self, acme: httpx.Client) -> None:
        assert put(acme, b"", address_of(b""), offset=0, size=0).status_code == 201


class TestWhoHoldsWhat:
    def test_another_tenant_s_artifact_is_as_good_as_absent(
        self, acme: httpx.Client, rival: httpx.Client
    ) -> None:
        data = os.urandom(64)
        address = address_of(data)
        put(acme, data, address)
        refused(rival.get(f"/v1/artifacts/{address}"), 404, "artifact_not_found")
        assert rival.head(f"/v1/artifacts/{address}").status_code == 404
        # Knowing an address is not holding the bytes.
        refused(put(rival, b"", address, offset=0, size=0), 422, "artifact_mismatch")
        assert put(rival, data, address).json()["receipt"]["event_count"] == 1
        assert rival.get(f"/v1/artifacts/{address}").content == data
        assert address in {item["address"] for item in rival.get("/v1/artifacts").json()["items"]}

    def test_pieces_of_two_tenants_do_not_mix(self, acme: httpx.Client, rival: httpx.Client) -> None:
        data = os.urandom(200)
        address = address_of(data)
        put(acme, data[:150], address, offset=0, size=200)
        assert rival.head(f"/v1/artifacts/{address}").status_code == 404
        refused(put(rival, data[150:], address, offset=150, size=200), 409, "artifact_offset")

    def test_only_authors_upload(self, service: Service) -> None:
        with service.client(AUDITOR) as auditor:
            refused(put(auditor, b"x", address_of(b"x")), 403, "forbidden")
        with service.client() as nobody:
            refused(put(nobody, b"x", address_of(b"x")), 401, "unauthorized")
            refused(nobody.get("/v1/artifacts"), 401, "unauthorized")


def test_an_upload_goes_on_after_the_service_was_started_again(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = settings_on(database_url, tmp_path_factory.mktemp("again"))
    data = os.urandom(3_000)
    address = address_of(data)
    with serving(settings) as service, service.client(ACME) as acme:
        put(acme, data[:1_000], address, offset=0, size=3_000)
    with serving(settings) as service, service.client(ACME) as acme:
        assert stands(acme.head(f"/v1/artifacts/{address}")) == ("1000", "?0")
        # As a crash between the last piece and the rest would leave it.
        service.runtime.vault.put_piece("acme", address, 1_000, data[1_000:])
    with serving(settings) as service, service.client(ACME) as acme:
        assert stands(acme.head(f"/v1/artifacts/{address}")) == ("3000", "?0")
        assert put(acme, b"", address, offset=3_000, size=3_000).status_code == 201
        assert acme.get(f"/v1/artifacts/{address}").content == data
        assert list(service.runtime.vault._list("capsules/uploads")) == []
