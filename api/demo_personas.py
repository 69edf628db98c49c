"""The second act of the demonstration: a persona that nobody could have published alone.

Its memory is the documentation of this project, where that is at hand. An author has it sealed, a reviewer approves it,
two of three signers sign it with keys made on the spot, and a buyer who trusts nothing but the signer policy verifies
it without the service, and finds out which file somebody changed.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from api.cli_remote import Remote
from api.demo_stage import Actor, Event, Stage, expect, soma
from api.persona_files import measured, open_folder
from api.persona_remote import download, sealed, upload, waited
from domain.errors import ConstitutionNotFoundError, PersonaNotFoundError, SignerPolicyNotFoundError
from domain.trust.constitutions import ConstitutionTerms, constitution_wanted
from domain.trust.keys import PrivateKey, key_text
from domain.trust.pinned import PolicyTerms
from domain.trust.verification import Statement, sign_statement
from domain.values import moment_text
from ops.keys_signers import make_signer, open_signer

EXAMPLES = Path("docs/examples/persona_capsules")
SIGNERS = ("anna", "ben", "carla")
AUTHOR_TENANT = "atelier"
WORK_S_MAX = 60.0
MEASURES = ("known_items.recall_at_5", "declared.recall_at_5", "neighbours.recall_at_5")
DAY_S = 86_400


class Troupe(NamedTuple):
    """Who acts in it, with words for both ways of speaking to the service."""

    author: Actor
    reviewer: Actor
    courier: Actor
    buyer: Actor
    operator: Actor


class Trusted(NamedTuple):
    """What everybody agreed on beforehand: whose signatures count, and what a persona may do."""

    policy: str
    constitution: str
    keys: dict[str, PrivateKey]
    terms: dict[str, Any]


def publish_persona(stage: Stage) -> str | None:
    """Play the act; give the capsule, or None where it is left out: the examples and our own signers are needed."""
    builder = _builder()
    if builder is None:
        stage.say(f"\nThe act of the persona is left out: {EXAMPLES} of a checkout is not at hand.")
        return None
    troupe = Troupe(
        author=stage.actor("olivia", AUTHOR_TENANT, "owner"),
        reviewer=stage.actor("rita", "platform", "reviewer"),
        courier=stage.actor("sid", "platform", "signer"),
        buyer=stage.actor("bruno", "buyer", "owner"),
        operator=stage.actor("desk", "platform", "operator"),
    )
    trusted = agree(stage, builder, troupe)
    if trusted is None:
        stage.say("\nThe act of the persona is left out: this service has signers of its own.")
        return None
    capsule = seal(stage, builder, troupe, trusted)
    vouch(stage, troupe, trusted, capsule)
    take(stage, troupe, trusted, capsule)
    return capsule


def _builder() -> ModuleType | None:
    """Load the script that builds the examples, from beside this package or from where the story is told."""
    for root in (Path(__file__).resolve().parents[1], Path.cwd()):
        file = root / EXAMPLES / "build.py"
        spec = spec_from_file_location("soma_example_personas", file) if file.is_file() else None
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module
    return None


def _remote(stage: Stage, who: Actor, *roles: str) -> Remote:
    return Remote(stage.url, stage.token(who.name, who.tenant, *roles))


def _noted(stage: Stage, step: str, what: str, capsule: str, started: float) -> None:
    """Write down what several requests came to, with the last position in the history of the capsule."""
    elapsed_ms = (time.perf_counter() - started) * 1_000
    author = stage.actor("olivia", AUTHOR_TENANT, "owner")
    entries = author.get(f"/v1/capsules/{capsule}/timeline").body["entries"]
    stage.events.append(Event(step, what, entries[-1]["position"], elapsed_ms))


# --------------------------------------------------------------------------- what everybody agrees on


def agree(stage: Stage, builder: ModuleType, troupe: Troupe) -> Trusted | None:
    """Make the signers' keys, and adopt the policy and the constitution with them, unless that was done before."""
    place = stage.settings.data_dir / "demo"
    place.mkdir(parents=True, exist_ok=True)
    keys = {name: _key(place / f"{name}.pem") for name in SIGNERS}
    with _remote(stage, troupe.operator, "operator") as remote:
        policy = _policy(remote, stage, troupe, keys)
        if policy is None:
            return None
        terms, constitution = _constitution(remote, stage, troupe, builder, keys, policy)
    return Trusted(policy, constitution, keys, terms)


