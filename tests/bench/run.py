"""Collect the figures of `tests/bench/bench_*.py`, print one line for each, and keep them as JSON.

    python -m tests.bench.run [name or beginning of a name]

Each measurement runs in a process of its own, so that none pays for what another left in memory.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.bench.figures import Figure

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OUTPUT = ROOT / "var" / "bench"
HEADER = f"{'name':36} {'value':>12} {'unit':12} {'baseline':>12} {'ratio':>9}  bar"

Measure = Callable[[], Iterable[Any]]


def measurements() -> dict[str, Measure]:
    """List the measurements by their leading figure, in the order of the files."""
    found: dict[str, Measure] = {}
    for path in sorted(HERE.glob("bench_*.py")):
        found.update(importlib.import_module(f"tests.bench.{path.stem}").FIGURES)
    return found


def chosen(names: Iterable[str], only: str) -> list[str]:
    """Pick a figure by its name, a side figure by its leading one, or several by how they begin."""
    names = list(names)
    if only in names:
        return [only]
    leading = [name for name in names if only.startswith(name)]
    return [name for name in names if name.startswith(only)] or sorted(leading, key=len)[-1:]


def measure(name: str) -> list[Figure]:
    """Run one measurement here."""
    return [one if isinstance(one, Figure) else Figure(**one) for one in measurements()[name]()]


def measure_apart(name: str) -> list[Figure]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.run", "--here", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return [Figure(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def line(figure: Figure) -> str:
    """Print a figure."""
    bar = "" if figure.at_least is None else f">= {figure.at_least:g}"
    bar = bar if figure.at_most is None else f"<= {figure.at_most:g}"
    bar = bar if figure.value_at_most is None else f"value <= {figure.value_at_most:g}"
    verdict = f"  {bar} {'met' if figure.met else 'MISSED'}" if bar else ""
    numbers = f"{figure.value:>12,.6g} {figure.unit:12} {figure.baseline:>12,.6g} {figure.ratio:>9.3f}"
    return f"{figure.name:36} {numbers}{verdict}"


def machine() -> dict[str, Any]:
    """Say where and when the figures were measured."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1_min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": postgres_version(),
    }


def postgres_version() -> str:
    """Ask the embedded server's program for its version."""
    from ops.embedded import _programs

    said = subprocess.run([_programs() / "postgres", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[-1]


def save(facts: dict[str, Any], figures: list[Figure]) -> Path:
    """Keep a run under var/bench/."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{facts['at'].replace(':', '').replace('+0000', 'Z')}.json"
    rows = [figure._asdict() | {"met": figure.met} for figure in figures]
    path.write_text(json.dumps({"machine": facts, "figures": rows}, indent=1) + "\n")
    return path


def main(arguments: list[str]) -> int:
    """Measure what is asked for; give 1 where a bar was missed, 2 where nothing has that name."""
    if arguments[:1] == ["--here"]:
        print(json.dumps(measure(arguments[1])))
        return 0
    only = arguments[0] if arguments else ""
    names = chosen(measurements(), only)
    if not names:
        print(f"no figure is called {only!r}; there are: {', '.join(measurements())}", file=sys.stderr)
        return 2
    facts = machine()
    print("  ".join(f"{key} {value}" for key, value in facts.items()))
    print(HEADER)
    figures: list[Figure] = []
    for name in names:
        for figure in measure_apart(name):
            print(line(figure), flush=True)
            figures.append(figure)
    print(f"kept as {save(facts, figures).relative_to(ROOT)}")
    return int(any(not figure.met for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
