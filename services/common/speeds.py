"""Measured speeds of this machine: measured once in a process of its own, and kept on disk."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hearth.common import devices, system, system_files
from hearth.v1 import common_pb2

log = logging.getLogger(__name__)

# A measurement takes about a second; a machine where it takes longer is too busy for one.
_SECONDS = 30.0
# Memory that a measurement takes, with a margin.
_NEEDED_BYTES = 512 << 20
_MOST_FILE_BYTES = 4096
# Rates that no machine has: slower than a first microprocessor, faster than any datacentre's.
_RATES = (1e5, 1e17)
_MOST_LAYER_SECONDS = 100.0
# How long speeds count that were measured on a busy machine.
_BUSY_SECONDS = 600.0
# Between two looks whether another process has ended its measurement.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds of a machine, and the fixed work of a layer in a step."""

    # Bytes of weights in a step of one row.
    read_bandwidth: float
    # Multiply-adds: with many rows, and with 8.
    prefill_rate: float
    few_rows_rate: float
    layer_seconds: float
    # Bytes read from the directory's disk; 0 where it could not be measured.
    disk_bandwidth: float
    # Of a GPU: handing it work and waiting for its end; 0 for a CPU.
    submit_seconds: float = 0.0

    @property
    def sane(self) -> bool:
        """True if every number can be some machine's."""
        low, high = _RATES
        rates = (self.read_bandwidth, self.prefill_rate, self.few_rows_rate)
        return (
            all(low <= rate <= high for rate in rates)
            and 0 <= self.layer_seconds <= _MOST_LAYER_SECONDS
            and 0 <= self.disk_bandwidth <= high
            and 0 <= self.submit_seconds <= _MOST_LAYER_SECONDS
        )


def speeds_here(
    threads: int,
    directory: Path | None,
    pin: Sequence[int] = (),
    *,
    device: str = devices.CPU,
    again: bool = False,
    may_measure: bool = True,
) -> Speeds | None:
    """The speeds with so many threads: kept in `directory`, else measured now and kept there.

    device: "cpu", "vulkan" or "vulkan:N". again: measure although there are kept ones. may_measure:
    else only kept ones count. What is measured on a busy machine is kept for ten minutes only. None
    where nothing can be measured: little memory, or a machine that is too busy. Raises HearthError
    BAD_SETTING for a device that is not there.
    """
    if directory is None:
        return _measured(threads, None, pin, device) if may_measure else None
    folder = directory / "speeds"
    path = folder / f"{_key(threads, pin, device)}.json"
    passing = path.with_suffix(".busy")
    kept = None if again else _read(path) or _read(passing, _BUSY_SECONDS)
    if kept is not None or not may_measure:
        return kept
    with _locked(folder) as alone:
        if not alone:
            log.info("another process measures this machine, and does not end")
            return None
        # Several nodes of one machine measure one after another, and the first is enough.
        kept = None if again else _read(path) or _read(passing, _BUSY_SECONDS)
        if kept is None:
            busy = _busy()
            kept = _measured(threads, directory, pin, device)
            if kept is not None:
                _write(passing if busy else path, kept)
    return kept


def speeds_message(speeds: Speeds) -> common_pb2.NodeSpeeds:
    """The speeds as a message."""
    return common_pb2.NodeSpeeds(
        read_bytes_per_second=speeds.read_bandwidth,
        prefill_products_per_second=speeds.prefill_rate,
        few_rows_products_per_second=speeds.few_rows_rate,
        layer_seconds=speeds.layer_seconds,
        disk_bytes_per_second=speeds.disk_bandwidth,
        submit_seconds=speeds.submit_seconds,
    )


def speeds_of(message: common_pb2.NodeSpeeds) -> Speeds | None:
    """The speeds of a message; None where a number cannot be."""
    speeds = Speeds(
        message.read_bytes_per_second,
        message.prefill_products_per_second,
        message.few_rows_products_per_second,
        message.layer_seconds,
        message.disk_bytes_per_second,
        message.submit_seconds,
    )
    return speeds if speeds.sane else None


def _busy() -> bool:
    """True if other programs compute: what is measured then is not worth keeping."""
    return system.load() > system.cores() / 2


def _key(threads: int, pin: Sequence[int], device: str = devices.CPU) -> str:
    parts = [system.version(), system.architecture(), f"{threads}-of-{system.cores()}"]
    if device != devices.CPU:
        parts.insert(0, devices.kernels(device))
    if pin:
        parts.append("on-" + "-".join(map(str, pin)))
    chosen = os.environ.get("HEARTH_INSTRUCTION_SET")
    name = "_".join([*parts, *([chosen] if chosen else [])])
    return "".join(each if each.isalnum() or each in "._-" else "-" for each in name)[:120]


def _measured(
    threads: int, directory: Path | None, pin: Sequence[int], device: str = devices.CPU
) -> Speeds | None:
    """Measure in another process: what it takes of memory is not this one's."""
    if system.memory_available() < _NEEDED_BYTES:
        return None
    command = [sys.executable, "-m", "hearth.common.probe", str(threads), str(directory or "")]
    command += [",".join(map(str, pin)), device]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
        return _parsed(done.stdout)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("the speed of this machine could not be measured: %s", error)
        return None


def _parsed(text: bytes) -> Speeds | None:
    """The speeds of a JSON text; None where it has others."""
    try:
        values = json.loads(text)
        speeds = Speeds(**{field.name: float(values[field.name]) for field in fields(Speeds)})
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return speeds if speeds.sane else None


def _read(path: Path, seconds: float = math.inf) -> Speeds | None:
    """Kept speeds; None where there are none, or they are older than so many seconds."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | system_files.AS_IT_IS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            if not -seconds < time.time() - os.fstat(file.fileno()).st_mtime < seconds:
                return None
            return _parsed(file.read(_MOST_FILE_BYTES))
    except OSError:
        return None


def _write(path: Path, speeds: Speeds) -> None:
    # A full or read-only disk only means another measurement at the next start.
    with suppress(OSError):
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(asdict(speeds), file)
        Path(file.name).replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """One process of this machine at a time, where the system and the folder allow it.

    False if another one has not ended in the time that a measurement may take.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | system_files.AS_IT_IS
        file = os.fdopen(os.open(folder / "lock", flags, 0o600), "rb")
    except OSError:
        yield True
        return
    with file:
        until = time.monotonic() + _SECONDS
        while not _taken(file.fileno()):
            if time.monotonic() >= until:
                yield False
                return
            time.sleep(_LOOK_SECONDS)
        yield True


def _taken(file: int) -> bool:
    try:
        system_files.lock(file)
    except OSError as error:
        # Where files have no locks, this process counts as the only one.
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