def _key(file: Path) -> PrivateKey:
    return open_signer(file) if file.exists() else make_signer(file)


def _policy(remote: Remote, stage: Stage, troupe: Troupe, keys: dict[str, PrivateKey]) -> str | None:
    """Give the address of the policy in force, which pins these keys; None where it pins others."""
    ours = {key_text(key.public_key) for key in keys.values()}
    try:
        version = remote.get("/v1/signer-policies/publication")["versions"][-1]
    except SignerPolicyNotFoundError:
        terms = _policy_terms(keys)
        adopted = troupe.operator.post("/v1/signer-policies", {"document": terms, "envelopes": []})
        stage.note("8 agree", "the signer policy: 2 of 3 keys, 1 approval", adopted)
        return PolicyTerms.model_validate(terms).document().address
    pinned = {key["public_key"] for key in version["document"]["keys"]}
    return str(version["address"]) if ours == pinned else None


def _policy_terms(keys: dict[str, PrivateKey]) -> dict[str, Any]:
    return {
        "schema": "soma/signer_policy/1",
        "name": "publication",
        "version": 1,
        "threshold": 2,
        "approvals_required": 1,
        "review_sla_s": DAY_S,
        "statement_ttl_s": 30 * DAY_S,
        "keys": [
            {
                "name": name,
                "subject": f"{name}@signers",
                "role": "signer",
                "public_key": key_text(key.public_key),
                "valid_from": "2026-01-01T00:00:00Z",
                "valid_until": "2099-01-01T00:00:00Z",
            }
            for name, key in keys.items()
        ],
    }


def _constitution(
    remote: Remote,
    stage: Stage,
    troupe: Troupe,
    builder: ModuleType,
    keys: dict[str, PrivateKey],
    policy: str,
) -> tuple[dict[str, Any], str]:
    """Give the constitution in force: its terms and its address."""
    try:
        version = remote.get("/v1/constitution")["versions"][-1]
        return version["document"], version["address"]
    except ConstitutionNotFoundError:
        terms = json.loads((builder.HERE / "constitution.json").read_text("utf-8"))
    document = ConstitutionTerms.model_validate(terms).document()
    address = document.sealed()[1]
    statement = constitution_wanted(address, policy).statement(
        moment_text(datetime.now(UTC) + timedelta(days=1))
    )
    envelope = sign_statement(statement, *list(keys.values())[:2])
    body = {"document": terms, "envelopes": [msgspec.to_builtins(envelope)]}
    stage.note(
        "8 agree", "the constitution, signed by 2 of 3", troupe.operator.post("/v1/constitution", body)
    )
    return terms, address


# --------------------------------------------------------------------------- 8. seal


def seal(stage: Stage, builder: ModuleType, troupe: Troupe, trusted: Trusted) -> str:
    """Build a persona, and have the service seal it; give the address of the capsule."""
    stage.heading(8, "Seal a persona")
    with _remote(stage, troupe.author, "owner") as remote:
        folder = _folder(stage, builder, remote, trusted)
        files = open_folder(folder, trusted.constitution)
        about = files.manifest.metadata
        stage.say(f"{about.display_name} ({about.persona_id} {about.version}): {about.summary}")
        stage.table(
            ("part", "role", "bytes", "address"),
            [
                (part.name, part.role, f"{part.bytes:,}", f"{part.digest[:17]}…")
                for part in files.manifest.parts
            ],
        )
        started = time.perf_counter()
        capsule = sealed(remote, files, None, WORK_S_MAX)
    _noted(stage, "8 seal", f"{about.persona_id} {about.version} is sealed", capsule, started)
    stage.say(f"Its address, over the manifest and by it over every byte: [green]{capsule[:41]}…[/green]")
    return capsule


