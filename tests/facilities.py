"""Another system, as far as a process sees it: facilities that not every system has, taken away.

Each by itself or all at once. Names go from the modules that have them and from those below; files
are not found, whichever way they are named; functions of libraries cannot be looked up; and the
kernel refuses calls, also those of compiled code. `environment` gives all that to a process and to
those that it starts, by a module that Python imports first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import importlib
import os
import platform
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

# Facilities: modules that cannot be imported, and what modules do not have.
MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "locks": ("fcntl",),
        "limits": ("resource",),
        "terminals": ("termios", "tty", "pty", "curses"),
        "users": ("pwd", "grp"),
    }
)
NAMES: Mapping[str, tuple[tuple[ModuleType, str], ...]] = MappingProxyType(
    {
        "affinity": ((os, "sched_getaffinity"), (os, "sched_setaffinity")),
        "load": ((os, "getloadavg"),),
        "users": ((os, "getuid"), (os, "geteuid"), (os, "getgid"), (os, "getegid")),
        "descriptors": (
            *((os, f"O_{name}") for name in ("DIRECTORY", "NOFOLLOW", "NONBLOCK", "CLOEXEC")),
            *((os, name) for name in ("pread", "preadv", "pwrite", "pwritev", "fchmod")),
            (os, "posix_fadvise"),
        ),
        "sysconf": ((os, "sysconf"),),
        "forks": ((os, "fork"), (os, "setsid"), (os, "nice"), (os, "mkfifo")),
        "signals": (
            *((signal, f"SIG{name}") for name in ("HUP", "USR1", "USR2", "ALRM", "PROF")),
            *((signal, name) for name in ("setitimer", "alarm", "pthread_sigmask")),
        ),
        "polls": ((select, "poll"),),
        "reuse_port": ((socket, "SO_REUSEPORT"),),
        "sockets": (
            *((socket, f"TCP_{name}") for name in ("INFO", "USER_TIMEOUT", "KEEPIDLE")),
            *((socket, f"TCP_{name}") for name in ("KEEPINTVL", "KEEPCNT")),
            *((socket, name) for name in ("SO_RCVLOWAT", "MSG_DONTWAIT")),
        ),
    }
)
# Where `os` and others have their names from.
BELOW = MappingProxyType({"os": "posix", "signal": "_signal", "socket": "_socket"})
# Files and folders that only Linux has.
FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "proc": ("/proc",),
        "cgroups": ("/sys/fs/cgroup", "/proc/self/cgroup"),
        "sys": ("/sys",),
        "shared_memory": ("/dev/shm",),
    }
)
# Functions of libraries.
FUNCTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "allocator": ("mallopt", "malloc_trim"),
        "affinity": ("sched_getaffinity", "sched_setaffinity", "sched_getcpu"),
        "sysconf": ("sysconf", "get_nprocs"),
    }
)


@dataclass(frozen=True)
class Call:
    """A system call that the kernel refuses: by its number on x86-64 and on 64-bit Arm.

    `arguments`: (which, value), if only such calls are meant.
    """

    numbers: tuple[int, int]
    error: int
    arguments: tuple[tuple[int, int], ...] = ()


_SOL_SOCKET, _SO_REUSEPORT, _MADV_COLLAPSE = 1, 15, 25
CALLS: Mapping[str, tuple[Call, ...]] = MappingProxyType(
    {
        "affinity": (Call((203, 122), errno.ENOSYS), Call((204, 123), errno.ENOSYS)),
        "huge_pages": (Call((28, 233), errno.EINVAL, ((2, _MADV_COLLAPSE),)),),
        "reuse_port": (Call((54, 208), errno.ENOPROTOOPT, ((1, _SOL_SOCKET), (2, _SO_REUSEPORT))),),
        "splice": (Call((275, 76), errno.ENOSYS),),
    }
)
OTHERS = (
    *("asyncio", "multiprocessing.connection", "platformdirs", "selectors", "shutil"),
    *("subprocess", "tempfile"),
)
# Files and functions that this process has looked for, and was refused.
refused: set[str] = set()
ALL = tuple(sorted({*MODULES, *NAMES, *FILES, *FUNCTIONS, *CALLS}))


def take_away(facilities: Iterable[str]) -> None:
    """Take facilities of `ALL` away from this process. Modules that have them keep them."""
    chosen = set(facilities)
    if unknown := chosen.difference(ALL):
        raise ValueError(f"{', '.join(sorted(unknown))}: not of {', '.join(ALL)}")
    # Modules of others that see by the system's name what there should be.
    for name in OTHERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    refuse_calls([call for facility in chosen for call in CALLS.get(facility, ())])
    for facility in chosen:
        for name in MODULES.get(facility, ()):
            sys.modules[name] = None  # type: ignore[assignment]  # its import fails
        for module, name in NAMES.get(facility, ()):
            below = sys.modules.get(BELOW.get(module.__name__, ""))
            for each in (module, below):
                if hasattr(each, name):
                    delattr(each, name)
    _hide(
        tuple(top for facility in chosen for top in FILES.get(facility, ())),
        frozenset(name for facility in chosen for name in FUNCTIONS.get(facility, ())),
    )


def _hide(tops: tuple[str, ...], functions: frozenset[str]) -> None:
    """Let no file below `tops` be found, and no function be looked up in a library."""

    def check(path: object) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.path.normpath(os.fsdecode(path))
            if any(name == top or name.startswith(f"{top}/") for top in tops):
                refused.add(name)
                raise FileNotFoundError(errno.ENOENT, "there is no such file on this system", name)

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir", "os.chdir"):
            check(arguments[0])
        elif event == "ctypes.dlsym" and arguments[1] in functions:
            refused.add(str(arguments[1]))
            raise AttributeError(f"{arguments[1]}: not on this system")

    if tops or functions:
        sys.addaudithook(refuse)
    # These are not audited.
    for name in ("stat", "lstat", "access", "readlink", "statvfs") if tops else ():
        checked = _checked(getattr(os, name), check)
        for names in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if getattr(os, name) in names:
                names.add(checked)
        setattr(os, name, checked)


def _checked(call: Callable[..., Any], check: Callable[[object], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def checked(path: object, *arguments: Any, **options: Any) -> Any:
        check(path)
        return call(path, *arguments, **options)

    return checked


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000
_FIRST_ARGUMENT = 16  # its offset in struct seccomp_data


def refuse_calls(calls: Iterable[Call]) -> None:
    """Let system calls fail from now on, in this process and those that it starts."""
    which = ("x86_64", "aarch64").index(platform.machine())
    code = b""
    for call in calls:
        tests = [(0, call.numbers[which])]
        tests += [(_FIRST_ARGUMENT + 8 * at, value) for at, value in call.arguments]
        for i, (offset, value) in enumerate(tests):
            # What is not meant goes on behind this call's return.
            past = 2 * (len(tests) - 1 - i) + 1
            code += _step(_LOAD, offset) + _step(_JUMP_IF_EQUAL, value, past)
        code += _step(_RETURN, _FAIL_WITH | call.error)
    if not code:
        return
    code += _step(_RETURN, _ALLOW)
    program = _Program(len(code) // 8, code)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    if (
        prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0
        or prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program)) != 0
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def _step(code: int, value: int, otherwise: int = 0) -> bytes:
    """A struct sock_filter; `otherwise`: steps to jump over if the values differ."""
    head = code.to_bytes(2, sys.byteorder) + bytes((0, otherwise))
    return head + value.to_bytes(4, sys.byteorder)


def environment(folder: Path, facilities: Iterable[str]) -> dict[str, str]:
    """The environment of processes on such a system. folder: an empty one that they read."""
    lines = (
        "import sys",
        f"sys.path.append({str(Path(__file__).parent)!r})",
        "import facilities",
        f"facilities.take_away({sorted(facilities)!r})",
        "sys.path.pop()",
    )
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    paths = (str(folder), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
