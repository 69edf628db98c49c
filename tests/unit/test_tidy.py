"""The rules of the house, read from the source itself; each is also broken once on purpose, to see it caught."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from domain.errors import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("domain", "ops", "projections", "api", "migrations")

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
PROMISE = "Everything below was computed or run for real; no mocks, no invented numbers."

# One outside library, one door: the modules that may import it. A library that is not here may not be imported.
DOORS: dict[str, tuple[str, ...]] = {
    "chdb": ("ops.engine.*",),
    "clickhouse_connect": ("ops.clickhouse",),
    "confluent_kafka": ("ops.kafka",),
    "cryptography": ("domain.log.*", "domain.trust*", "ops.keys*", "ops.tokens*"),
    "detect_secrets": ("ops.secret_scanner",),
    "eventsourcing": ("ops.*",),
    "fastapi": ("api.*",),
    "httpx": ("ops.*", "api.*"),
    "jinja2": ("api.documents",),
    "jwt": ("ops.*", "api.*"),
    "markupsafe": ("api.documents",),
    "msgspec": ("*",),
    "numpy": (
        "domain.market.*",
        "domain.forecast*",
        "domain.memory*",
        "domain.persona.evaluation.*",
        "ops.arrays",
        "ops.catalogue_facets",
        "api.demo*",
    ),
    "obstore": ("ops.*",),
    "orjson": ("*",),
    "prometheus_client": ("ops.telemetry",),
    "psutil": ("ops.embedded", "ops.engine.process"),
    "pyarrow": ("ops.*", "projections.*"),
    "psycopg": ("ops.*",),
    "psycopg_pool": ("ops.*",),
    "pydantic": ("*",),
    "pydantic_core": (
        "domain.values",
        "domain.fields",
        "domain.billing.customers",
        "domain.billing.price_books",
        "domain.persona.manifest",
        "api.*",
    ),
    "pydantic_settings": ("ops.settings",),
    "regopy": ("ops.rego",),
    "rfc8785": ("domain.canonical",),
    "rich": ("api.*",),
    "scipy": ("domain.market.*", "domain.forecast*", "domain.memory*"),
    "sklearn": ("api.demo*", "ops.*"),
    "starlette": ("api.*", "ops.engine.*"),
    "structlog": ("ops.*", "projections.*", "api.*"),
    "typer": ("api.cli*",),
    "urllib3": ("ops.clickhouse",),
    "uvicorn": ("api.*", "ops.engine.*"),
    "yaml": ("domain.persona.manifest_text",),
}

# These read or pass on the environment; everybody else is handed a Settings object.
ENVIRONMENT_DOORS = ("ops.settings", "ops.embedded")

# Filled once per class and never read for a decision; and what Python itself asks for.
CACHES = ("__all__", "_payloads")

IMPURE_MODULES = frozenset(
    "ctypes http multiprocessing os pathlib random secrets shutil signal socket sqlite3 ssl subprocess sys "
    "tempfile threading time urllib uuid".split()
)
IMPURE_NAMES = frozenset(
    {"open", "input", "print", "uuid1", "uuid4", "getenv", "environ", "urandom", "breakpoint"}
)
IMPURE_METHODS = {"datetime": {"now", "utcnow", "today"}, "date": {"today"}, "time": {"time"}}
SEEDED = frozenset({"default_rng", "Generator", "PCG64", "Philox", "SeedSequence"})

FORBIDDEN_NAMES = frozenset(
    "util utils helper helpers manager managers service services base common misc".split()
)


@dataclass(frozen=True)
class Source:
    """One of our modules, read once."""

    module: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text)


@cache
def parsed(text: str) -> ast.Module:
    """Parse a text once, whoever asks."""
    return ast.parse(text)


Finding = str
Rule = Callable[[Source], Iterable[Finding]]


def at(source: Source, node: ast.AST, what: str) -> Finding:
    """Say where and what."""
    return f"{source.module}:{getattr(node, 'lineno', 1)} {what}"


def imports(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Name every module an import statement reaches, wherever it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node, "." * node.level + (node.module or "")
            else:
                yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def documented(source: Source) -> Iterator[tuple[ast.AST, str, str | None]]:
    """Name what the public sees: the module, its classes and functions, and their methods."""
    if source.tree.body:
        yield source.tree, "the module", ast.get_docstring(source.tree)
    for node in source.tree.body:
        if not isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) or node.name.startswith("_"):
            continue
        yield node, node.name, ast.get_docstring(node)
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and is_spoken_for(inner):
                yield inner, f"{node.name}.{inner.name}", ast.get_docstring(inner)


def is_spoken_for(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a method needs a sentence; a property, an override and one line of code are told by their name."""
    if len(method.body) == 1:
        return False
    words = {getattr(mark, "attr", getattr(mark, "id", "")) for mark in method.decorator_list}
    return not method.name.startswith("_") and not words & {
        "property",
        "cached_property",
        "override",
        "overload",
        "setter",
    }


