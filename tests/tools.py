"""Programs of others that tests run beside our own: built or fetched once into a cache, by one process at a time.

The cache is SOMA_TOOLS_CACHE, or var/cache. Where a tool cannot be had a laptop skips the test, and CI fails: what is
promised about it is shown there at least.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

CACHE = Path(os.environ.get("SOMA_TOOLS_CACHE", ROOT / "var" / "cache"))
BUILD_S_MAX = 900


@contextmanager
def building(name: str) -> Iterator[None]:
    """Keep other processes from building the same thing meanwhile; pytest runs several."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_program(name: str, module: str, versions: Sequence[str]) -> Path:
    """Locate a program in the cache, or build the first version that can be had; it takes a minute or two."""
    with building(name):
        for version in versions:
            if (path := CACHE / f"{name}-{version}" / name).exists():
                return path
        go = shutil.which("go")
        if go is None:
            return missing(f"a Go toolchain is needed to build {name}")
        complaints = []
        for version in versions:
            home = CACHE / f"{name}-{version}"
            home.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(
                [go, "install", f"{module}@{version}"],
                env=os.environ | {"GOBIN": str(home), "GOFLAGS": "-buildvcs=false"},
                capture_output=True,
                text=True,
                timeout=BUILD_S_MAX,
                check=False,
            )
            if done.returncode == 0:
                return home / name
            shutil.rmtree(home)
            complaints.append(done.stderr.strip()[-300:])
        return missing(f"{name} cannot be built here: {'; '.join(complaints)}")


def missing(why: str) -> Path:
    """Skip the test on a laptop, fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