def _folder(stage: Stage, builder: ModuleType, remote: Remote, trusted: Trusted) -> Path:
    """Write the persona's files: the guide whose memory is our documentation, or the pilot of a harbour."""
    example = "house_guide" if (builder.DOCS / "architecture.md").is_file() else "harbour_pilot"
    manifest, parts = builder.build(example, "olivia", trusted.terms)
    document = manifest.document()
    about = document["metadata"]
    about["version"] = _next_version(remote, about["persona_id"])
    place = stage.settings.data_dir / "demo" / f"{about['persona_id']}-{about['version']}"
    place.mkdir(exist_ok=True)
    for name, data in parts.items():
        (place / name).write_bytes(data)
    (place / "manifest.json").write_text(json.dumps(document, indent=1), "utf-8")
    return place


def _next_version(remote: Remote, persona_id: str) -> str:
    """Count the version up at each telling: what was sealed under a version stays."""
    try:
        return f"1.0.{len(remote.get(f'/v1/personas/{persona_id}')['versions'])}"
    except PersonaNotFoundError:
        return "1.0.0"


# --------------------------------------------------------------------------- 9. agree


def vouch(stage: Stage, troupe: Troupe, trusted: Trusted, capsule: str) -> None:
    """Have the capsule inspected, approved and signed, and published as soon as it may be."""
    stage.heading(9, "Nobody publishes alone")
    path = f"/v1/capsules/{capsule}"
    _inspect(stage, troupe, capsule)
    refused = troupe.author.post(f"{path}/publish", status=422)
    stage.note("9 publish", f"the author alone: {refused.body['code']}", refused)
    stage.say(f"The author asks at once: [yellow]{refused.status} {refused.body['code']}[/yellow]")
    decided = troupe.reviewer.post(
        f"/v1/reviews/{capsule}/decisions", {"decision": "approve", "notes": "read it"}
    )
    stage.note("9 publish", f"rita approves: {decided.body['status']}", decided)
    for name in SIGNERS[:2]:
        _sign(stage, troupe, trusted, capsule, name)
    published = troupe.author.post(f"{path}/publish")
    expect(published.body["status"] == "published", "it is published")
    stage.note("9 publish", "with an approval and 2 of 3 signatures: published", published)
    stage.say("With one approval and two of three signatures: [green]published[/green]")


def _inspect(stage: Stage, troupe: Troupe, capsule: str) -> None:
    """Submit the capsule, and wait until it was scanned and evaluated."""
    started = time.perf_counter()
    troupe.author.post(f"/v1/capsules/{capsule}/submit")
    with _remote(stage, troupe.author, "owner") as remote:
        found = waited(remote, f"/v1/capsules/{capsule}", "submitted", WORK_S_MAX)
    scan, evaluation = found["scan"], found["evaluation"]
    expect(scan and evaluation and evaluation["passed"], f"the inspection passes: {found}")
    what = f"scanned ({scan['verdict']}) and evaluated (passed)"
    _noted(stage, "9 publish", what, capsule, started)
    stage.say(
        f"Scan: {scan['verdict']}, {scan['finding_count']} findings. Evaluation: passed, utility "
        f"{evaluation['utility']['value']} against {evaluation['utility']['bound']}."
    )
    rows = [(name, evaluation["metrics"][name]) for name in MEASURES if name in evaluation["metrics"]]
    stage.table(
        ("measure", "mean", "95 % interval", "cases"),
        [(name, found["mean"], " to ".join(found["ci95"]), found["n"]) for name, found in rows],
    )


