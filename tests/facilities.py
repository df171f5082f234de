"""Another system, as far as Python shows it: facilities that not every system has are taken away.

`environment` gives a process, and those that it starts, a module that Python imports when it
starts, before anything of Hearth's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

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
        "affinity": ((os, "sched_getaffinity"), (os, "sched_setaffinity"), (os, "getloadavg")),
        "users": ((os, "getuid"), (os, "geteuid"), (os, "getgid"), (os, "getegid")),
        "descriptors": (
            *((os, f"O_{name}") for name in ("DIRECTORY", "NOFOLLOW", "NONBLOCK", "CLOEXEC")),
            *((os, name) for name in ("pread", "preadv", "pwrite", "pwritev", "fchmod", "sysconf")),
        ),
        "forks": ((os, "fork"), (os, "setsid"), (os, "nice"), (os, "mkfifo")),
        "signals": (
            *((signal, f"SIG{name}") for name in ("HUP", "USR1", "USR2", "ALRM", "PROF")),
            *((signal, name) for name in ("setitimer", "alarm", "pthread_sigmask")),
        ),
        "polls": ((select, "poll"),),
        "sockets": (
            *((socket, f"TCP_{name}") for name in ("INFO", "USER_TIMEOUT", "KEEPIDLE")),
            *((socket, f"TCP_{name}") for name in ("KEEPINTVL", "KEEPCNT")),
            *((socket, name) for name in ("SO_REUSEPORT", "SO_RCVLOWAT", "MSG_DONTWAIT")),
        ),
    }
)
# Files that only Linux has.
FILES = ("/proc", "/sys", "/dev/shm")
OTHERS = (
    *("asyncio", "multiprocessing.connection", "platformdirs", "selectors", "shutil"),
    *("subprocess", "tempfile"),
)
ALL = (*sorted({*MODULES, *NAMES}), "proc")


def take_away(facilities: Iterable[str]) -> None:
    """Take facilities of `ALL` away from this process. Modules that have them keep them."""
    chosen = set(facilities)
    if unknown := chosen.difference(ALL):
        raise ValueError(f"{', '.join(sorted(unknown))}: not of {', '.join(ALL)}")
    # Modules of others that see by the system's name what there should be.
    for name in OTHERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for facility in chosen:
        for name in MODULES.get(facility, ()):
            sys.modules[name] = None  # type: ignore[assignment]  # its import fails
        for module, name in NAMES.get(facility, ()):
            if hasattr(module, name):
                delattr(module, name)
    if "proc" in chosen:
        sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Fail to open a file below `FILES`, before the system is asked."""
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if any(path == top or path.startswith(f"{top}/") for top in FILES):
            raise FileNotFoundError(2, "there is no such file on this system", path)


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
