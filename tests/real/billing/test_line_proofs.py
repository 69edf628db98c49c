"""The proof of a line, taken over HTTP and checked offline: whole ones are accepted, all else is refused and named."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.billing.line_proofs import LINE_CODES, LineReport, check_line, print_page
from ops.audit_invoice import Auditor
from ops.audit_sources import open_source
from tests.real.api.world import refused
from tests.real.billing.audited import Story, tell
from tests.real.billing.billing_desk import desk
from tests.real.billing.conftest import lending
from tests.unit.log.log_maker import Signer, address

Page = dict[str, Any]
# Of the invoice "first": what was counted of tokens going out before and after the price changed.
BEFORE, AFTER = 2, 6


@pytest.fixture(scope="module")
def story(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Tell the story once for all tests of this file."""
    with lending(server_url, template_database) as url, desk(url, tmp_path_factory.mktemp("lines")) as opened:
        yield tell(opened)


def spelled(page: Page) -> bytes:
    """Write a page as the service does."""
    return json.dumps(page, separators=(",", ":"), ensure_ascii=False).encode()


def page_of(story: Story, name: str, line: int) -> Page:
    """Take a line's proof as one page."""
    (data,) = story.bundles(name, line)
    page: Page = json.loads(data)
    assert spelled(page) == data
    return page


def check(story: Story, *pages: Page) -> LineReport:
    return check_line(map(spelled, pages), story.vkey)


def codes(report: LineReport) -> set[str]:
    found = {one.code for one in report.findings}
    assert found <= LINE_CODES.keys()
    assert all(one.message for one in report.findings)
    return found


class TestWholeProofs:
    def test_every_line_of_every_invoice_is_accepted_in_pages_of_any_size(self, story: Story) -> None:
        for made in story.invoices.values():
            for number, evidence in enumerate(made["evidence"]):
                for limit in (2, 5, 500):
                    pages = story.pages(made["id"], number, limit)
                    report = check_line(pages, story.vkey)
                    assert report.findings == []
                    assert report.line is not None
                    assert (report.invoice, report.number, report.pages) == (made["id"], number, len(pages))
                    assert report.readings == (evidence["events"] if evidence else 0)
                    assert report.line.amount.amount == made["bill"]["lines"][number]["amount"]["amount"]

    def test_what_the_service_gives_is_what_an_export_gives(self, story: Story, tmp_path: Path) -> None:
        source = open_source(str(story.export(tmp_path / "log.zip")))
        made = story.invoices["again"]
        auditor = Auditor(source.read, made["number"], vkey=story.vkey)
        auditor.run()
        for number in range(len(made["bill"]["lines"])):
            pages = [print_page(page) for page in auditor.pages(number, page_readings=3)]
            assert pages == story.pages(made["id"], number, 3)
        source.close()

    def test_pages_stay_under_the_checkpoint_of_the_first_while_the_log_grows(self, story: Story) -> None:
        made = story.invoices["first"]
        path = f"/v1/invoices/{made['id']}/lines/{BEFORE}/proof?limit=3"
        first = story.acme.get(path)
        story.desk.use(story.bolt, {"tokens_out": 1})
        second = story.acme.get(f"{path}&cursor={first.json()['next']}")
        assert second.json()["checkpoint"] == first.json()["checkpoint"]
        assert check_line([first.content, second.content], story.vkey).ok

    def test_what_a_correction_put_right_is_proven_beside_it(self, story: Story) -> None:
        page = page_of(story, "again", AFTER)
        replaced = [one for one in page["readings"] if one["replaced"]]
        versions = [json.loads(one["reading"]["record"])["version"] for one in replaced]
        assert sorted(versions) == [2, 3]
        assert check(story, page).ok

    def test_it_is_shown_to_those_who_may_see_the_invoice(self, story: Story) -> None:
        path = f"/v1/invoices/{story.invoices['first']['id']}/lines"
        assert story.acme.get(f"{path}/0/proof").is_success
        refused(story.bolt.get(f"{path}/0/proof"), 404, "invoice_not_found")
        refused(story.acme.get(f"{path}/99/proof"), 404, "invoice_line_not_found")
        refused(story.acme.get(f"{path}/x/proof"), 404, "invoice_line_not_found")
        for text in ("x", "1", "1:0", "-1:5"):
            cursor = base64.urlsafe_b64encode(text.encode()).decode()
            refused(story.acme.get(f"{path}/0/proof?cursor={cursor}"), 400, "invalid_cursor")


