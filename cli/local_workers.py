"""Workers on this machine's loopback, as processes of their own, ended with the command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType

from hearth.common import system
from hearth.common.errors import HearthError, Reason
from hearth.common.settings import CONFIG_VARIABLE

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_INHERITED = {"HEARTH_INSTRUCTION_SET", "HEARTH_LOG_LEVEL"}
_READY = "hearth worker listening on "


class LocalWorkers:
    """Starts `count` workers on free ports; `addresses` in rank order."""

    def __init__(
        self,
        count: int,
        threads: int | None,
        cache_dir: str,
        pin: list[list[int]],
        devices: Sequence[str] = (),
        *,
        keeps_pages: bool = False,
        page_limit: int | None = None,
    ) -> None:
        """threads: of each; None divides the cores. pin, devices: of each, or empty.

        keeps_pages, page_limit: --kv-cache disk and --kv-cache-size.
        """
        self.threads = threads or max(1, system.cores() // (count + 1))
        self.addresses: tuple[str, ...] = ()
        self.processes: list[subprocess.Popen[str]] = []
        self._count = count
        self._cache_dir = cache_dir
        self._pin = pin
        self._devices = devices
        self._more = ["--kv-cache", "disk"] if keeps_pages else []
        if page_limit is not None:
            self._more += ["--kv-cache-size", str(page_limit)]

    def __enter__(self) -> LocalWorkers:
        try:
            for rank in range(1, self._count + 1):
                self.processes.append(self._start(rank))
            self.addresses = tuple(self._address(process) for process in self.processes)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self, rank: int) -> subprocess.Popen[str]:
        command = [
            *(sys.executable, "-m", "hearth.cli.main", "worker"),
            *("--listen", "127.0.0.1:0", "--threads", str(self.threads)),
            *("--cache-dir", self._cache_dir, "--name", f"node{rank}"),
            *("--exit-with-parent", str(os.getpid())),
        ]
        command += self._more
        if self._pin:
            command += ["--pin", ",".join(map(str, self._pin[rank - 1]))]
        if self._devices:
            command += ["--device", self._devices[rank - 1]]
        # Settings of the environment and of files are meant for other workers, or for the root; two
        # cannot share a metrics port.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HEARTH_") or name in _INHERITED
        } | {CONFIG_VARIABLE: os.devnull}
        # What such a worker offers, and to whom, needs no line.
        environment.setdefault("HEARTH_LOG_LEVEL", "WARNING")
        # An interrupt at the terminal goes to the whole group: workers are to outlive the root's
        # last step, and are ended by it.
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, **system.own_session()
        )

    @staticmethod
    def _address(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        # (Not every system can wait for a pipe with a time limit.)
        late = threading.Timer(_START_SECONDS, process.kill)
        late.start()
        try:
            for line in process.stdout:
                if line.startswith(_READY):
                    return line.removeprefix(_READY).strip()
        finally:
            late.cancel()
        raise HearthError(
            Reason.WORKER_UNREACHABLE,
            f"a worker of --nodes did not start (exit code {process.poll()}): its message is above",
        )

    def _stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def cores_of(nodes: int, threads: int) -> list[list[int]]:
    """The cores of each node, root first, each its own where there are enough."""
    known = system.own_cores()
    if not known:
        raise HearthError(Reason.BAD_SETTING, "--pin works on Linux only")
    return [
        [known[(node * threads + i) % len(known)] for i in range(threads)] for node in range(nodes)
    ]