# --------------------------------------------------------------------------- rules on one module


def doors(source: Source) -> Iterator[Finding]:
    """An outside library comes in by its door only."""
    for node, name in imports(source):
        top = name.split(".")[0]
        if top in ROOMS or top in sys.stdlib_module_names:
            continue
        if not any(fnmatch(source.module, door) for door in DOORS.get(top, ())):
            yield at(
                source,
                node,
                f"imports {top or 'relatively'}: its door is {DOORS.get(top, 'not in the table')}",
            )


def purity(source: Source) -> Iterator[Finding]:
    """The domain reads no clock, rolls no dice, asks no environment and opens nothing."""
    if not source.module.startswith("domain"):
        return
    for node, name in imports(source):
        if name.split(".")[0] in IMPURE_MODULES:
            yield at(source, node, f"imports {name}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and node.id in IMPURE_NAMES and isinstance(node.ctx, ast.Load):
            yield at(source, node, f"uses {node.id}")
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if node.attr in IMPURE_METHODS.get(owner, ()) or (owner == "random" and node.attr not in SEEDED):
                yield at(source, node, f"uses {owner}.{node.attr}")
        elif isinstance(node, ast.Call) and not node.args and not node.keywords:
            if getattr(node.func, "attr", getattr(node.func, "id", "")) in SEEDED:
                yield at(source, node, "makes a generator without a seed")


def independence(source: Source) -> Iterator[Finding]:
    """The verifier shares no code with the writer: it imports nothing of ours but itself."""
    if not fnmatch(source.module, "domain.log.audit*"):
        return
    for node, name in imports(source):
        if name.split(".")[0] in ROOMS and not name.startswith("domain.log.audit"):
            yield at(source, node, f"imports {name}")


def lengths(source: Source) -> Iterator[Finding]:
    """A function fits a screen, a file a sitting; docstrings are not counted in functions."""
    lines = source.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield at(source, source.tree, f"has {lines} lines")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            said = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            count = node.end_lineno - node.lineno + 1 - said
            if count > FUNCTION_LINES_MAX:
                yield at(source, node, f"{node.name} has {count} lines")


def docstrings(source: Source) -> Iterator[Finding]:
    """What the public sees opens with one sentence that ends in a full stop."""
    for node, name, text in documented(source):
        if not text:
            yield at(source, node, f"{name} has no docstring")
        elif not text.splitlines()[0].rstrip().endswith("."):
            yield at(source, node, f"the first line about {name} does not end with a full stop")


def promised_codes(source: Source) -> Iterator[Finding]:
    """A code promised under `Errors:` exists."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            for code in codes_promised(ast.get_docstring(node) or ""):
                if code not in REGISTRY:
                    yield at(source, node, f"promises the unknown code {code!r}")


def codes_promised(docstring: str) -> list[str]:
    """Read the codes under `Errors:`, over several lines; brackets, and more than one word, are remarks."""
    found = re.search(
        r"^[ \t]*Errors:(.*?)(?=^[ \t]*$|^[ \t]*[A-Z][a-z]+:|\Z)", docstring, re.MULTILINE | re.DOTALL
    )
    text = re.sub(r"\([^)]*\)", "", found[1]) if found else ""
    words = [part.strip(" \t.`") for part in re.split(r"[,;\n]", text)]
    return [word for word in words if re.fullmatch(r"[a-z0-9_]+", word) and word != "none"]


def names(source: Source) -> Iterator[Finding]:
    """A name says what a thing is about; these words say nothing."""
    for part in source.module.split("."):
        if set(part.split("_")) & FORBIDDEN_NAMES:
            yield at(source, source.tree, f"module {part}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef):
            if {
                word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", node.name)
            } & FORBIDDEN_NAMES:
                yield at(source, node, f"class {node.name}")


def no_global_state(source: Source) -> Iterator[Finding]:
    """Settings are made in the entry point and passed on; modules hold no state and read no environment."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield at(source, node, "rebinds a module's name")
        reads = isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
        if reads and source.module not in ENVIRONMENT_DOORS:
            yield at(source, node, "reads the environment")
    for node in source.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            called = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "Settings"
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            small = any(isinstance(t, ast.Name) and t.id.islower() and t.id not in CACHES for t in targets)
            mutable = isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
            if called or (small and mutable):
                yield at(source, node, "holds settings or state at module level")


RULES: tuple[Rule, ...] = (
    doors, purity, independence, lengths, docstrings, promised_codes, names, no_global_state,
)  # fmt: skip


# --------------------------------------------------------------------------- rules on files


def tracked_files() -> list[Path]:
    """List what is, or would be, in the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        hidden = {".venv", "var", "node_modules", "__pycache__", ".git"}
        found = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


def places() -> re.Pattern[str]:
    """Describe what no committed file may name: package registries, and paths of somebody's machine.

    The words are put together here, so that this file does not contain what it looks for.
    """
    hosts = "|".join(a + b for a, b in [("py", "pi"), ("python", "hosted"), ("npm", "js"), ("yarn", "pkg")])
    paths = "home|root|work|Users"
    own = [re.escape(str(ROOT))] if len(ROOT.parts) > 2 else []
    given = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL")]
    own += [re.escape(host) for url in given for host in re.findall(r"//(?:[^@/\s]*@)?([^/:\s]+)", url)]
    host = rf"(?i:[\w.-]*\b(?:{hosts})[\w-]*\.[a-z]{{2,}}\b)"
    path = rf"(?<![\w.}}$)~-])/(?:{paths})/[\w.]"
    return re.compile("|".join([host, path, *own]))


def placeless(name: str, text: str) -> Iterator[Finding]:
    """No committed file names a registry or a machine."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := places().search(line):
            yield f"{name}:{number} names {found[0]!r}"


def promises(name: str, text: str) -> Iterator[Finding]:
    """Every page opens with the promise that what it shows was computed."""
    if not text.startswith(PROMISE + "\n"):
        yield f"{name} does not open with the promise line"


def links(text: str) -> list[str]:
    """List the relative links of a page."""
    found = re.findall(r"\]\(<?([^)#\s>]+)[^)]*\)", text)
    return [link for link in found if not re.match(r"[a-z]+:|/", link)]


def unreachable(pages: dict[str, str], starts: Iterable[str]) -> Iterator[Finding]:
    """Every page can be reached by links from the front, and every link leads somewhere."""
    seen: set[str] = set()
    waiting = [start for start in starts if start in pages]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [os.path.normpath(Path(page).parent / link) for link in links(pages[page])]
        waiting += [target for target in targets if target in pages]
        yield from (
            f"{page} links to {t}, which is not there"
            for t in targets
            if t not in pages and not (ROOT / t).exists()
        )
    yield from (f"{page} is linked from nowhere" for page in sorted(set(pages) - seen))


# --------------------------------------------------------------------------- the house keeps them


@cache
def sources() -> tuple[Source, ...]:
    """Read all of our modules."""
    found = []
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(Source(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()))
    return tuple(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    findings = [finding for source in sources() for finding in rule(source)]
    assert not findings, f"{rule.__doc__}\n" + "\n".join(findings)


def test_no_committed_file_names_a_registry_or_a_machine() -> None:
    findings = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content:
            findings += placeless(str(path.relative_to(ROOT)), content.decode(errors="replace"))
    assert not findings, "\n".join(findings)


def pages() -> dict[str, str]:
    """Read every page: those under docs/, and the front page."""
    found = [*(ROOT / "docs").rglob("*.md"), *(path for path in [ROOT / "README.md"] if path.exists())]
    return {str(path.relative_to(ROOT)): path.read_text() for path in found}


def test_every_page_opens_with_the_promise() -> None:
    findings = [f for name, text in pages().items() if name.startswith("docs") for f in promises(name, text)]
    assert not findings, "\n".join(findings)


def test_every_page_can_be_reached_from_the_front() -> None:
    findings = list(unreachable(pages(), ["README.md", "docs/architecture.md"]))
    assert not findings, "\n".join(findings)


# --------------------------------------------------------------------------- each rule catches

LONG = "def long():\n" + "    x = 1\n" * FUNCTION_LINES_MAX + "    return x\n"

BROKEN: list[tuple[Rule, str, str]] = [
    (doors, "api.cli", "import psycopg"),
    (doors, "domain.log.tree", "from fastapi import FastAPI"),
    (doors, "ops.recorder", "def f():\n    import requests"),
    (doors, "ops.recorder", "from . import settings"),
    (purity, "domain.book", "def f(p):\n    return open(p)"),
    (purity, "domain.book", "from datetime import datetime\nx = datetime.now()"),
    (purity, "domain.book", "import datetime as d\nx = d.datetime.utcnow()"),
    (purity, "domain.book", "import time"),
    (purity, "domain.book", "from random import choice"),
    (purity, "domain.book", "import secrets"),
    (purity, "domain.book", "from os import environ"),
    (purity, "domain.book", "from uuid import uuid4"),
    (purity, "domain.book", "import numpy as np\nx = np.random.normal()"),
    (purity, "domain.book", "import numpy as np\nx = np.random.default_rng()"),
    (independence, "domain.log.audit", "from domain.log.tree import root"),
    (independence, "domain.log.audit_tree", "from domain import canonical"),
    (lengths, "ops.recorder", LONG),
    (lengths, "ops.recorder", "\n" * (FILE_LINES_MAX + 1)),
    (docstrings, "ops.recorder", "x = 1"),
    (docstrings, "ops.recorder", '"""A module."""\ndef act(): ...'),
    (docstrings, "ops.recorder", '"""M."""\nclass Act:\n    """Act."""\n    def do(self):\n        a()\n        b()'),
    (docstrings, "ops.recorder", '"""A module without a stop"""'),
    (promised_codes, "ops.recorder", 'def f():\n    """Do.\n\n    Errors: not_found, no_such_code.\n    """'),
    (promised_codes, "ops.recorder", 'def f():\n    """Do.\n\n    Errors: not_found,\n      no_such_code.\n    """'),
    (names, "ops.utils", "x = 1"),
    (names, "ops.http_helpers", "x = 1"),
    (names, "ops.recorder", "class RentalManager: ..."),
    (names, "ops.recorder", "class BaseRecorder: ..."),
    (no_global_state, "api.cli", "from ops.settings import Settings\nsettings = Settings()"),
    (no_global_state, "api.cli", "cache = {}"),
    (no_global_state, "api.cli", "import os\ndef f():\n    return os.environ['A']"),
    (no_global_state, "api.cli", "def f():\n    global x\n    x = 1"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "module", "text"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_rule_that_is_broken_says_so(rule: Rule, module: str, text: str) -> None:
    assert list(rule(Source(module, text)))


def test_a_tidy_module_is_left_in_peace() -> None:
    text = (
        '"""A module."""\n\nimport numpy as np\n\nLIMITS = {"a": 1}\n\n\ndef act(seed: int) -> object:\n'
        '    """Act.\n\n    Errors: not_found (if there is none).\n    Source: a.\n    """\n'
        "    return np.random.default_rng(seed)\n"
    )
    assert not [finding for rule in RULES for finding in rule(Source("domain.market.act", text))]


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://" + "py" + "pi.org/simple",
        "resolved: https://registry." + "npm" + "js.org/left-pad",
        "see /" + "home/somebody/project",
        'path = "/' + 'root/secret"',
    ],
)
def test_a_registry_or_a_machine_is_seen(line: str) -> None:
    assert list(placeless("file", line))


@pytest.mark.parametrize(
    "line", ["GET /v1/log/root/hash", "a /homely thing", "~/home/soma", "$(ROOT)/home/x"]
)
def test_an_innocent_path_is_not_taken_for_a_machine(line: str) -> None:
    assert not list(placeless("file", line))


def test_a_page_without_the_promise_is_seen() -> None:
    assert list(promises("docs/a.md", "# A\n"))
    assert not list(promises("docs/a.md", f"{PROMISE}\n\n# A\n"))


def test_a_page_nobody_links_to_and_a_link_to_nowhere_are_seen() -> None:
    lost = {"README.md": "[a](docs/a.md)", "docs/a.md": "[up](../README.md)", "docs/b.md": ""}
    assert list(unreachable(lost, ["README.md"])) == ["docs/b.md is linked from nowhere"]
    dead = {"README.md": "[a](docs/nowhere-at-all.md#part)"}
    assert list(unreachable(dead, ["README.md"])) == [
        "README.md links to docs/nowhere-at-all.md, which is not there"
    ]
