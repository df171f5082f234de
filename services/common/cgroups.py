"""Limits of Linux control groups, versions 1 and 2, on this process: memory and CPU time.

A container's limits are those of its group. The tightest limit of all enclosing groups applies, so
every group from the process's own outwards is read. Anything that cannot be read or parsed counts
as no limit. Policy is in system.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# Version 1 writes "no limit" as the largest multiple of the page size.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Bytes that a group may use, and bytes in use without the file cache, which can be dropped."""

    limit: int
    used: int


def quota_cores(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Cores of the tightest CPU quota, rounded up; 0 without a quota."""
    quotas = [_quota_v2(folder) for folder in _folders(groups, membership, "")]
    quotas += [
        _quota_v1(folder)
        for controller in ("cpu", "cpu,cpuacct")
        for folder in _folders(groups, membership, controller)
    ]
    return min((quota for quota in quotas if quota > 0), default=0)


def memory_limits(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> Iterator[MemoryLimit]:
    """The memory limits of the groups around this process."""
    names = ("memory.max", "memory.current", "")
    for folder in _folders(groups, membership, ""):
        yield from _memory(folder, *names)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    for folder in _folders(groups, membership, "memory"):
        yield from _memory(folder, *names)


def _folders(groups: Path, membership: Path, controller: str) -> list[Path]:
    """The process's groups under `controller` ("": version 2), innermost first.

    In a container the path is often the host's but the mount the container's own. Missing folders
    therefore give no limit, and the mount itself always comes last.
    """
    path = "/"
    try:
        for line in membership.read_text().splitlines():
            _, names, own = line.split(":", 2)
            if names == controller or (controller and controller in names.split(",")):
                path = own
    except (OSError, ValueError):
        pass
    top = groups / controller
    inner = top / path.lstrip("/")
    return [folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents]


def _quota_v2(folder: Path) -> int:
    """Cores of cpu.max: "200000 100000" is 2."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period)) if quota != "max" else 0
    except (OSError, ValueError, ZeroDivisionError):
        return 0


def _quota_v1(folder: Path) -> int:
    """Cores of a quota and its period, microseconds both; the quota is -1 for no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return -(-quota // period) if quota > 0 else 0
    except (OSError, ValueError, ZeroDivisionError):
        return 0


def _memory(folder: Path, limit: str, used: str, prefix: str) -> Iterator[MemoryLimit]:
    """Reads files `limit` and `used`; sums in memory.stat have names that begin with `prefix`."""
    try:
        bytes_limit = int((folder / limit).read_text())
        bytes_used = int((folder / used).read_text())
        droppable = {f"{prefix}inactive_file", f"{prefix}active_file"}
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in droppable:
                bytes_used -= int(value)
    except (OSError, ValueError):  # includes "max": no limit
        return
    if 0 < bytes_limit < _UNLIMITED:
        yield MemoryLimit(bytes_limit, max(0, bytes_used))
