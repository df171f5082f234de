"""What this machine gives the process: cores, memory, its own footprint.

Honours Linux control groups (containers): their limits, not the machine's, are what may be used.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


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
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for folder in _cgroup_folders():
        count = min(count, _quota_cores(folder) or count)
    return max(1, count)


def memory_total() -> int:
    """Bytes of memory: the machine's or the container's limit, the lower."""
    total = _meminfo("MemTotal")
    for folder in _cgroup_folders():
        limit, _ = _cgroup_memory(folder)
        total = min(total, limit or total)
    return total


def memory_available() -> int:
    """Bytes that could be taken now without swapping, within the container's limit."""
    free = _meminfo("MemAvailable")
    for folder in _cgroup_folders():
        limit, used = _cgroup_memory(folder)
        if limit:
            free = min(free, max(0, limit - used))
    return free


def resident_bytes() -> int:
    """Resident memory of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_message_memory() -> None:
    """Lets the allocator keep the memory of freed messages (up to 32 MiB) for the next ones.

    glibc gives a block of 1 MiB back when it is freed, and the next one is then faulted in page by
    page: with weights streaming, a third of the process's time. Other allocators are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 32 << 20)
    mallopt(_M_MMAP_THRESHOLD, 8 << 20)


def _meminfo(field: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_folders() -> list[Path]:
    """This process's control groups (version 2), innermost first; a container sees its own as /."""
    path = "/"
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                path = line[3:]
    except OSError:
        return []
    inner = _CGROUP / path.lstrip("/")
    folders = [inner, *inner.parents]
    return [folder for folder in folders if folder == _CGROUP or _CGROUP in folder.parents]


def _quota_cores(folder: Path) -> int:
    """Cores of cpu.max ("200000 100000" is 2), rounded up; 0 when unlimited."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period)) if quota != "max" else 0
    except (OSError, ValueError, ZeroDivisionError):
        return 0


def _cgroup_memory(folder: Path) -> tuple[int, int]:
    """(limit, used) bytes, file cache that can be dropped left out; limit 0 when unlimited."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return 0, 0
        used = int((folder / "memory.current").read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                used -= int(value)
        return int(limit), max(0, used)
    except (OSError, ValueError):
        return 0, 0
