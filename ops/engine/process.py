"""The side of those who want an engine: one process owns it and holds it up, all others on its directory attach.

Who owns is said by a lock on a file, which the kernel takes back from a killed process. The owner binds the port
itself and lends the engine the listening socket: while an engine is being restarted nobody else can take the port,
and clients that connect wait instead of failing.
"""

from __future__ import annotations

import atexit
import fcntl
import http.client
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

import psutil

from domain.errors import EngineStartError
from ops import telemetry
from ops.engine.digests import digest

log = telemetry.logger(__name__)

HOST = "127.0.0.1"
START_S_MAX = 60.0
STOP_S_MAX = 12.0
PORT_S_MAX = 6.0
WATCH_INTERVAL_S = 0.25
# One that had answered is started again at once; one that could not start waits longer each time.
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0)
BACKLOG = 512
MEMORY_SHARE_MAX = 0.5
WORDS_BYTES_MAX = 4_000
LOG_BYTES_MAX = 4_000_000


@dataclass(frozen=True)
class Target:
    """Where an engine answers, and the two accounts it knows."""

    url: str
    service_user: str
    service_password: str
    reader_user: str
    reader_password: str

    def __repr__(self) -> str:
        return f"Target({self.url!r})"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


class EmbeddedClickHouse:
    """A running engine this process owns or has attached to, until `stop`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = Path(data_dir).resolve()
        self._pid = os.getpid()
        self._lock = -1
        self._listener: socket.socket | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        self._target: Target | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        # The kernel ends an engine with the *thread* that started it, so one thread starts them all.
        self._watcher = threading.Thread(target=self._watch, name="engine-watch", daemon=True)

    @classmethod
    def start(cls, data_dir: Path) -> EmbeddedClickHouse:
        """Start the engine of a data directory, or attach to the one that runs.

        Cost:   about a second to start, some milliseconds to attach.
        Errors: engine_start_failed.
        """
        embedded = cls(data_dir)
        embedded._watcher.start()
        embedded._ready.wait(START_S_MAX + STOP_S_MAX)
        if embedded._failure is not None or not embedded._ready.is_set():
            embedded._stopping.set()
            if isinstance(embedded._failure, EngineStartError):
                raise embedded._failure
            raise EngineStartError(internal=repr(embedded._failure or "it did not answer in time"))
        atexit.register(embedded.stop)
        return embedded

    @property
    def target(self) -> Target:
        """Tell where the engine answers now; after a takeover it may be another port, if the old one was taken."""
        assert self._target is not None
        return self._target

    @property
    def owned(self) -> bool:
        """Tell whether this process holds the engine up."""
        return self._lock >= 0

    @property
    def engine_pid(self) -> int | None:
        """Name the engine process, if this process owns it."""
        return self._engine.pid if self._engine is not None else None

    def stop(self) -> None:
        """Let go of the engine; the owner stops it, and one that is attached takes over."""
        atexit.unregister(self.stop)
        # A forked child shares our descriptors; the engine is its parent's.
        if self._pid != os.getpid() or self._stopping.is_set():
            return
        self._stopping.set()
        self._watcher.join(STOP_S_MAX + WATCH_INTERVAL_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ----------------------------------------------------------------------- the watching thread

    def _watch(self) -> None:
        try:
            (self.data_dir / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._attach():
                self._own()
        except BaseException as error:
            if self._ready.is_set():
                log.exception("the engine is no longer watched")
            self._failure = error
            self._ready.set()
        finally:
            self._release()

    def _attach(self) -> bool:
        """Use the engine of another process until that process is gone; tell whether to stop altogether."""
        while not self._stopping.is_set():
            if self._try_lock():
                return False
            known = _remembered(self.data_dir)
            if known is not None and (known == self._target or answers(known)):
                self._target = known
                self._ready.set()
            self._stopping.wait(WATCH_INTERVAL_S if self._ready.is_set() else 0.05)
        return True

    def _own(self) -> None:
        """Hold an engine up until told to stop."""
        self._listen()
        failures = 0
        while not self._stopping.is_set():
            try:
                self._spawn()
                failures = 0
                self._ready.set()
                self._await_end()
            except (EngineStartError, OSError):
                if not self._ready.is_set():
                    raise
                log.exception("the engine did not start")
                failures += 1
            self._end_engine()
            if self._stopping.is_set():
                break
            pause_s = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
            code = self._engine.returncode if self._engine else None
            log.warning("the engine ended; it is started again", code=code, pause_s=pause_s)
            telemetry.ENGINE_RESTARTS.inc()
            self._stopping.wait(pause_s)

    def _try_lock(self) -> bool:
        lock = os.open(self.data_dir / "clickhouse.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _listen(self) -> None:
        known = _remembered(self.data_dir)
        self._listener = _bound(known.port if known else 0)
        url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        if known is None or known.url != url:
            _remember(self.data_dir, _fresh(url, known))
        self._target = _remembered(self.data_dir)

    def _spawn(self) -> None:
        assert self._listener is not None
        assert self._target is not None
        target = self._target
        root = self.data_dir / "clickhouse"
        (root / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._engine = _started(root, self._listener.fileno())
        _tell(
            self._engine,
            {
                "socket": self._listener.fileno(),
                "root": str(root),
                "memory_bytes_max": int(psutil.virtual_memory().total * MEMORY_SHARE_MAX),
                "accounts": {
                    "service": digest(target.service_user, target.service_password),
                    "reader": digest(target.reader_user, target.reader_password),
                },
            },
        )
        said = _first_line(self._engine)
        if said is None:
            self._end_engine()
            raise EngineStartError(internal=_last_words(root))
        log.info("the engine answers", url=target.url, pid=self._engine.pid, **said)
        if not said["confined"]:
            log.warning("this kernel has no Landlock: the engine is not confined to its directory")

    def _await_end(self) -> None:
        assert self._engine is not None
        while self._engine.poll() is None and not self._stopping.is_set():
            self._stopping.wait(WATCH_INTERVAL_S)

    def _end_engine(self) -> None:
        engine = self._engine
        if engine is None:
            return
        # The end of the pipe is the word to stop; what was acknowledged is on the disk either way.
        with suppress(OSError):
            if engine.stdin:
                engine.stdin.close()
        try:
            engine.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            engine.kill()
            engine.wait()
        if engine.stdout:
            engine.stdout.close()

    def _release(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


# --------------------------------------------------------------------------- the process


def _started(root: Path, listener: int) -> subprocess.Popen[bytes]:
    # Nothing of our environment, which holds secrets: a query could be made to read it.
    environment = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "HOME": str(root / "tmp"),
        "TMPDIR": str(root / "tmp"),
    }
    with _log_of(root) as words:
        return subprocess.Popen(
            [sys.executable, "-m", "ops.engine"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
            cwd=root, env=environment, pass_fds=[listener], start_new_session=True,
        )  # fmt: skip


def _log_of(root: Path) -> IO[bytes]:
    # The words of an engine that died are kept, but not for ever.
    path = root / "engine.log"
    too_large = path.exists() and path.stat().st_size > LOG_BYTES_MAX
    return path.open("wb" if too_large else "ab")


def _tell(engine: subprocess.Popen[bytes], told: dict[str, Any]) -> None:
    assert engine.stdin is not None
    with suppress(BrokenPipeError):
        engine.stdin.write(json.dumps(told).encode() + b"\n")
        engine.stdin.flush()


def _first_line(engine: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    assert engine.stdout is not None
    found, _, _ = select.select([engine.stdout], [], [], START_S_MAX)
    line = engine.stdout.readline() if found else b""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def _last_words(root: Path) -> str:
    with suppress(OSError):
        return (root / "engine.log").read_bytes()[-WORDS_BYTES_MAX:].decode(errors="replace")
    return ""


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # The engine of a killed owner lets go of its port when it notices; a stranger does not, and keeps it.
    until = time.monotonic() + PORT_S_MAX
    while True:
        try:
            listener.bind((HOST, port))
            break
        except OSError:
            if time.monotonic() > until:
                log.warning("the engine's port is taken; another one is written down", port=port)
                port = 0
            time.sleep(0.05)
    listener.listen(BACKLOG)
    return listener


def answers(target: Target) -> bool:
    """Tell whether an engine answers there and knows our account."""
    word = b64encode(f"{target.service_user}:{target.service_password}".encode()).decode()
    connection = http.client.HTTPConnection(HOST, target.port, timeout=5)
    try:
        connection.request("GET", "/?query=SELECT%201", headers={"Authorization": f"Basic {word}"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# --------------------------------------------------------------------------- the file of secrets


def secrets_path(data_dir: Path) -> Path:
    """Locate the file that says where the engine of a data directory answers, and to whom."""
    return data_dir / "keys" / "engine.json"


def _fresh(url: str, known: Target | None) -> Target:
    # A new port keeps the secrets: clients of the old one need to learn the port only.
    if known is not None:
        return Target(**{**asdict(known), "url": url})
    return Target(url, "service", secrets.token_urlsafe(32), "reader", secrets.token_urlsafe(32))


def _remembered(data_dir: Path) -> Target | None:
    try:
        told = json.loads(secrets_path(data_dir).read_bytes())
        service, reader = told["service"], told["reader"]
        return Target(told["url"], service["user"], service["password"], reader["user"], reader["password"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise EngineStartError(
            f"{secrets_path(data_dir)} cannot be read; remove it", internal=repr(error)
        ) from error


def _remember(data_dir: Path, target: Target) -> None:
    """Write the file whole or not at all, for its owner only."""
    path = secrets_path(data_dir)
    told = {
        "url": target.url,
        "service": {"user": target.service_user, "password": target.service_password},
        "reader": {"user": target.reader_user, "password": target.reader_password},
    }
    descriptor, draft = mkstemp(prefix=".engine.", dir=path.parent)  # made with mode 0600
    with os.fdopen(descriptor, "wb") as file:
        _write_down(file, json.dumps(told, indent=1).encode())
    Path(draft).replace(path)


def _write_down(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
