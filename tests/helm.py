"""Helm 4 as the package helm-sdkpy carries it, in a process of its own.

A process, because the library is a Go runtime with threads and signal handlers. `Helm` is the
tests' end: a line of JSON for each command, a line of JSON for each answer. It has no dry run, so
charts are installed into a server that runs nothing (api_server.py). What helm-sdkpy cannot do:
`helm template`; lint with values; show a release's notes other than in the answer to an install.

Releases are kept in Helm's memory (HELM_DRIVER): its own records would be sent as protobuf.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from api_server import Object


class HelmError(Exception):
    """Helm refused; the message is Helm's."""


class Helm:
    """The process, until `close`. `release` and `namespace` name a release of one API server."""

    def __init__(self, log: Path) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"HELM_DRIVER": "memory"},
                text=True,
            )

    def lint(self, chart: Path) -> list[str]:
        """Findings of `helm lint` with default values, without informational notes."""
        answer = self._ask(action="lint", chart=str(chart))
        return [str(message) for message in answer["Messages"] or [] if message["Severity"] > 1]

    def package(self, chart: Path, folder: Path) -> Path:
        """The archive made in `folder`."""
        return Path(str(self._ask(action="package", chart=str(chart), folder=str(folder))))

    def install(
        self, kubeconfig: Path, chart: Path, values: Object, release: str, namespace: str
    ) -> Object:
        """The release as Helm describes it: info.notes, manifest, hooks. Raises HelmError."""
        return self._release("install", kubeconfig, chart, values, release, namespace)

    def upgrade(
        self, kubeconfig: Path, chart: Path, values: Object, release: str, namespace: str
    ) -> Object:
        """The same, of a release that this process installed; `values` replace the former ones."""
        return self._release("upgrade", kubeconfig, chart, values, release, namespace)

    def _release(
        self,
        action: str,
        kubeconfig: Path,
        chart: Path,
        values: Object,
        release: str,
        namespace: str,
    ) -> Object:
        answer: Object = self._ask(
            action=action,
            kubeconfig=str(kubeconfig),
            chart=str(chart),
            values=values,
            release=release,
            namespace=namespace,
        )
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmError(answer["error"])
        return answer["result"]


def _serve() -> None:
    """The process's own end."""
    import helm_sdkpy

    configurations: dict[tuple[str, str], Any] = {}

    def configuration(command: Object) -> Any:
        # One for each release's place: Helm's memory of releases belongs to it.
        key = (command.get("kubeconfig", ""), command.get("namespace", "default"))
        if key not in configurations:
            configurations[key] = helm_sdkpy.Configuration(
                namespace=key[1], kubeconfig=key[0] or os.devnull
            )
        return configurations[key]

    async def run(command: Object) -> Any:
        given = configuration(command)
        if command["action"] == "lint":
            return await helm_sdkpy.Lint(given).run(command["chart"])
        if command["action"] == "package":
            return await helm_sdkpy.Package(given).run(command["chart"], command["folder"])
        options: Object = {"values": command["values"], "wait": False, "server_side_apply": True}
        if command["action"] == "install":
            action = helm_sdkpy.Install(given)
        else:
            action = helm_sdkpy.Upgrade(given)
            options["reset_values"] = True
        return await action.run(command["release"], command["chart"], **options)

    for line in sys.stdin:
        try:
            answer = {"result": asyncio.run(run(json.loads(line)))}
        except helm_sdkpy.HelmError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