class TestTampering:
    @pytest.mark.parametrize(
        ("name", "line"), [("first", BEFORE), ("again", AFTER), ("second", 0), ("second", 4)]
    )
    def test_any_byte_that_is_another_is_refused_and_named(self, story: Story, name: str, line: int) -> None:
        (data,) = story.bundles(name, line)
        draw = random.Random(line)
        for at in range(len(data)) if len(data) < 12_000 else sorted(draw.sample(range(len(data)), 6_000)):
            other = data[at] ^ (1 << draw.randrange(8))
            report = check_line([data[:at] + bytes([other]) + data[at + 1 :]], story.vkey)
            assert codes(report), f"byte {at} of {data[at - 20 : at + 20]!r}"

    def test_any_byte_that_is_missing_or_too_many_is_refused(self, story: Story) -> None:
        (data,) = story.bundles("second", 0)
        draw = random.Random(5)
        for at in draw.sample(range(len(data)), 300):
            assert codes(check_line([data[:at] + data[at + 1 :]], story.vkey))
            more = bytes([draw.choice(b' "0a,')])
            assert codes(check_line([data[:at] + more + data[at:]], story.vkey))
        for cut in (0, 1, len(data) // 2, len(data) - 1):
            assert codes(check_line([data[:cut]], story.vkey)) == {"page_malformed"}

    def test_a_spelling_of_ones_own_is_refused(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        for text in (json.dumps(page), json.dumps(page, indent=1), json.dumps(page, sort_keys=True)):
            assert codes(check_line([text.encode()], story.vkey)) == {"page_malformed"}
        more = page | {"remark": "x"}
        assert codes(check(story, more)) == {"page_malformed"}

    def test_another_key_is_refused(self, story: Story) -> None:
        (data,) = story.bundles("first", BEFORE)
        for vkey in (Signer("forger").vkey, Signer("forger", story.vkey.split("+")[0]).vkey, "no key", ""):
            assert codes(check_line([data], vkey)) == {"key_refused"}

    def test_a_quorum_that_is_not_there_is_refused(self, story: Story) -> None:
        (data,) = story.bundles("first", BEFORE)
        witness = Signer("witness", "witness.example", 4)
        policy = f"log {story.vkey}\nwitness w {witness.vkey}\nquorum w\n"
        assert codes(check_line([data], story.vkey, policy)) == {"quorum_missing"}


def rebuilt(reading: dict[str, Any], **members: Any) -> dict[str, Any]:
    """Change a reading's record as somebody would who takes care of its address."""
    record = json.loads(reading["record"])
    record["data"] |= members
    raw = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return reading | {"record": raw, "address": address(raw.encode())}


class TestCompleteness:
    """Whoever changes a list knows JSON: each page here is well written."""

    def test_a_reading_that_is_left_out_is_missed(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        for at in range(len(page["readings"])):
            left = page["readings"][:at] + page["readings"][at + 1 :]
            assert "evidence_mismatch" in codes(check(story, page | {"readings": left}))
        assert "evidence_mismatch" in codes(check(story, page | {"readings": []}))

    def test_a_reading_that_is_doubled_is_seen(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        for at, one in enumerate(page["readings"]):
            twice = [*page["readings"][:at], one, *page["readings"][at:]]
            assert {"reading_doubled", "evidence_mismatch"} <= codes(check(story, page | {"readings": twice}))

    def test_a_reading_that_is_added_or_put_in_anothers_place_is_seen(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        foreign = list(page_of(story, "first", AFTER)["readings"])
        foreign += page_of(story, "bolt", BEFORE)["readings"]
        foreign += page_of(story, "second", 2)["readings"]
        # The same customer, part and charge, but known only after the invoice was drawn up.
        known = {one["reading"]["position"] for one in page["readings"]}
        late = page_of(story, "correction", BEFORE)["readings"]
        foreign += [one for one in late if one["reading"]["position"] not in known]
        for one in foreign:
            more = sorted([*page["readings"], one], key=lambda r: r["reading"]["position"])
            assert {"evidence_mismatch"} <= codes(check(story, page | {"readings": more}))
            for at in range(len(page["readings"])):
                swapped = [*page["readings"][:at], one, *page["readings"][at + 1 :]]
                swapped.sort(key=lambda r: r["reading"]["position"])
                found = codes(check(story, page | {"readings": swapped}))
                assert found & {"evidence_mismatch", "price_foreign", "reading_foreign"}

    def test_readings_in_another_order_are_seen(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        assert "reading_doubled" in codes(check(story, page | {"readings": page["readings"][::-1]}))

    def test_a_reading_that_says_something_else_is_not_in_the_log(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        for members in ({"tokens_out": 4}, {"model": "m2"}, {"requests": 0}):
            spoiled = [dict(one) for one in page["readings"]]
            spoiled[0]["reading"] = rebuilt(spoiled[0]["reading"], **members)
            assert "inclusion_invalid" in codes(check(story, page | {"readings": spoiled}))

    def test_the_version_that_was_put_right_does_not_count_in_place_of_the_correction(
        self, story: Story
    ) -> None:
        page = page_of(story, "again", AFTER)
        at = next(n for n, one in enumerate(page["readings"]) if one["replaced"])
        one = page["readings"][at]
        older = {"reading": one["replaced"], "replaced": None}
        for other in (
            older,
            one | {"replaced": None},
            one | {"replaced": page["readings"][at - 1]["reading"]},
        ):
            spoiled = [*page["readings"][:at], other, *page["readings"][at + 1 :]]
            assert codes(check(story, page | {"readings": spoiled}))


class TestForeignParts:
    @pytest.mark.parametrize("change", [
        lambda page, other: {"invoice": other["invoice"]},
        lambda page, other: {"sheet": other["sheet"]},
        lambda page, other: {"sheet": None},
        lambda page, other: {"line": other["line"]},
        lambda page, other: {"number": other["number"]},
        lambda page, other: {"number": -1},
        lambda page, other: {"number": 10_000},
        lambda page, other: {"evidence": other["evidence"]},
        lambda page, other: {"evidence": None},
        lambda page, other: {"readings": other["readings"]},
        lambda page, other: {"invoice": page["sheet"]},
        lambda page, other: {"sheet": page["invoice"]},
        lambda page, other: {"schema": "soma/line_proof/2"},
        lambda page, other: {"next": "MToy"},
        lambda page, other: {"line": other["line"], "number": other["number"], "evidence": other["evidence"]},
    ])  # fmt: skip
    def test_of_another_proof_are_refused(self, story: Story, change: Callable[[Page, Page], Page]) -> None:
        page = page_of(story, "first", BEFORE)
        # Another checkpoint would be as good, so both are taken at one size.
        for name, line in (("correction", BEFORE), ("first", AFTER), ("second", 2)):
            other = page_of(story, name, line)
            changed = page | change(page, other)
            if changed != page:
                assert codes(check(story, changed)), (name, line)

    def test_an_older_checkpoint_of_the_same_log_is_no_root_of_these_proofs(self, story: Story) -> None:
        page = page_of(story, "first", BEFORE)
        older = story.acme.read("/v1/log/checkpoints?limit=5")["items"][-1]["note"]
        assert "inclusion_invalid" in codes(check(story, page | {"checkpoint": older}))


class TestPages:
    def test_that_are_missing_repeated_or_out_of_order_are_refused(self, story: Story) -> None:
        pages = [json.loads(one) for one in story.pages(story.invoices["first"]["id"], AFTER, 3)]
        assert len(pages) == 4
        assert check(story, *pages).ok
        assert codes(check(story, *pages[:-1])) == {"page_missing"}
        assert codes(check(story)) == {"page_missing"}
        for wrong in (
            pages[1:],
            [pages[0], *pages[2:]],
            [*pages, pages[-1]],
            [pages[0], *pages],
            pages[::-1],
        ):
            assert codes(check(story, *wrong))

    def test_of_another_line_or_invoice_are_refused(self, story: Story) -> None:
        pages = [json.loads(one) for one in story.pages(story.invoices["first"]["id"], AFTER, 3)]
        other = [json.loads(one) for one in story.pages(story.invoices["first"]["id"], AFTER + 1, 3)]
        later = [json.loads(one) for one in story.pages(story.invoices["correction"]["id"], AFTER, 3)]
        for foreign in (other, later):
            assert codes(check(story, *pages[:2], *foreign[2:])) >= {"page_foreign"}
