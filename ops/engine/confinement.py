"""What the engine process may touch, given up for good before any foreign code is loaded.

SQL can name files and addresses; what it names is opened by this process. The kernel's Landlock then answers for
what rules on SQL may have missed: libraries can be read, the directory of the data can be read and written, nothing
else exists, and no connection leaves. Where the kernel has no Landlock (other systems, Linux before 5.13) only the
rest applies, and the engine says so.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# Numbers of system calls are the same on every architecture from 424 on.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

# linux/landlock.h, by the version of the interface that brought them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14
_TCP_BIND_AND_CONNECT = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3

# Read by the engine and its libraries; none of these holds anything of ours. Of /proc only what measures memory.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/mime.types",
    "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random",
    "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/self/statm", "/proc/self/stat", "/proc/self/maps",
    "/proc/self/smaps", "/proc/self/cgroup", "/proc/self/mountinfo", "/proc/sys/vm", "/proc/sys/kernel",
    "/sys/devices/system", "/sys/fs/cgroup",
)  # fmt: skip

# When memory is short the kernel ends this process before the ledger beside it.
OOM_SCORE = 700
# The interpreter, its libraries and the stacks of threads; 450 MB were measured with the engine's own at rest.
MEMORY_BESIDE_BYTES = 1_000_000_000


def confine(read: Iterable[Path], write: Iterable[Path], memory_bytes_max: int) -> bool:
    """Give up everything but these places; tell whether the kernel enforces it."""
    _stand_alone(memory_bytes_max)
    if not sys.platform.startswith("linux"):
        return False
    _die_with_owner()
    return _landlock([*map(Path, _SYSTEM), *_interpreter(), *read], write)


def _stand_alone(memory_bytes_max: int) -> None:
    # `SYSTEM SHUTDOWN` signals the whole group of its process; ours is a group of one.
    if os.getsid(0) != os.getpid():
        os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The engine counts its memory itself, softly; what it misses ends as a refused query, not as an ended process.
    data_bytes_max = memory_bytes_max + MEMORY_BESIDE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes_max, data_bytes_max))
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _die_with_owner() -> None:
    # A second way beside the pipe to the owner, should this process be too busy to notice that the pipe was closed.
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _interpreter() -> list[Path]:
    ours = [Path(__file__).parents[1], Path(__file__).parents[2] / "domain"]
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)}
    return [*ours, *(Path(place) for place in sorted(places))]


# --------------------------------------------------------------------------- Landlock


def has_landlock() -> bool:
    """Tell whether this kernel enforces such rules."""
    return sys.platform.startswith("linux") and _version() >= 1


def _version() -> int:
    return int(_libc().syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _landlock(read: Iterable[Path], write: Iterable[Path]) -> bool:
    """Enforce the rules on this process and all it will ever start.

    Source: linux/landlock.h; Documentation/userspace-api/landlock.rst.
    """
    version = _version()
    if version < 1:
        return False
    everything = max(mask for since, mask in _ALL_FILES.items() if since <= version)
    rules = _ruleset(version, everything)
    try:
        for path in read:
            _allow(rules, path, (_EXECUTE | _READ_FILE | _READ_DIR) & everything)
        for path in write:
            _allow(rules, path, everything & ~_EXECUTE)
        # /dev/null is opened for writing by libraries that silence themselves.
        _allow(rules, Path("/dev/null"), (_READ_FILE | _WRITE_FILE) & everything)
        _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _checked(_libc().syscall(_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    finally:
        os.close(rules)
    return True


def _ruleset(version: int, everything: int) -> int:
    # The structure grew with the versions; an older kernel takes the part it knows.
    fields = [everything]
    fields += [_TCP_BIND_AND_CONNECT] if version >= 4 else []
    fields += [_ABSTRACT_SOCKETS_AND_SIGNALS] if version >= 6 else []
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields))
    return _checked(
        _libc().syscall(_CREATE_RULESET, attributes, 8 * len(fields), 0), "landlock_create_ruleset"
    )


def _allow(rules: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        allowed = access if path.is_dir() else access & _OF_FILES_ONLY
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place), 12)
        _checked(_libc().syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(place)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result
