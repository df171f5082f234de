"""Prints what Hearth finds and does on the system that it runs on, as JSON (test_each.py).

By Hearth's own functions; what they did is read back by numbers and files that no facility names.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import facilities

from hearth.common import system, system_files

# Linux's numbers.
SO_RCVLOWAT, TCP_KEEPIDLE, TCP_USER_TIMEOUT = 18, 4, 18
SIGALRM = 14
SECONDS = 40
LIMIT = 1 << 40


def machine() -> dict[str, Any]:
    list(b"x" * (16 << 20))  # the peak is above what is used later
    # The machine's own, whatever its container allows.
    total, available = system._memory("MemTotal", 0), system._memory("MemAvailable", 1)
    return {
        "own_cores": len(system.own_cores()),
        "cores": system.cores() > 0,
        "load_is_counted": system.load() > 0,
        "total_is_guessed": total == system._UNKNOWN_MEMORY,
        "available_is_guessed": available == total * 3 // 4,
        "resident_is_the_peak": system.resident_bytes() == system.peak_rss_bytes(),
        "peak": system.peak_rss_bytes() > 0,
        "status": system.status_bytes("self", "VmRSS") is not None,
        "within_limits": 0 < system.memory_available() <= system.memory_total() <= total,
        "room": system.memory_for_model(1) >= 0,
    }


def processes() -> dict[str, Any]:
    system.keep_message_memory()
    system.trim_memory()
    system.leave_no_core()
    system.limit_data(LIMIT)
    system.end_after_computing(1000.0)
    system.end_after_computing(0.0)
    return {
        "data_is_limited": _data_limit() == str(LIMIT),
        "timers": system.has_timers(),
        "stops": [each.name for each in system.stop_signals()],
        "ended_by_an_alarm": system.ended_by(-SIGALRM, "SIGALRM"),
        "parent_left": system.parent_left(os.getppid()),
    }


def _data_limit() -> str:
    """Of this process; from either place."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/limits").read_text().splitlines()
        return next(line for line in lines if line.startswith("Max data size")).split()[3]
    import resource

    return str(resource.getrlimit(resource.RLIMIT_DATA)[0])


def sockets() -> dict[str, Any]:
    with socket.socket() as listener:
        system.reuse_address(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as connection:
            system.keep_alive(connection, SECONDS)
            system.wake_at(connection, 7)
            tcp, of_socket = socket.IPPROTO_TCP, socket.SOL_SOCKET
            found = {
                "first_probe": connection.getsockopt(tcp, TCP_KEEPIDLE) == SECONDS // 4,
                "patience": connection.getsockopt(tcp, TCP_USER_TIMEOUT) == SECONDS * 1000,
                "alive": connection.getsockopt(of_socket, socket.SO_KEEPALIVE) != 0,
                "wakes_at": connection.getsockopt(of_socket, SO_RCVLOWAT),
                "tcp_info": len(system.tcp_info(connection, 8)),
            }
            system.allow_slow_reader(connection)
            return found


def files(folder: Path) -> dict[str, Any]:
    path, link = folder / "file", folder / "link"
    path.write_bytes(b"0123456789")
    path.chmod(0o644)
    link.symlink_to(path)
    foreign = list(path.stat())
    foreign[4] += 1  # the owner
    view = memoryview(bytearray(3))
    held = system_files.Folder(folder)
    with path.open("r+b") as first, path.open("r+b") as second:
        file = first.fileno()
        system_files.write_at(file, b"AB", 4)
        count = system_files.read_into(file, view, 3)
        system_files.lock(file)
        try:
            system_files.lock(second.fileno())
            exclusive = False
        except OSError:
            exclusive = True
        system_files.make_private(file)
        dropped = system_files.drop_from_memory(file)
        try:
            os.close(held.open("link", os.O_RDONLY))
            follows = True
        except OSError:
            follows = False
        found = {
            "read": system_files.read_at(file, 4, 3).decode(),
            "read_into": bytes(view[:count]).decode(),
            "lock_is_exclusive": exclusive,
            "mode": oct(path.stat().st_mode & 0o777),
            "dropped": dropped,
            "follows_links": follows,
            "folder_is_held": held._file is not None,
            "owners": system_files.user() is not None,
            "finds_foreign": system_files.foreign(os.stat_result(foreign)) != "",
            "listed": sorted(name for name, _ in held.files()),
        }
    held.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = machine() | sockets() | files(Path(folder))
    found |= processes()
    json.dump(found | {"refused": sorted(facilities.refused)}, sys.stdout)


main()
