"""Everybody at their desk: an author, a reviewer, signers with key files and a buyer, each with the words of `soma`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from domain.ledger import Caller
from tests.real.persona.capsule_world import OLIVIA, OPERATOR, RIVAL
from tests.real.test_cli import ROOT, soma

REVIEWER = Caller("rita", "platform", frozenset({"reviewer"}))
COURIER = Caller("sid", "platform", frozenset({"signer"}))
EXAMPLES = ROOT / "docs" / "examples" / "persona_capsules"
SIGNERS = ("anna", "ben", "carla")


class Served(Protocol):
    """A service somewhere, and tokens for it."""

    @property
    def url(self) -> str:
        """Say where it is."""

    def token(self, caller: Caller) -> str:
        """Mint a token."""


@cache
def builder() -> ModuleType:
    """Load the script that builds the examples."""
    spec = spec_from_file_location("example_builder", EXAMPLES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def pilot() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Build the harbour pilot once: its manifest and the bytes of its parts."""
    terms = json.loads((EXAMPLES / "constitution.json").read_text())
    manifest, data = builder().build("harbour_pilot", "olivia", terms)
    return manifest.document(), data


class Desk:
    """The words, spoken to one service, and a place for files."""

    def __init__(self, served: Served, place: Path) -> None:
        self.served, self.place = served, place
        self.policy = ""

    def say(self, caller: Caller, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Speak to the service as somebody."""
        return soma(*map(str, words), url=self.served.url, token=self.served.token(caller))

    def done(self, caller: Caller, *words: str | Path) -> str:
        """Speak, and be understood; give the last line of the answer."""
        ended = self.say(caller, *words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip().splitlines()[-1]

    def found(self) -> None:
        """Make the signers' keys, and adopt a policy and the constitution of the examples with them."""
        keys = [
            {
                "name": name,
                "subject": f"{name}@platform",
                "role": "signer",
                "public_key": soma("keys", "new", str(self.key(name))).stdout.strip(),
                "valid_from": "2026-01-01T00:00:00Z",
                "valid_until": "2099-01-01T00:00:00Z",
            }
            for name in SIGNERS
        ]
        terms = {
            "schema": "soma/signer_policy/1",
            "name": "publication",
            "version": 1,
            "threshold": 2,
            "approvals_required": 1,
            "review_sla_s": 86_400,
            "statement_ttl_s": 2_592_000,
            "keys": keys,
        }
        self.policy = self.done(OPERATOR, "trust", "adopt", self.file("policy.json", json.dumps(terms)))
        law = EXAMPLES / "constitution.json"
        words = ["trust", "vouch", law, "--key", self.key("anna"), "--key", self.key("ben"), "--yes"]
        vouched = self.file("vouched.json", self.say(OPERATOR, *words).stdout)
        self.done(OPERATOR, "trust", "adopt", law, "--envelope", vouched)

    def key(self, name: str) -> Path:
        """Say where somebody's key file is."""
        return self.place / f"{name}.pem"

    def file(self, name: str, content: str | bytes) -> Path:
        """Write a file."""
        path = self.place / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def folder(self, persona_id: str, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """Write a persona of the harbour pilot's kind, as its author keeps it."""
        manifest, data = pilot()
        manifest = json.loads(json.dumps(manifest))
        manifest["metadata"]["persona_id"] = persona_id
        if change is not None:
            change(manifest)
        place = self.place / f"{persona_id}-{manifest['metadata']['version']}"
        place.mkdir()
        for name, content in data.items():
            (place / name).write_bytes(content)
        (place / "manifest.json").write_text(json.dumps(manifest))
        return place

    def agreed(self, capsule: str) -> None:
        """Have the reviewer approve, and two signers sign."""
        assert self.done(REVIEWER, "trust", "decide", capsule, "approve", "--notes", "seen") == "approved"
        keys = ["--key", self.key("anna"), "--key", self.key("carla")]
        assert self.say(COURIER, "sign", capsule, *keys, "--yes").returncode == 0

    def published(self, persona_id: str) -> str:
        """Take a persona all the way; give the address of its capsule."""
        folder = self.folder(persona_id)
        waits = self.say(OLIVIA, "persona", "publish", folder)
        assert waits.returncode == 3, waits.stderr
        capsule = waits.stdout.strip()
        self.agreed(capsule)
        assert self.done(OLIVIA, "persona", "publish", folder) == capsule
        return capsule

    def taken(self, capsule: str, name: str, caller: Caller = RIVAL) -> Path:
        """Take the archive of a capsule away."""
        out = self.place / name
        assert self.done(caller, "persona", "export", capsule, "--out", out) == capsule
        return out
