"""The tutorial is followed to the letter: its blocks, in order, in one shell."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path("docs/tutorials/first-ten-minutes.md")
END_S_MAX = 120


def blocks(page: str) -> list[str]:
    """Read the shell blocks of a page."""
    return re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def a_path(place: Path, root: Path) -> str:
    """Make the words the page uses: `soma` and `python3` of this environment, as an activated one has them."""
    place.mkdir()
    for name, words in {"soma": [sys.executable, "-m", "api.cli"], "python3": [sys.executable]}.items():
        script = place / name
        script.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {shlex.join(words)} "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"


def a_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def transcript(tmp_path: Path, repository_root: Path) -> str:
    """Follow the page and give what it printed."""
    found = blocks((repository_root / PAGE).read_text(encoding="utf-8"))
    script = tmp_path / "page.sh"
    script.write_text("set -euo pipefail\nset -v\n" + "\n".join(found), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    environment = inherited | {
        "PATH": a_path(tmp_path / "bin", repository_root),
        "SOMA_PORT": str(a_free_port()),
        "SOMA_DATA_DIR": str(tmp_path / "data"),
    }
    started = time.perf_counter()
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=END_S_MAX,
        check=False,
    )
    print(f"the first ten minutes: {len(found)} blocks in {time.perf_counter() - started:.1f} s")
    log = (tmp_path / "soma.log").read_text() if (tmp_path / "soma.log").exists() else ""
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{log[-3000:]}"
    print(done.stdout)
    return done.stdout


def test_the_page_followed_to_the_letter_closes_the_loop(transcript: str) -> None:
    assert "no_compatible_offers_found" in transcript
    assert "'change': 'budget', " in transcript
    assert "'at_least': '35.50'" in transcript
    assert "contract_already_released" in transcript
    assert '"balanced":true' in transcript
    told = re.findall(r"^\d+ \S+Z (\w+) sha3-512:", transcript, re.MULTILINE)
    assert told == ["created", "escrow_funded", "bound_to_round", "round_completed", "escrow_released"]
    assert "every promise holds" in transcript
