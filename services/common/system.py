"""The operating system: cores, memory, processes, signals, sockets.

Files are in system_files.py, limits of Linux control groups (containers) in cgroups.py; the latter
take precedence over the machine's. No other module names what not every system has: each use is
guarded here, and tests/without takes it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hearth.common import cgroups

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Memory of a root or worker besides weights and KV cache. Python, gRPC and the usual steps take
# under 144 MiB (bench/memory.py); a large tokenizer and larger steps need more.
_OVERHEAD_BYTES = 256 << 20
# Assumed where a system does not say how much memory it has.
_UNKNOWN_MEMORY = 4 << 30
# The state of a TCP connection whose peer has closed its side, in Linux's struct tcp_info.
_TCP_CLOSE_WAIT = b"\x08"
# Errors of asking a system for what it does not have.
_ABSENT = (OSError, AttributeError, ImportError, ValueError, NotImplementedError)
# Windows: a handle that may only be waited for, and the answer of one that does not end.
_SYNCHRONIZE, _WAIT_TIMEOUT = 0x00100000, 0x102


def version() -> str:
    """The distribution's version."""
    try:
        return importlib.metadata.version("hearth")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


def architecture() -> str:
    """ "x86_64", "aarch64"."""
    return platform.machine()


def cores() -> int:
    """Cores that this process may use: its affinity, and the container's CPU quota rounded up."""
    count = len(own_cores()) or os.cpu_count() or 1
    return max(1, min(count, cgroups.quota_cores() or count))


def load() -> float:
    """Programs that computed or waited to, over the last minute; 0 where that is not counted."""
    try:
        return os.getloadavg()[0]
    except _ABSENT:
        return 0.0


def own_cores() -> list[int]:
    """Numbers of the cores that this process may use; empty where the system does not tell."""
    try:
        return sorted(os.sched_getaffinity(0))
    except _ABSENT:
        return []


def memory_total() -> int:
    """Bytes of memory: the lower of the machine's and the container's limit."""
    total = _memory("MemTotal", 0)
    return min([total, *(group.limit for group in cgroups.memory_limits())])


def memory_available() -> int:
    """Bytes that can be allocated now without swapping, within the container's limit."""
    free = _memory("MemAvailable", 1)
    return min([free, *(max(0, g.limit - g.used) for g in cgroups.memory_limits())])


def memory_for_model(limit: int | None = None) -> int:
    """Bytes available now for weights and KV cache, at most `limit`."""
    free = max(0, memory_available() - _OVERHEAD_BYTES)
    return free if limit is None else min(free, limit)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_rss_bytes()
    return pages * (_sysconf("SC_PAGE_SIZE") or 4096)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process; 0 where the system does not tell."""
    try:
        resource: Any = importlib.import_module("resource")
        peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except _ABSENT:
        return 0
    return peak if sys.platform == "darwin" else peak * 1024


def status_bytes(pid: int | str, field: str) -> int | None:
    """A size in a process's status: "VmRSS" is its resident memory, "VmHWM" the peak of that.

    None where there is no such process or field. Linux only.
    """
    return _sizes(Path(f"/proc/{pid}/status")).get(field)


def keep_message_memory() -> None:
    """Lets the allocator keep the memory of freed messages for the next ones, within bounds.

    glibc returns a freed block of 1 MiB to the system, and the next one is faulted in page by page:
    a third of the process's time while weights stream. By default it also keeps such memory
    separately for each of many threads. Other allocators are not changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 16 << 20)
    mallopt(_M_MMAP_THRESHOLD, 3 << 20)
    mallopt(_M_ARENA_MAX, 2)


def trim_memory() -> None:
    """Returns freed memory from the allocator to the system; called after loading."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def own_session() -> dict[str, Any]:
    """Arguments of Popen: an interrupt at the terminal does not reach the new process."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def hand_over(connection: Connection) -> dict[str, Any]:
    """Arguments of Popen: the new process gets an end of a pipe, by the number `fileno` has."""
    number = connection.fileno()
    if sys.platform == "win32":
        os.set_handle_inheritable(number, True)
        return {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [number]})}
    return {"pass_fds": [number]}


def handed_over(number: int) -> Connection:
    """The end of a pipe that `hand_over` gave to this process."""
    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection

        return PipeConnection(number)
    return Connection(number)


def parent_left(parent: int) -> bool:
    """True if the process `parent`, which started this one, has ended."""
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(_SYNCHRONIZE, False, parent)
        runs = handle and kernel.WaitForSingleObject(handle, 0) == _WAIT_TIMEOUT
        kernel.CloseHandle(handle)
        return not runs
    return os.getppid() != parent


