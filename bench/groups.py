"""Groups of processes (cgroups) with limits, for benchmarks. Need root; version 1 and 2 alike."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# The shorter, the less a process that has used up its part of a core waits for the next.
_PERIOD_US = 5000
_NUMBERS = count()


@contextmanager
def group(
    *,
    cores: float | None = None,
    memory_bytes: int | None = None,
    disk: tuple[Path, float] | None = None,
) -> Iterator[list[Path]]:
    """The files to which a process writes its id to be in a new group.

    cores: parts of the time of a core. disk: bytes per second that are read from the disk of a
    folder.
    """
    unified = (_ROOT / "cgroup.controllers").exists()
    settings = _unified(cores, memory_bytes, disk) if unified else _old(cores, memory_bytes, disk)
    name = f"hearth-{os.getpid()}-{next(_NUMBERS)}"
    made: dict[Path, None] = {}
    try:
        for controller, file, value in settings:
            folder = (_ROOT if unified else _ROOT / controller) / name
            folder.mkdir(exist_ok=True)
            made[folder] = None
            (folder / file).write_text(value)
        yield [folder / "cgroup.procs" for folder in made]
    finally:
        for folder in made:
            _remove(folder)


def within(procs: list[Path], command: list[str]) -> list[str]:
    """The command, run in the group of these files."""
    enter = "".join(f"echo $$ > {each} && " for each in procs)
    return ["sh", "-c", f'{enter}exec "$@"', "sh", *command]


# (controller, file, value) of each limit.
_Settings = list[tuple[str, str, str]]


def _unified(
    cores: float | None, memory_bytes: int | None, disk: tuple[Path, float] | None
) -> _Settings:
    settings = []
    if cores is not None:
        settings.append(("", "cpu.max", f"{int(cores * _PERIOD_US)} {_PERIOD_US}"))
    if memory_bytes is not None:
        settings.append(("", "memory.max", str(memory_bytes)))
    if disk is not None:
        settings.append(("", "io.max", f"{_device(disk[0])} rbps={int(disk[1])}"))
    return settings


def _old(
    cores: float | None, memory_bytes: int | None, disk: tuple[Path, float] | None
) -> _Settings:
    settings = []
    if cores is not None:
        settings.append(("cpu", "cpu.cfs_period_us", str(_PERIOD_US)))
        settings.append(("cpu", "cpu.cfs_quota_us", str(int(cores * _PERIOD_US))))
    if memory_bytes is not None:
        settings.append(("memory", "memory.limit_in_bytes", str(memory_bytes)))
    if disk is not None:
        value = f"{_device(disk[0])} {int(disk[1])}"
        settings.append(("blkio", "blkio.throttle.read_bps_device", value))
    return settings


def _device(folder: Path) -> str:
    number = folder.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def _remove(folder: Path) -> None:
    # It is empty a moment after its last process has ended.
    for _ in range(100):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.05)
