"""Give up all rights of this process that running a model does not need.

Each measure is tried, and those in force are returned: they depend on the system. On Linux they
are, in this order: resource limits, new namespaces for users, networks and System V memory, no new
privileges, no capabilities, Landlock for files, TCP and signals, and a seccomp filter
(`clipcheck.sandbox.syscalls`).
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from clipcheck.errors import IsolationError
from clipcheck.sandbox.limits import Limits
from clipcheck.sandbox.syscalls import seccomp_filter

_OUTPUT = 10**9
"""Size limit of a file that is written, in bytes."""

_OPEN_FILES = 512

_COUNTED_SINCE = (5, 14)
"""First Linux that counts threads by user namespace: older ones count all of the user's."""

_NOBODY = 65534
"""Id of the user nobody."""

# Of prctl (linux/prctl.h).
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9

# Of unshare (linux/sched.h).
_NEWIPC, _NEWUSER, _NEWNET = 0x08000000, 0x10000000, 0x40000000

# Landlock (linux/landlock.h): numbers of its system calls, which all architectures share.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FOR_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Number of file access rights, by the first version of Landlock with this number."""
_TCP = 0b11
_SCOPES = 0b11

_CAPSET, _CAPABILITIES_VERSION = {"x86_64": 126, "aarch64": 91}, 0x20080522

_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm",
    "/sys/devices/system",
    "/sys/fs/cgroup",
)
"""Paths that Python, torch and the C library read, without any user's data."""

_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_GPU = ("/dev", "/proc/driver", "/sys")


def die_with(parent: int) -> None:
    """Have the system end this process when its parent ends.

    On other systems than Linux it ends when it next waits for a message.
    """
    if sys.platform == "linux":
        _prctl(_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def confine(
    limits: Limits, readable: Sequence[Path], writable: Path, *, gpu: bool = False
) -> list[str]:
    """Give up rights permanently. Only for a process with a single thread.

    Args:
        limits: of memory and threads; the parent enforces the time limit.
        readable: files and folders, besides Python and the system's libraries.
        writable: folder that it may write to.
        gpu: whether it needs the devices of a GPU, whose drivers reserve more memory than they use.

    Returns:
        The measures in force, as phrases.
    """
    _limit(limits, gpu=gpu)
    taken = _taken(limits, gpu=gpu)
    if sys.platform != "linux":
        return [taken]
    countable = _be_countable()
    apart = _leave_namespaces()
    if countable and apart:
        taken += f", {_limit_threads(limits)} in all"
    _prctl(_SET_NO_NEW_PRIVS, 1)
    landlock = _restrict_files(readable, writable, gpu=gpu)
    _drop_capabilities()
    filtered = _filter_system_calls()
    network = [name for name, held in (("namespace", apart), ("seccomp", filtered)) if held]
    return [
        *([f"no network ({', '.join(network)})"] if network else []),
        *(
            [f"reads Python and this file, writes scratch (Landlock {landlock})"]
            if landlock
            else []
        ),
        *(["no other processes (seccomp)"] if filtered else []),
        "no new privileges",
        taken,
    ]


def _taken(limits: Limits, *, gpu: bool) -> str:
    memory = "" if gpu else f", {limits.memory / 1e9:.1f} GB"
    threads = "1 thread" if limits.threads == 1 else f"{limits.threads} threads"
    return f"at most {limits.seconds:g} s a call{memory}, {threads} for torch"


def _limit(limits: Limits, *, gpu: bool) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_FSIZE, _OUTPUT)
    if not gpu:
        _lower(resource.RLIMIT_DATA, limits.memory)
        # No other limit counts private shared mappings. Existing mappings stay.
        _lower(resource.RLIMIT_AS, _mapped() + 2 * limits.memory)


def _lower(which: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _mapped() -> int:
    """Return the size of the mapped address space in bytes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no import here
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 64 << 30  # no Linux, or no /proc; enough for torch with its libraries


def _leave_namespaces() -> bool:
    """Enter new namespaces; return whether the process now has its own, empty network."""
    return bool(_libc().unshare(_NEWUSER | _NEWNET | _NEWIPC) == 0)


def _be_countable() -> bool:
    """Make the system limit the threads of this process's namespace; return whether it does.

    The system does not limit root, by the real user id, so that changes. The effective user id,
    which may open root's files, stays. Without a user map in the namespace this is permanent.
    """
    first, second = re.findall(r"\d+", os.uname().release)[:2]
    if (int(first), int(second)) < _COUNTED_SINCE:
        return False
    if os.getuid() == 0:
        try:
            os.setresuid(_NOBODY, -1, -1)
        except OSError:  # a container without this user
            return False
    return True


def _limit_threads(limits: Limits) -> int:
    """Limit the threads, and return the limit: torch's own, and pools of libraries by cores."""
    import resource

    most = 64 + 4 * max(limits.threads, os.cpu_count() or 1)
    _lower(resource.RLIMIT_NPROC, most)
    return most


def _restrict_files(readable: Sequence[Path], writable: Path, *, gpu: bool) -> int:
    """Restrict files with Landlock; return its version, or 0 without it."""
    call = _libc().syscall
    version = call(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    if version < 1:
        return 0
    every = (1 << _RIGHTS[max(first for first in _RIGHTS if first <= version)]) - 1
    attributes = struct.pack(
        "=QQQ", every, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return 0
    read = _EXECUTE | _READ_FILE | _READ_DIR
    allowed: dict[str | Path, int] = {
        **dict.fromkeys((*_SYSTEM, *_python(), *readable), read),
        **dict.fromkeys(_DEVICES, read | _WRITE_FILE),
        **(dict.fromkeys(_GPU, (read | _WRITE_FILE | _IOCTL_DEV) & every) if gpu else {}),
        writable: every,
    }
    for path, rights in allowed.items():
        _allow(rules, Path(path), rights)
    held = call(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return version if held else 0


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # missing, so there is nothing to allow
    try:
        if not path.is_dir():
            rights &= _FOR_FILES
        rule = struct.pack("=Qi", rights, place)
        if _libc().syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0) != 0:
            _fail("landlock_add_rule")
    finally:
        os.close(place)


def _python() -> list[str]:
    """List the folders of Python, and of the packages that this process has imported."""
    packages = ("torch", "numpy", "clipcheck")
    homes = (getattr(sys.modules.get(name), "__file__", None) for name in packages)
    found = [os.path.dirname(os.path.dirname(home)) for home in homes if home]  # noqa: PTH120
    return [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), *found]  # noqa: PTH120


def _drop_capabilities() -> None:
    number = _CAPSET.get(os.uname().machine)
    if number is not None:
        header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
        if _libc().syscall(number, header, bytes(24)) != 0:
            _fail("capset")


def _filter_system_calls() -> bool:
    """Install the filter; return whether it is in force."""
    try:
        code = seccomp_filter(os.getpid())
    except IsolationError:
        return False  # unknown machine: the report does not list the filter
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    return bool(_libc().prctl(_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        _fail("prctl")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _fail(call: str) -> None:
    number = ctypes.get_errno()
    raise IsolationError(
        f"expected {call} to hold, found {os.strerror(number)}",
        remedy="Report this, with the version of the kernel.",
    )
