"""The scan as a whole: deterministic, telling where and never what, and the same rules have the same address."""

from __future__ import annotations

import subprocess
import sys

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import encode_record
from domain.trust.moderation.artifacts import PARQUET
from domain.trust.moderation.findings import FINDINGS_MAX
from domain.trust.moderation.scan import ScannedPart, ScanReport, rules_digest, scan
from domain.trust.questions import ToolFacts
from ops.secret_scanner import SecretScanner
from tests.conftest import ROOT
from tests.unit.trust.moderation.test_secrets import drawn

SCANNER = SecretScanner()
KEY = "glpat-" + drawn(11, 20)
READS = ToolFacts(tool="search", access_scope="read")


def text_part(text: str, role: str = "prompts", name: str = "prompt.md") -> ScannedPart:
    return ScannedPart(name, role, "text/markdown", text.encode())


def scanned(*parts: ScannedPart, tools: tuple[ToolFacts, ...] = (READS,)) -> ScanReport:
    return scan(parts, tools, SCANNER, scanner=SCANNER.identity)


class TestVerdicts:
    def test_nothing_found_is_a_pass(self) -> None:
        report = scanned(text_part("You are a librarian."))
        assert (report.verdict, report.finding_count, report.findings) == ("pass", 0, [])

    def test_a_mail_address_is_a_warning_and_a_key_blocks(self) -> None:
        assert scanned(text_part("ask ann@example.org")).verdict == "warn"
        report = scanned(text_part(f"ask ann@example.org\nwith {KEY}"))
        assert (report.verdict, report.warn_count, report.block_count) == ("block", 1, 1)
        assert [(f.rule, f.line, f.severity) for f in report.findings] == [
            ("secret_git_lab_token", 2, "block"),
            ("personal_email", 1, "warn"),
        ]

    def test_tools_that_write_warn_and_unknown_reach_blocks(self) -> None:
        tools = [
            ToolFacts(tool="t", access_scope=scope)
            for scope in ("read", "write", "admin", "policy:mail", "root")
        ]
        report = scanned(tools=tuple(tools))
        assert [(f.rule, f.offset, f.severity) for f in report.findings] == [
            ("scope_unknown", 4, "block"),
            ("tool_that_writes", 1, "warn"),
            ("tool_that_administers", 2, "warn"),
            ("tool_by_policy", 3, "warn"),
        ]

    def test_the_text_of_a_memory_bundle_is_read_too(self) -> None:
        bundle = ScannedPart(
            "memory.parquet", "memory", PARQUET, b"PAR1" + b"\0" * 9 + b"PAR1", f"one\ntwo {KEY}\n"
        )
        (found,) = scanned(bundle).findings
        assert (found.rule, found.part, found.offset, found.line) == (
            "secret_git_lab_token",
            "memory.parquet",
            8,
            2,
        )

    def test_a_part_of_a_form_that_is_not_allowed_is_still_read(self) -> None:
        found = scanned(ScannedPart("x", "other", "application/octet-stream", KEY.encode())).findings
        assert {one.rule for one in found} == {"media_type_not_allowed", "secret_git_lab_token"}


class TestReports:
    def test_what_was_found_is_nowhere_in_the_report(self) -> None:
        card = "4532276644577020"
        report = scanned(text_part(f"{KEY} and {card}; ann@example.org"))
        told = encode_record(msgspec.to_builtins(report)).decode()
        assert not any(secret in told for secret in (KEY, KEY[6:], card, "ann@", "example.org"))

    def test_the_gravest_findings_are_kept_and_all_are_counted(self) -> None:
        mails = " ".join(f"ann{n}@example.org" for n in range(FINDINGS_MAX + 50))
        report = scanned(text_part(f"{mails} {KEY}"))
        assert len(report.findings) == FINDINGS_MAX
        assert report.finding_count == FINDINGS_MAX + 51
        assert report.findings[0].severity == "block"

    def test_a_report_fits_a_policys_question(self) -> None:
        facts = scanned(text_part(f"ann@example.org {KEY}")).facts
        assert msgspec.to_builtins(facts) == {
            "verdict": "block",
            "counts": {"pass": 0, "warn": 1, "block": 1},
        }

    @given(st.lists(st.text(max_size=80), max_size=4))
    def test_the_same_bytes_have_the_same_report_in_any_order(self, texts: list[str]) -> None:
        parts = [text_part(text, name=f"part-{n}.md") for n, text in enumerate(texts)]
        assert scanned(*parts) == scanned(*parts) == scanned(*reversed(parts))

    def test_another_process_finds_the_same_and_names_the_same_rules(self) -> None:
        words = (
            "import sys, msgspec\n"
            "from domain.trust.moderation.scan import ScannedPart, scan\n"
            "from ops.secret_scanner import SecretScanner\n"
            "s = SecretScanner()\n"
            "part = ScannedPart('prompt.md', 'prompts', 'text/markdown', sys.stdin.buffer.read())\n"
            "sys.stdout.buffer.write(msgspec.json.encode(scan([part], [], s, scanner=s.identity)))\n"
        )
        text = f"ask ann@example.org\nwith {KEY} \u202e and 4532276644577020"
        run = subprocess.run(
            [sys.executable, "-c", words], cwd=ROOT, input=text.encode(), capture_output=True
        )
        assert msgspec.json.decode(run.stdout, type=ScanReport) == scanned(text_part(text), tools=())

    def test_another_scanner_is_another_address_of_rules(self) -> None:
        assert rules_digest(SCANNER.identity) == rules_digest(SCANNER.identity) != rules_digest("another 1.0")
