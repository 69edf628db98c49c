"""Processes that tests start, listen to and kill."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
HEARD_S_MAX = 60.0


class Child:
    """A process of ours and every line it said, each of them JSON."""

    def __init__(self, words: list[str]) -> None:
        self.said: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._over = False
        self.process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._overhear)]
        self.errors = b""
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                with self._heard:
                    self.said.append(json.loads(line))
                    self._heard.notify_all()
        with self._heard:
            self._over = True
            self._heard.notify_all()

    def _overhear(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def hear(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a line that fits."""
        with self._heard:
            found = self._heard.wait_for(
                lambda: next((line for line in self.said if wanted(line)), None) or self._over, HEARD_S_MAX
            )
        if not isinstance(found, dict):
            self.kill()
            raise AssertionError(f"it said {self.said[-3:]} and {self.errors.decode()[-3_000:]}")
        return found

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self.process.kill()
        self.join()

    def join(self) -> int:
        """Wait for its end; give its status."""
        status = self.process.wait(HEARD_S_MAX)
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