def leave_no_core() -> None:
    """Let this process write no core file, where there are such."""
    _limit("RLIMIT_CORE", 0, hard=True)


def limit_data(size: int, *, more: bool = False) -> None:
    """Let this process have `size` bytes of private memory; `more`: beyond what it has.

    Linux only: it counts no mapped files.
    """
    if sys.platform == "linux":
        used = status_bytes("self", "VmData") if more else 0
        if used is not None:
            _limit("RLIMIT_DATA", used + size)


def has_timers() -> bool:
    """True if a process can end itself by a timer."""
    return hasattr(signal, "setitimer")


def end_after_computing(seconds: float) -> None:
    """End this process when it has computed for so long, at any point; 0: not any more.

    Nothing where there are no such timers: the process's owner ends it in the end.
    """
    with contextlib.suppress(*_ABSENT):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit(name: str, size: int, *, hard: bool = False) -> None:
    with contextlib.suppress(*_ABSENT):
        resource: Any = importlib.import_module("resource")
        most = size if hard else resource.RLIM_INFINITY
        resource.setrlimit(getattr(resource, name), (size, most))


def stop_signals() -> list[signal.Signals]:
    """Signals that request an end: of a terminal, and of what runs services."""
    return _signals("SIGTERM", "SIGINT", "SIGBREAK")


def ended_by(code: int, *names: str) -> bool:
    """True if a process's exit code is that of one of the signals; "SIGALRM", "SIGKILL" ..."""
    return -code in _signals(*names)


def reuse_address(listening: socket.socket) -> None:
    """Let a port be listened on that was closed a moment ago, and by nobody else meanwhile."""
    # Windows' SO_REUSEADDR would let a second program take the port of a running one.
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    listening.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)


def wake_at(connection: socket.socket, count: int) -> None:
    """Let a socket count as readable when it has `count` bytes, where the system can wait so."""
    with contextlib.suppress(*_ABSENT):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


def keep_alive(connection: socket.socket, seconds: int) -> None:
    """Let a connection fail when its peer has been silent for some `seconds`.

    Systems other than Linux keep some or all of their default times.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": seconds // 4, "TCP_KEEPINTVL": seconds // 4, "TCP_KEEPCNT": 3}
    _set_tcp(connection, options | {"TCP_USER_TIMEOUT": seconds * 1000})


def allow_slow_reader(connection: socket.socket) -> None:
    """Let data stay unread for as long as the peer answers at all."""
    _set_tcp(connection, {"TCP_USER_TIMEOUT": 0})


def is_readable(connection: socket.socket) -> bool:
    """True if what its peer sent, as many bytes as are waited for, has not been read yet."""
    if connection.fileno() < 0:
        return False
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def has_left(connection: socket.socket) -> bool:
    """True if the peer sends no more, where the system says so; bytes may still wait to be read."""
    return tcp_info(connection, 1) == _TCP_CLOSE_WAIT


def tcp_info(connection: socket.socket, size: int) -> bytes:
    """The first `size` bytes of Linux's struct tcp_info; none elsewhere."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    except _ABSENT:
        return b""


def _set_tcp(connection: socket.socket, options: Mapping[str, int]) -> None:
    for name, value in options.items():
        with contextlib.suppress(*_ABSENT):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _signals(*names: str) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _memory(field: str, part: int) -> int:
    """A size of /proc/meminfo; or what Windows has at `part`: 0, all memory; 1, what is free.

    Elsewhere what is free is taken to be three quarters.
    """
    size = _sizes(Path("/proc/meminfo")).get(field)
    if size is not None:
        return size
    if sys.platform == "win32":
        # Its length, the load in percent, then seven sizes (MEMORYSTATUSEX).
        status = (ctypes.c_uint64 * 8)(64)
        known = ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
        return int(status[1 + part]) if known else _UNKNOWN_MEMORY
    total = _sysconf("SC_PHYS_PAGES") * _sysconf("SC_PAGE_SIZE") or _UNKNOWN_MEMORY
    return total * (3 if part else 4) // 4


def _sysconf(name: str) -> int:
    """A number of the system's, 0 where it is not known."""
    try:
        return max(0, os.sysconf(name))
    except _ABSENT:
        return 0


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each line `NAME: N kB`; none where the file cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found = [re.fullmatch(r"(\w+):\s*(\d+) kB", line) for line in lines]
    return {match[1]: int(match[2]) * 1024 for match in found if match}
