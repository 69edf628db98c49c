"""Build an example persona: its parts, its evaluation report and its manifest, ready to be uploaded and exported.

    python docs/examples/persona_capsules/build.py house_guide out/ --owner olivia --constitution my-constitution.json

The memory of `house_guide` is the documentation of this project, section by section; that of `harbour_pilot` is a file
of sentences. Both are embedded without a model, so there is nothing to download. The same inputs give the same files:
texts, vectors and report on every machine, the Parquet file with the same version of its library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from domain.memory import ngrams
from domain.persona.evaluation.harness import Constitution
from domain.persona.evaluation.naming import benchmark_name
from domain.persona.manifest import PersonaManifest, parse_manifest
from domain.persona.manifest_text import read_document
from domain.trust.constitutions import ConstitutionTerms
from ops.bundles import bundle_table, write_bundle
from ops.evaluation_child import evaluated, memory_of

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1]
EXAMPLES = ("house_guide", "harbour_pilot")
SECTION_CHARS_MAX = 900
# What a page of the reference says is printed from the code, table by table; it is looked up, not remembered.
LEFT_OUT = ("examples/", "reference/")
SHOWN_METRICS = ("known_items.recall_at_5", "declared.recall_at_5", "neighbours.recall_at_5")
MEDIA_TYPES = {
    ".json": "application/json",
    ".txt": "text/plain",
    ".parquet": "application/vnd.apache.parquet",
}
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*$")


class Item(NamedTuple):
    """One memory."""

    id: str
    text: str


# --------------------------------------------------------------------------- memories


def pages(docs: Path) -> Iterator[tuple[str, str]]:
    """Name the pages of a documentation and read them, in the order of their names."""
    for path in sorted(docs.rglob("*.md"), key=lambda path: path.relative_to(docs).as_posix()):
        name = path.relative_to(docs).as_posix().removesuffix(".md")
        if not name.startswith(LEFT_OUT):
            yield name, path.read_text("utf-8")


def sections(name: str, page: str) -> Iterator[Item]:
    """Cut a page at its headings, and long sections between paragraphs; each says where it is from."""
    title, heading = name, ""
    paragraphs: list[str] = []
    found: list[tuple[str, str]] = []
    # Every page opens with the same line, which tells no two apart.
    for block in re.split(r"\n\s*\n", page.partition("\n")[2]):
        first, _, rest = block.strip().partition("\n")
        line = _HEADING.match(first)
        if line is not None or sum(map(len, paragraphs)) + len(block) > SECTION_CHARS_MAX:
            found.append((heading, "\n".join(paragraphs)))
            paragraphs = []
        if line is not None:
            title, heading = (line[2], "") if line[1] == "#" else (title, line[2])
        paragraphs.append(block.strip() if line is None else rest.strip())
    found.append((heading, "\n".join(paragraphs)))
    for number, (under, text) in enumerate((under, text) for under, text in found if text.strip()):
        where = f"{title}, {under}" if under else title
        yield Item(f"{name}#{number:03d}", f"{where}: {text.strip()}")


def remembered(example: str) -> list[Item]:
    """Give the memories of an example; no two say the same."""
    if example == "house_guide":
        items = [item for name, page in pages(DOCS) for item in sections(name, page)]
    else:
        lines = (HERE / example / "memories.txt").read_text("utf-8").splitlines()
        items = [Item(f"memory-{number:03d}", line) for number, line in enumerate(lines, 1)]
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.text, item)
    return list(first.values())


def cases(example: str, items: list[Item]) -> dict[str, Any]:
    """Read the questions of an example, each with the names of the memories that answer it."""
    written, _ = read_document((HERE / example / "cases.yaml").read_bytes())
    return {
        "schema": "soma/evaluation_cases/1",
        "cases": [
            {key: value for key, value in case.items() if key not in ("sections", "lines")}
            | {"relevant": _answers(case, items)}
            for case in written
        ],
    }


def _answers(case: dict[str, Any], items: list[Item]) -> list[str]:
    starts = tuple(case.get("sections") or [f"memory-{line:03d}" for line in case["lines"]])
    found = [item.id for item in items if item.id.startswith(starts)]
    if not found:
        raise SystemExit(f"case {case['id']}: no memory begins with {', '.join(starts)}")
    return found


# --------------------------------------------------------------------------- parts and manifest


def parts_of(example: str, items: list[Item]) -> dict[str, tuple[str, bytes]]:
    """Make the parts of an example, as name -> (role, bytes)."""
    texts = [item.text for item in items]
    table = bundle_table([item.id for item in items], texts, ngrams.embed(texts))
    return {
        "memory.parquet": ("memory", write_bundle(table)),
        "system.txt": ("prompts", (HERE / example / "system.txt").read_bytes()),
        "tools.json": ("tools", (HERE / example / "tools.json").read_bytes()),
        "cases.json": ("evaluation_cases", _json(cases(example, items))),
    }


def manifest_of(
    example: str, parts: dict[str, tuple[str, bytes]], item_count: int, owner: str, constitution: str
) -> dict[str, Any]:
    """Write the manifest of an example over its parts, as plain values."""
    persona, _ = read_document((HERE / example / "persona.yaml").read_bytes())
    persona["metadata"]["owners"] = [{"subject": owner}]
    snapshot = hashlib.sha3_256(parts["memory.parquet"][1]).hexdigest()[:16]
    return persona | {
        "schema": "soma/persona_manifest/1",
        "memory": {
            "snapshot_id": f"{Path(example).name}-{snapshot}",
            "bundle": "memory.parquet",
            "embedding_model": ngrams.MODEL,
            "item_count": item_count,
            "dimension": ngrams.DIMENSION,
            "metric": "cosine",
        },
        "governance": {"constitution": constitution, "kill_switch_enabled": True},
        "artifacts": [_described(name, role, data) for name, (role, data) in parts.items()],
    }


def build(example: str, owner: str, terms: dict[str, Any]) -> tuple[PersonaManifest, dict[str, bytes]]:
    """Build an example under a constitution: the manifest, and the bytes of its parts by name."""
    document = ConstitutionTerms.model_validate(terms).document()
    constitution = Constitution(document.sealed()[1], terms["utility"])
    items = remembered(example)
    parts = parts_of(example, items)
    plain = manifest_of(example, parts, len(items), owner, constitution.address)
    # The report is about the parts that are there so far; it then becomes a part itself.
    plain["evaluations"], parts["report.json"] = _evaluation(parse_manifest(plain), parts, constitution)
    plain["artifacts"].append(_described("report.json", *parts["report.json"]))
    return parse_manifest(plain), {name: data for name, (_, data) in parts.items()}


def _evaluation(
    manifest: PersonaManifest, parts: dict[str, tuple[str, bytes]], constitution: Constitution
) -> tuple[list[dict[str, Any]], tuple[str, bytes]]:
    data = {name: content for name, (_, content) in parts.items()}
    memory = memory_of(manifest, data["memory.parquet"])
    # Told without the facts of the host, the report is the same to the last byte wherever it is made.
    compared, report = evaluated(manifest, memory, data, "baseline", constitution, host_facts=False)
    results = [
        {
            "benchmark": benchmark_name(compared, metric),
            "score": compared.metrics[metric].mean,
            "dataset": manifest.memory.snapshot_id,
            "captured_at": manifest.metadata.updated_at,
            "report": "report.json",
        }
        for metric in SHOWN_METRICS
    ]
    return results, ("evaluation_report", report)


def _described(name: str, role: str, data: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "digest": "sha3-512:" + hashlib.sha3_512(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "media_type": MEDIA_TYPES[Path(name).suffix],
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def main(arguments: list[str]) -> int:
    """Build one example into a directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("example", help=f"{' or '.join(EXAMPLES)}, or a folder like that of harbour_pilot")
    parser.add_argument("out", type=Path)
    parser.add_argument("--owner", default="olivia", help="the subject of the owner's tokens")
    parser.add_argument("--constitution", type=Path, default=HERE / "constitution.json")
    chosen = parser.parse_args(arguments)
    # The name of a folder elsewhere leads there; one of ours stays beside this file.
    example = chosen.example if chosen.example in EXAMPLES else str(Path(chosen.example).resolve())
    if not (HERE / example / "persona.yaml").is_file():
        parser.error(f"{chosen.example} is neither of {', '.join(EXAMPLES)} nor a folder with a persona.yaml")
    terms = json.loads(chosen.constitution.read_text("utf-8"))
    manifest, data = build(example, chosen.owner, terms)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, content in data.items():
        (chosen.out / name).write_bytes(content)
    (chosen.out / "manifest.json").write_bytes(_json(manifest.document()))
    print(manifest.address)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
