"""The independent verifier against whole logs made naively, and against everything done to them."""

from __future__ import annotations

import base64
import json
import random
import struct
from functools import cache
from typing import Any

import pytest

from domain.log.audit import Report, audit
from domain.log.audit_findings import CODES, FINDINGS_MAX
from domain.log.audit_proof import verify_receipt
from tests.unit.log import log_maker as made

Files = dict[str, bytes]
SIZE = 600


@cache
def records_of(count: int) -> tuple[bytes, ...]:
    return tuple(made.chained(made.sample_events(count)))


@cache
def _files_of(count: int) -> Files:
    history = tuple(sorted({0, 1, count // 3, count // 2, min(256, count), max(count - 1, 0), count}))
    return made.a_log(list(records_of(count)), history=tuple(size for size in history if size <= count))


def files_of(count: int) -> Files:
    return dict(_files_of(count))


VKEY = made.Signer().vkey


def run(files: Files, **more: Any) -> Report:
    return audit(files.get, **({"vkey": VKEY} | more))


def found(report: Report) -> set[tuple[str, int | None]]:
    return {(finding.code, finding.position) for finding in report.findings}


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


class TestValidLogs:
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 1000])
    def test_a_valid_log_has_no_finding(self, count: int) -> None:
        report = run(files_of(count))
        assert report.findings == []
        assert report.ok
        assert report.key_pinned
        assert (report.size, report.records) == (count, count)
        assert report.bytes == sum(map(len, records_of(count)))

    def test_a_log_of_three_levels_has_no_finding_and_one_digest(self) -> None:
        event = {"data": {}, "correlation": None}
        records = made.chained([event | {"stream": f"s/{n}"} for n in range(66_000)])
        files = made.a_log(records, history=(65_535, 65_536, 65_537, 65_800))
        steps: list[tuple[int, int]] = []
        report = run(files, progress=lambda done, total: steps.append((done, total)))
        assert report.findings == []
        assert report.streams == 66_000
        assert steps[0] == (0, 66_000)
        assert steps[-1] == (66_000, 66_000)
        assert steps == sorted(steps)
        spoiled = bytearray(files["tile/1/001.p/1"])
        spoiled[3] ^= 1
        report = run(files | {"tile/1/001.p/1": bytes(spoiled)})
        assert found(report) == {("tile_altered", 65_536)}
        spoiled = bytearray(files["tile/1/000"])
        spoiled[40 * 32] ^= 1
        assert found(run(files | {"tile/1/000": bytes(spoiled)})) == {("tile_altered", 40 * 256)}

    def test_two_audits_of_one_log_give_one_digest(self) -> None:
        assert run(files_of(SIZE)).digest == run(files_of(SIZE)).digest != run(files_of(SIZE - 1)).digest

    def test_an_unpinned_key_is_used_and_said_to_be_unpinned(self) -> None:
        report = run(files_of(10), vkey=None)
        assert report.ok
        assert not report.key_pinned

    def test_a_grown_log_may_have_dropped_its_partial_tiles(self) -> None:
        grown = files_of(SIZE)
        small = made.a_log(list(records_of(SIZE)[:500]))
        kept = {path: small[path] for path in ("checkpoint", "tile/1/000.p/1")}
        files = {path: body for path, body in grown.items() if path.startswith("tile/")}
        assert run(files | kept).findings == []

    def test_the_callers_earlier_checkpoints_are_compared(self) -> None:
        since = [
            made.a_log(list(records_of(SIZE)[:size]))["checkpoint"].decode() for size in (0, 5, 256, 599)
        ]
        report = run(files_of(SIZE), since=since)
        assert report.ok
        assert report.checkpoints == len(since) + len({0, 1, 200, 256, 300, 599, 600})


# --------------------------------------------------------------------------- the tamper suite


def flipped(body: bytes, at: int, bit: int) -> bytes:
    return body[:at] + bytes([body[at] ^ (1 << bit)]) + body[at + 1 :]


def bundle(records: list[bytes]) -> bytes:
    return b"".join(struct.pack(">H", len(raw)) + raw for raw in records)


def with_bundle(files: Files, records: list[bytes], position: int) -> Files:
    """Put these records in the place of the bundle of a position, tiles untouched."""
    index = position // 256
    return files | {made.path_of("entries", index, min(256, SIZE - index * 256)): bundle(records)}


def part_of(position: int) -> list[bytes]:
    start = position // 256 * 256
    return list(records_of(SIZE)[start : start + 256])


class TestTampering:
    @pytest.mark.parametrize("seed", range(80))
    def test_a_flipped_bit_in_a_record_names_the_record(self, seed: int) -> None:
        dice = random.Random(seed)
        position = dice.randrange(SIZE)
        part = part_of(position)
        raw = part[position % 256]
        part[position % 256] = flipped(raw, dice.randrange(len(raw)), dice.randrange(8))
        report = run(with_bundle(files_of(SIZE), part, position))
        first = report.first
        assert first is not None
        assert (first.code, first.position) == ("record_altered", position)
        assert not codes(report) & {"tile_altered", "root_mismatch", "history_rewritten", "version_gap"}

    @pytest.mark.parametrize("seed", range(40))
    def test_a_flipped_bit_in_a_tile_names_the_tile_and_nothing_else(self, seed: int) -> None:
        dice = random.Random(seed)
        files = files_of(SIZE)
        tiles = sorted(path for path in files if path.startswith(("tile/0/", "tile/1/")))
        path = dice.choice(tiles)
        at = dice.randrange(len(files[path]))
        report = run(files | {path: flipped(files[path], at, dice.randrange(8))})
        level, index = int(path.split("/")[1]), int(path.split("/")[2][:3])
        assert [(one.code, one.path) for one in report.findings] == [("tile_altered", path)]
        assert report.findings[0].position == (index * 256 + at // 32) << (8 * level)

    @pytest.mark.parametrize("seed", range(30))
    def test_a_flipped_length_names_the_place_in_the_bundle(self, seed: int) -> None:
        dice = random.Random(seed)
        position = dice.randrange(SIZE)
        part = part_of(position)
        body, at = bundle(part), len(bundle(part[: position % 256])) + dice.randrange(2)
        path = made.path_of("entries", position // 256, len(part))
        report = run(files_of(SIZE) | {path: flipped(body, at, dice.randrange(8))})
        assert report.first is not None
        assert report.first.path in (path, None)
        assert codes(report) & {"bundle_malformed", "bundle_extra", "record_altered"}
        assert report.first.position == position

    @pytest.mark.parametrize("seed", range(40))
    def test_a_flipped_bit_in_the_checkpoint_is_found(self, seed: int) -> None:
        dice = random.Random(seed)
        files = files_of(SIZE)
        body = files["checkpoint"]
        report = run(files | {"checkpoint": flipped(body, dice.randrange(len(body)), dice.randrange(8))})
        names = {"checkpoint_malformed", "signature_invalid", "origin_mismatch", "key_unknown"}
        assert report.first is not None
        assert report.first.code in names
        assert report.first.path == "checkpoint"

    @pytest.mark.parametrize("pinned", [True, False])
    @pytest.mark.parametrize("seed", range(15))
    def test_a_flipped_bit_in_the_key_file_is_found(self, seed: int, pinned: bool) -> None:
        dice = random.Random(seed)
        files = files_of(20)
        body = files["log.vkey"]
        files["log.vkey"] = flipped(body, dice.randrange(len(body)), dice.randrange(8))
        report = run(files, vkey=VKEY if pinned else None)
        assert codes(report) == {"key_malformed"}
        assert report.findings[0].path == "log.vkey"

    @pytest.mark.parametrize("seed", range(25))
    def test_a_flipped_bit_in_the_history_names_its_line(self, seed: int) -> None:
        dice = random.Random(seed)
        files = files_of(SIZE)
        body = files["checkpoints"]
        at = dice.randrange(len(body))
        report = run(files | {"checkpoints": flipped(body, at, dice.randrange(8))})
        names = {
            "history_malformed",
            "checkpoint_malformed",
            "signature_invalid",
            "key_unknown",
            "origin_mismatch",
        }
        assert report.first is not None
        assert codes(report) <= names
        line = body[:at].count(b"\n") + 1
        assert all(
            one.path in (f"checkpoints:{line}", f"checkpoints:{line + 1}", "checkpoints")
            for one in report.findings
        )

    @pytest.mark.parametrize("seed", range(20))
    def test_a_removed_record_is_named(self, seed: int) -> None:
        position = random.Random(seed).randrange(SIZE)
        part = part_of(position)
        del part[position % 256]
        report = run(with_bundle(files_of(SIZE), part, position))
        assert found(report) == {("bundle_malformed", position)}
        assert report.holed_from == position

    @pytest.mark.parametrize("seed", range(20))
    def test_an_inserted_record_is_named(self, seed: int) -> None:
        position = random.Random(seed).randrange(SIZE)
        part = part_of(position)
        part.insert(position % 256, made.canonical(made.a_record(1, None, stream=f"forged/{seed}")))
        report = run(with_bundle(files_of(SIZE), part, position))
        assert found(report) == {("bundle_extra", position)}

    @pytest.mark.parametrize("seed", range(20))
    def test_two_swapped_records_are_both_named(self, seed: int) -> None:
        dice = random.Random(seed)
        one = dice.randrange(SIZE)
        part = part_of(one)
        other = dice.choice([at for at in range(len(part)) if at != one % 256])
        part[one % 256], part[other] = part[other], part[one % 256]
        report = run(with_bundle(files_of(SIZE), part, one))
        assert found(report) == {("record_altered", one), ("record_altered", one // 256 * 256 + other)}

    @pytest.mark.parametrize("path", sorted(path for path in _files_of(SIZE) if path.startswith("tile/")))
    def test_a_missing_file_is_named(self, path: str) -> None:
        files = files_of(SIZE)
        del files[path]
        report = run(files)
        kind = "bundle_missing" if "entries" in path else "tile_missing"
        assert [(one.code, one.path) for one in report.findings] == [(kind, path)]

    @pytest.mark.parametrize("path", sorted(_files_of(SIZE)))
    @pytest.mark.parametrize("cut", [1, 31, 40])
    def test_a_cut_file_is_found(self, path: str, cut: int) -> None:
        files = files_of(SIZE)
        files[path] = files[path][:-cut]
        # The line feed after the key belongs to the file, not to the key.
        assert run(files).ok == (path == "log.vkey" and cut == 1)

    @pytest.mark.parametrize("count", [599, 513, 512, 511, 256, 1, 0])
    def test_a_cut_tail_with_an_old_checkpoint_is_a_truncation(self, count: int) -> None:
        kept = files_of(SIZE)["checkpoint"].decode()
        old = made.a_log(list(records_of(SIZE)[:count]))
        report = run(old, since=[kept])
        assert found(report) == {("truncated", count)}
        history = {"checkpoints": files_of(SIZE)["checkpoints"]}
        assert "truncated" in codes(run(old | history))

    @pytest.mark.parametrize("seed", range(15))
    def test_a_history_rewritten_by_the_holder_of_the_key_is_found_by_an_earlier_checkpoint(
        self, seed: int
    ) -> None:
        dice = random.Random(seed)
        at, size = dice.randrange(300), dice.randrange(300, SIZE + 1)
        events = made.sample_events(SIZE)
        events[at] = events[at] | {"actor": "forger"}
        forged = made.a_log(made.chained(events))
        kept = made.a_log(list(records_of(SIZE)[:size]))["checkpoint"].decode()
        assert run(forged).ok
        assert found(run(forged, since=[kept])) == {("history_rewritten", size)}

    @pytest.mark.parametrize("seed", range(10))
    def test_a_record_rehashed_up_to_the_root_without_the_key_is_found(self, seed: int) -> None:
        at = random.Random(seed).randrange(SIZE)
        records = list(records_of(SIZE))
        value = json.loads(records[at])
        records[at] = made.canonical(value | {"actor": "forger"})
        forged = made.tiles_of(records)
        report = run(files_of(SIZE) | forged)
        assert codes(report) & {"root_mismatch"}
        after = [n for n in range(at + 1, SIZE) if json.loads(records[n])["stream"] == value["stream"]]
        assert not after or ("chain_broken", after[0]) in found(report)
        # With another key's signature over the forged tree:
        signer = made.Signer("forger")
        files = made.a_log(records, signer) | {"log.vkey": files_of(SIZE)["log.vkey"]}
        assert run(files).first.code == "key_unknown"  # type: ignore[union-attr]

    @pytest.mark.parametrize("position", [0, 100, 255, 256, 511, 513, 599])
    def test_a_record_altered_together_with_its_tile_is_told_by_the_tree_above(self, position: int) -> None:
        records = list(records_of(SIZE))
        records[position] = made.canonical(json.loads(records[position]) | {"actor": "forger"})
        forged = made.tiles_of(records)
        index = position // 256
        width = min(256, SIZE - index * 256)
        paths = [made.path_of(level, index, width) for level in ("entries", 0)]
        report = run(files_of(SIZE) | {path: forged[path] for path in paths})
        wanted = ("range_altered", index * 256) if width == 256 else ("root_mismatch", None)
        assert wanted in found(report)

    def test_a_log_of_another_key_is_found(self) -> None:
        other = made.a_log(list(records_of(20)), made.Signer("other"))
        assert [one.code for one in run(other).findings] == ["key_mismatch", "key_unknown"]
        named = made.a_log(list(records_of(20)), made.Signer("other", "other.example/log"))
        assert run(named | {"log.vkey": VKEY.encode()}).first.code == "origin_mismatch"  # type: ignore[union-attr]

    def test_a_forged_size_ends_the_walk(self) -> None:
        checkpoint = made.Signer().checkpoint(2**62, b"\x01" * 32).encode()
        report = run(files_of(SIZE) | {"checkpoint": checkpoint})
        assert len(report.findings) == FINDINGS_MAX
        assert report.dropped_count > 0

    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("format", "other"),
            ("version", 2),
            ("version", True),
            ("size", 5),
            ("origin", "x"),
            ("created_at", "x"),
            ("more", 1),
        ],
    )
    def test_a_manifest_of_something_else_is_found(self, member: str, value: Any) -> None:
        files = files_of(20)
        files["manifest.json"] = made.canonical(json.loads(files["manifest.json"]) | {member: value})
        assert codes(run(files)) == {"manifest_mismatch"}
        del files["manifest.json"]
        assert run(files).ok
        assert codes(run(files, manifest_required=True)) == {"manifest_mismatch"}

    def test_rubbish_everywhere_never_raises(self) -> None:
        dice = random.Random(5)
        for _ in range(60):
            files = files_of(300)
            for path in dice.sample(sorted(files), 3):
                files[path] = dice.choice(
                    [b"", dice.randbytes(dice.randrange(9000)), b"\xff" * 64, b"[" * 100_000]
                )
            assert not run(files, vkey=dice.choice([VKEY, None, "x", ""]), since=["", "\udc80"]).ok

    def test_a_source_that_fails_is_a_finding(self) -> None:
        def source(path: str) -> bytes | None:
            if path == "tile/0/001":
                raise TimeoutError("no answer")
            return files_of(SIZE).get(path)

        report = audit(source, vkey=VKEY)
        assert [(one.code, one.path) for one in report.findings] == [("unreadable", "tile/0/001")]


# --------------------------------------------------------------------------- what records promise


def log_with(records: list[bytes]) -> Files:
    """A log whose every hash and signature is right, whatever its records say."""
    return made.a_log(records)


class TestRecords:
    @pytest.mark.parametrize(
        ("raw", "code"),
        [
            (b"", "record_malformed"),
            (b"{}", "record_malformed"),
            (b"[]", "record_malformed"),
            (b"\xff\xfe", "record_malformed"),
            (made.canonical(made.a_record(1, None, data={"x": 1.5})), "record_not_canonical"),
            (made.canonical(made.a_record(1, None, data={"x": 1e300})), "record_not_canonical"),
            (made.canonical(made.a_record(1, None, data={"x": 2**53})), "record_not_canonical"),
            (made.canonical(made.a_record(1, None, data={"ä": 1})), "record_not_canonical"),
            (made.canonical(made.a_record()).replace(b":1,", b": 1,"), "record_not_canonical"),
            (made.canonical(made.a_record()).replace(b'"acme"', b'"\\u0061cme"'), "record_not_canonical"),
            (
                made.canonical(made.a_record()).replace(b'{"note"', b'{"note":"m","note"'),
                "record_not_canonical",
            ),
            (
                json.dumps(made.a_record(), separators=(",", ":")).encode()[:-1] + b',"a":1}',
                "record_not_canonical",
            ),
            (made.canonical(made.a_record(extra=1)), "unexpected_member"),
            (made.canonical(made.a_record(1, None, schema=0)), "record_malformed"),
            (made.canonical(made.a_record(1, None, schema=True)), "record_malformed"),
            (made.canonical(made.a_record(1, None, at="2026-02-30T10:11:12.123456Z")), "record_malformed"),
            (made.canonical(made.a_record(1, None, at="2026-07-22T10:11:12.123Z")), "record_malformed"),
            (
                made.canonical(made.a_record(1, None, at="2026-07-22T10:11:12.123456+00:00")),
                "record_malformed",
            ),
            (made.canonical(made.a_record(1, None, stream="contract")), "record_malformed"),
            (made.canonical(made.a_record(1, None, tenant=None)), "record_malformed"),
            (made.canonical(made.a_record(1, None, data=[])), "record_malformed"),
        ],
    )
    def test_a_hashed_and_signed_record_of_the_wrong_form_is_named(self, raw: bytes, code: str) -> None:
        first = made.canonical(made.a_record(1, None, stream="other/1"))
        report = run(log_with([first, raw]))
        assert (code, 1) in found(report)
        assert {position for _, position in found(report)} == {1}

    def test_breaks_of_the_chain_are_named(self) -> None:
        one = made.canonical(made.a_record())
        two = made.canonical(made.a_record(2, made.address(one)))
        wrong = made.canonical(made.a_record(2, made.address(two)))
        three = made.canonical(made.a_record(3, made.address(two)))
        assert found(run(log_with([one, two, three]))) == set()
        assert found(run(log_with([one, wrong]))) == {("chain_broken", 1)}
        assert found(run(log_with([one, three]))) == {("version_gap", 1)}
        assert found(run(log_with([one, two, two, three]))) == {("version_duplicate", 2)}
        assert found(run(log_with([two]))) == {("version_gap", 0)}
        orphan = made.canonical(made.a_record(1, made.address(two)))
        assert found(run(log_with([orphan]))) == {("chain_broken", 0)}

    def test_nothing_is_held_against_a_stream_after_a_hole_but_a_broken_chain_is(self) -> None:
        one = made.canonical(made.a_record())
        four = made.canonical(made.a_record(4, made.address(b"lost")))
        two = made.canonical(made.a_record(2, made.address(b"wrong")))
        assert found(run(log_with([one, b"?", four]))) == {("record_malformed", 1)}
        assert found(run(log_with([one, b"?", two]))) == {("record_malformed", 1), ("chain_broken", 2)}


# --------------------------------------------------------------------------- what money promises


OPEN = made.with_money(
    made.opened("bank", "debit", overdraft=True),
    made.opened("a"),
    made.opened("b"),
    made.opened("usd", currency="USD"),
)
FUND = made.with_money(made.moved(("bank", "10"), ("a", "-10")))


class TestMoney:
    @pytest.mark.parametrize(
        ("entries", "code"),
        [
            ([made.moved(("a", "1"), ("b", "-2"))], "money_unbalanced"),
            ([made.moved(("a", "10.000000001"), ("b", "-10.000000001"))], "account_overdrawn"),
            ([made.moved(("a", "5"), ("a", "6"), ("b", "-11"))], "account_overdrawn"),
            ([made.held("h", "a", "10"), made.moved(("a", "0.01"), ("b", "-0.01"))], "account_overdrawn"),
            ([made.held("h", "a", "6"), made.held("i", "a", "6")], "account_overdrawn"),
            ([made.moved(("c", "-1"), ("bank", "1"))], "account_unknown"),
            ([made.held("h", "c", "1")], "account_unknown"),
            ([made.opened("a")], "account_reopened"),
            ([made.moved(("usd", "-1"), ("bank", "1"))], "currency_mixed"),
            ([made.held("h", "a", "1", "USD")], "currency_mixed"),
            ([{"op": "void", "hold": "h"}], "hold_unknown"),
            ([made.moved(("a", "1"), ("b", "-1"), op="post", hold="h")], "hold_unknown"),
            ([made.held("h", "a", "1"), *[{"op": "void", "hold": "h"}] * 2], "hold_settled_twice"),
            (
                [made.held("h", "a", "1"), {"op": "expire", "hold": "h"}, {"op": "void", "hold": "h"}],
                "hold_settled_twice",
            ),
            (
                [made.held("h", "a", "1"), *[made.moved(("a", "1"), ("b", "-1"), op="post", hold="h")] * 2],
                "hold_settled_twice",
            ),
            (
                [made.held("h", "a", "1"), made.moved(("a", "2"), ("b", "-2"), op="post", hold="h")],
                "hold_exceeded",
            ),
            ([made.held("h", "a", "1"), made.held("h", "a", "1")], "hold_reused"),
            ([made.held("h", "a", "-1")], "bad_amount"),
            ([made.held("h", "a", "0")], "bad_amount"),
            *[
                ([made.moved(("bank", text), ("a", "-1"))], "bad_amount")
                for text in ("1e3", "+1", "01", "1.", ".5", " 1", "1.0000000001", "NaN", "-0", "", "١")
            ],
            ([made.moved(("bank", 1), ("a", "-1"))], "bad_amount"),  # type: ignore[arg-type]
            ([made.moved(("bank", "1"), ("a", "-1"), note="x")], "unexpected_member"),
            ([{"op": "mint"}], "record_malformed"),
            ([{"op": []}], "record_malformed"),
            ([{"op": "hold"}], "record_malformed"),
            ([made.opened("c", "left")], "record_malformed"),
            ([5], "record_malformed"),
            ([{"op": "transfer", "currency": "EUR", "postings": 5}], "record_malformed"),
            ([{"op": "transfer", "currency": "EUR", "postings": [5]}], "record_malformed"),
            ([{"op": "transfer", "currency": 5, "postings": []}], "record_malformed"),
        ],
    )
    def test_a_broken_promise_of_money_is_named(self, entries: list[dict[str, Any]], code: str) -> None:
        report = run(log_with(made.chained([OPEN, FUND, made.with_money(*entries), FUND])))
        assert found(report) == {(code, 2)}

    def test_money_that_is_no_list_is_named(self) -> None:
        report = run(log_with(made.chained([OPEN, {"data": {"money": {}}}])))
        assert found(report) == {("record_malformed", 1)}

    def test_what_a_settlement_leaves_of_its_hold_is_free_again(self) -> None:
        entries = [
            made.held("h", "a", "10"),
            made.moved(("a", "4"), ("b", "-4"), op="post", hold="h"),
            made.moved(("a", "6"), ("b", "-6")),
        ]
        assert run(log_with(made.chained([OPEN, FUND, made.with_money(*entries)]))).findings == []

    def test_a_debit_account_is_overdrawn_by_credits(self) -> None:
        events = [made.with_money(made.opened("cash", "debit"), made.opened("a", overdraft=True))]
        events += [made.with_money(made.moved(("cash", "5"), ("a", "-5")))]
        assert run(log_with(made.chained(events))).ok
        events += [made.with_money(made.moved(("cash", "-5.01"), ("a", "5.01")))]
        assert found(run(log_with(made.chained(events)))) == {("account_overdrawn", 2)}


# --------------------------------------------------------------------------- witnesses and receipts


WITNESSES = [made.Signer(f"w{n}", f"witness.example/{n}", 4) for n in range(3)]
POLICY = "".join(
    [
        f"log {VKEY}\n",
        *(f"witness w{n} {one.vkey}\n" for n, one in enumerate(WITNESSES)),
        "group g 2 w0 w1 w2\nquorum g\n",
    ]
)


def cosigned(files: Files, count: int) -> Files:
    text = files["checkpoint"].decode().partition("\n\n")[0] + "\n"
    lines = "".join(one.cosign(text) for one in WITNESSES[:count])
    return files | {"checkpoint": files["checkpoint"] + lines.encode()}


class TestWitnesses:
    @pytest.mark.parametrize("count", range(4))
    def test_a_quorum_is_needed_where_the_caller_names_a_policy(self, count: int) -> None:
        report = run(cosigned(files_of(20), count), policy=POLICY, vkey=None)
        assert report.key_pinned
        assert report.quorum == (count >= 2)
        assert codes(report) == (set() if count >= 2 else {"quorum_missing"})

    def test_a_bad_cosignature_is_named(self) -> None:
        files = cosigned(files_of(20), 3)
        other = made.a_log(list(records_of(21)))["checkpoint"].decode().partition("\n\n")[0] + "\n"
        text = files["checkpoint"].decode().splitlines(keepends=True)
        text[-1] = WITNESSES[2].cosign(other)
        report = run(files | {"checkpoint": "".join(text).encode()}, policy=POLICY)
        assert codes(report) == {"cosignature_invalid"}
        assert report.quorum

    def test_where_nobody_is_asked_for_no_quorum_is_said_to_be_reached(self) -> None:
        nobody = f"log {VKEY}\nquorum none\n"
        assert run(files_of(5), policy=nobody).quorum is None
        assert run(files_of(5) | {"policy": nobody.encode()}).quorum is None
        report = verify_receipt(a_proof(7, 3), records_of(7)[3], VKEY, nobody)
        assert (report.ok, report.quorum) == (True, None)

    @pytest.mark.parametrize(
        "text", ["", "quorum x\n", POLICY + "quorum g\n", POLICY + "nonsense\n", "log x\nquorum none\n"]
    )
    def test_a_policy_that_cannot_be_read_is_named(self, text: str) -> None:
        assert codes(run(files_of(3), policy=text)) == {"policy_malformed"}


def a_proof(count: int, position: int) -> str:
    leaves = [made.leaf(raw) for raw in records_of(count)]
    hashes = [base64.b64encode(node).decode() for node in made.inclusion(leaves, position)]
    head = ["c2sp.org/tlog-proof@v1", f"index {position}", *hashes, "", ""]
    return "\n".join(head) + files_of(count)["checkpoint"].decode()


class TestReceipts:
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 255, 257])
    def test_every_receipt_holds_for_its_record_only(self, count: int) -> None:
        records = records_of(count)
        for position in {0, count // 2, count - 1}:
            proof = a_proof(count, position)
            report = verify_receipt(proof, records[position], VKEY)
            assert report.ok
            assert (report.position, report.size) == (position, count)
            assert report.address == made.address(records[position])
            wrong = verify_receipt(proof, records[position] + b" ", VKEY)
            assert "inclusion_invalid" in {one.code for one in wrong.findings}

    def test_every_flipped_bit_of_a_receipt_is_found(self) -> None:
        proof, record = a_proof(7, 3).encode(), records_of(7)[3]
        dice = random.Random(1)
        for at in range(len(proof)):
            report = verify_receipt(flipped(proof, at, dice.randrange(8)), record, VKEY)
            assert not report.ok, at
            assert {one.code for one in report.findings} <= CODES.keys()

    def test_a_receipt_of_another_log_or_without_its_quorum_is_refused(self) -> None:
        proof, record = a_proof(7, 3), records_of(7)[3]
        assert not verify_receipt(proof, record, made.Signer("other").vkey).ok
        assert {one.code for one in verify_receipt(proof, record, VKEY, POLICY).findings} == {
            "quorum_missing"
        }
        assert not verify_receipt(proof, record, "nonsense", "nonsense").ok
