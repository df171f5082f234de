"""Resources of this process: cores, memory, its own footprint.

Limits of Linux control groups (containers) take precedence over the machine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import resource
import sys
from pathlib import Path

from hearth.common import cgroups

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Memory of a root or worker besides weights and KV cache. Python, gRPC and the usual steps take
# under 144 MiB (bench/memory.py); a large tokenizer and larger steps need more.
_OVERHEAD_BYTES = 256 << 20


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
    return max(1, min(count, cgroups.quota_cores() or count))


def memory_total() -> int:
    """Bytes of memory: the lower of the machine's and the container's limit."""
    total = _meminfo("MemTotal")
    return min([total, *(group.limit for group in cgroups.memory_limits())])


def memory_available() -> int:
    """Bytes that can be allocated now without swapping, within the container's limit."""
    free = _meminfo("MemAvailable")
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
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 16 << 20)
    mallopt(_M_MMAP_THRESHOLD, 3 << 20)
    mallopt(_M_ARENA_MAX, 2)


def trim_memory() -> None:
    """Returns freed memory from the allocator to the system; called after loading."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _meminfo(field: str) -> int:
    size = _sizes(Path("/proc/meminfo")).get(field)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if size is None else size


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each line `NAME: N kB`; none where the file cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found = [re.fullmatch(r"(\w+):\s*(\d+) kB", line) for line in lines]
    return {match[1]: int(match[2]) * 1024 for match in found if match}