def _sign(stage: Stage, troupe: Troupe, trusted: Trusted, capsule: str, name: str) -> None:
    """Sign what the service asks for, once it was held against what the signer means to sign."""
    asked = troupe.courier.get(f"/v1/signings/{capsule}/request").body["statement"]
    statement = Statement(capsule, trusted.constitution, asked["not_after"], trusted.policy, "publication")
    expect(msgspec.to_builtins(statement) == asked, "the service asks for what the signer would sign")
    body = {"envelope": msgspec.to_builtins(sign_statement(statement, trusted.keys[name]))}
    stage.note(
        "9 publish", f"{name} signs, with a key the service never sees",
        troupe.courier.post(f"/v1/signings/{capsule}/signatures", body),
    )  # fmt: skip


# --------------------------------------------------------------------------- 10. take


def take(stage: Stage, troupe: Troupe, trusted: Trusted, capsule: str) -> None:
    """Find the capsule on the market, take it away, verify it without the service, and spoil a copy of it."""
    stage.heading(10, "Verify it without the service")
    found = troupe.buyer.get("/v1/personas", q=_words(troupe, capsule))
    listed = [one for one in found.body["items"] if one["attestation_hash"] == capsule]
    expect(listed, "the buyer finds it on the market")
    stage.note("10 take", f"bruno finds {listed[0]['persona_id']} on the market", found)
    archive = stage.settings.data_dir / "demo" / f"{listed[0]['persona_id']}-{listed[0]['version']}.tar"
    started = time.perf_counter()
    with _remote(stage, troupe.buyer, "owner") as remote:
        size = download(remote, f"/v1/capsules/{capsule}/archive", archive)
        download(remote, f"/v1/capsules/{capsule}/attestations", _beside(archive))
        elapsed_ms = (time.perf_counter() - started) * 1_000
        stage.events.append(
            Event("10 take", f"bruno takes the archive away, {size:,} bytes", None, elapsed_ms)
        )
        verified = soma("persona", "verify", str(archive), "--policy", trusted.policy)
        stage.note("10 take", "soma persona verify: 2 of 3 signed, every byte as sealed", verified)
        stage.say(f"soma persona verify {archive.name}: [green]verified[/green], without the service")
        _spoil(stage, remote, trusted, archive)


def _words(troupe: Troupe, capsule: str) -> str:
    """Give words somebody would look for: the name it was given."""
    name: str = troupe.author.get(f"/v1/capsules/{capsule}").body["manifest"]["metadata"]["display_name"]
    return name


def _beside(archive: Path) -> Path:
    return archive.with_name(archive.name + ".attestations.json")


def _spoil(stage: Stage, remote: Remote, trusted: Trusted, archive: Path) -> None:
    """Change one byte of the memory in a copy; offline and by the service it is refused with the part's name."""
    data = bytearray(archive.read_bytes())
    data[data.index(b"PAR1") + 100] ^= 1
    copy = archive.with_name(f"spoiled-{archive.name}")
    copy.write_bytes(data)
    _beside(copy).write_bytes(_beside(archive).read_bytes())
    refused = soma("persona", "verify", str(copy), "--policy", trusted.policy, status=2)
    said = refused.content.decode()
    expect("capsule_tampered" in said and "part: memory.parquet" in said, f"the part is named: {said}")
    stage.note("10 take", "one byte changed: capsule_tampered, memory.parquet", refused)
    started = time.perf_counter()
    address = measured(copy)["digest"]
    upload(remote, copy, address)
    body = {"archive": address, "attestations": json.loads(_beside(copy).read_text("utf-8"))}
    asked = remote.post("/v1/imports", body)
    done = waited(remote, f"/v1/imports/{asked['id']}", "requested", WORK_S_MAX)
    problem = done["problem"] or {}
    told = (problem.get("code"), problem.get("facts", {}).get("part"))
    expect(told == ("capsule_tampered", "memory.parquet"), f"the import is refused: {done}")
    elapsed_ms = (time.perf_counter() - started) * 1_000
    stage.events.append(Event("10 take", "its import is refused, and written down", None, elapsed_ms))
    stage.say(
        f"A copy with one byte changed: [yellow]{told[0]}[/yellow] in {told[1]}, offline and at the import"
    )
