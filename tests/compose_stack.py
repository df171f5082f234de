"""compose.yaml, run for real under a project name of its own, and asked from outside."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from harness import free_port
from monitoring import COMPOSE

T = TypeVar("T")
_NOTHING: Mapping[str, str] = MappingProxyType({})

SERVICES = ("certs", "root", "worker", "prometheus")
WORKERS = 3
# For how long a lost worker is waited for.
WAIT_SECONDS = 10
# Grafana's image comes from a registry; Prometheus is made from Debian's package.
PROMETHEUS_IMAGE = "hearth-test-prometheus"
PROMETHEUS_DOCKERFILE = """
FROM debian:bookworm-slim
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
 apt-get install -y -qq --no-install-recommends prometheus >/dev/null \
 && rm -rf /var/lib/apt/lists/* && install -d -o nobody -g nogroup /prometheus
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
"""


def run(
    *command: str, seconds: float = 120, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A command with its output; a failure says what it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False, **options
    )
    assert not check or done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done


def docker(*arguments: str, seconds: float = 120, check: bool = True) -> str:
    """Output of `docker`."""
    return run("docker", *arguments, seconds=seconds, check=check).stdout.strip()


def compose_command() -> list[str]:
    """Compose's present or its former command, whichever there is."""
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    assert shutil.which("docker-compose"), "neither `docker compose` nor `docker-compose` is here"
    return ["docker-compose"]


def eventually(what: str, look: Callable[[], T | None], seconds: float = 90) -> T:
    """The first answer of `look` that is true; what it said last, if there is none in time."""
    until = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}; the last: {found!r}"
        time.sleep(0.5)


class Telling:
    """A command whose text is read as it comes, with the time that passed between its pieces."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._read = b""
        self.longest_pause = 0.0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name="telling")
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        last = None
        while piece := os.read(self._process.stdout.fileno(), 65536):
            now = time.monotonic()
            with self._changed:
                self.longest_pause = max(self.longest_pause, now - (last or now))
                self._read += piece
                self._changed.notify_all()
            last = now
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def until(self, count: int, seconds: float = 120) -> None:
        """Waits for so many bytes; they must come before the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._read) >= count, seconds)
            assert len(self._read) >= count and not self._ended, self._read

    def finish(self, seconds: float = 240) -> str:
        """The whole text, without the line's end, of a command that ended well."""
        try:
            self._process.wait(seconds)
        finally:
            self._process.kill()
            self._thread.join()
            problem = self._process.stderr.read() if self._process.stderr else b""
        assert self._process.returncode == 0, problem.decode()
        return self._read.decode().rstrip("\n")


class Stack:
    """The services of one file, as a project, from `up` to `down`."""

    def __init__(
        self, image: str, file: str = "compose.yaml", more: Mapping[str, str] = _NOTHING
    ) -> None:
        """more: of the environment."""
        self.image = image
        self.project = f"hearthtest{os.getpid()}{file.partition('.')[0]}"
        self.prometheus_port = free_port()
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("HEARTH_")} | {
            "HEARTH_IMAGE": image,
            "HEARTH_PORT": str(free_port()),
            # So slow that a generation takes seconds, and something can be killed in its middle.
            "HEARTH_ROOT_CPUS": "0.6",
            "HEARTH_WORKER_CPUS": "0.25",
            "HEARTH_ROOT_MEMORY": "768m",
            "HEARTH_WORKER_MEMORY": "640m",
            "HEARTH_MIN_WORKERS": str(WORKERS),
            "HEARTH_WAIT_SECONDS": str(WAIT_SECONDS),
            "PROMETHEUS_IMAGE": PROMETHEUS_IMAGE,
            "PROMETHEUS_PORT": str(self.prometheus_port),
            **more,
        }
        self._compose = [*compose_command(), "-p", self.project, "-f", str(COMPOSE / file)]

    def compose(
        self, *arguments: str, seconds: float = 180, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose ARGUMENTS` of this project."""
        return run(*self._compose, *arguments, seconds=seconds, check=check, env=self.environ)

    def compose_bytes(self, *arguments: str, given: bytes = b"") -> bytes:
        """The same, from bytes to bytes."""
        done = subprocess.run(
            [*self._compose, *arguments],
            input=given,
            capture_output=True,
            env=self.environ,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def up(self) -> None:
        """Starts everything, and waits until the root says that it serves with all workers."""
        options = ("--profile", "observability", "up", "--detach", "--no-build")
        self.compose(*options, "--scale", f"worker={WORKERS}", *SERVICES)
        self.wait_until_serving()

    def down(self, volumes: bool = True) -> None:
        """Removes containers and networks; volumes too, unless they are wanted again."""
        options = ("--volumes",) if volumes else ()
        profiles = ("--profile", "observability", "--profile", "client")
        self.compose(*profiles, "down", "--remove-orphans", "--timeout", "10", *options)

    def wait_until_serving(self, workers: int = WORKERS) -> dict[str, Any]:
        """Output of `hearth cluster --json` once the root and all workers are ready."""

        def serving() -> dict[str, Any] | None:
            status = self.cluster()
            states = [node["state"] for node in status.get("nodes", ())]
            if status.get("state") != "CLUSTER_STATE_SERVING":
                return None
            return status if states == ["NODE_STATE_SERVING"] * (1 + workers) else None

        try:
            return eventually("a cluster that serves", serving, 120)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def cluster(self) -> dict[str, Any]:
        """Output of `hearth cluster --json`; empty while the root does not answer."""
        done = self.client("cluster", "--json", check=False)
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}

    def client(
        self, *arguments: str, seconds: float = 180, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`hearth ARGUMENTS` in the client's container."""
        return self.compose("run", "--rm", "-T", "hearth", *arguments, seconds=seconds, check=check)

    def begin_client(self, *arguments: str) -> Telling:
        """The same, not waited for."""
        command = [*self._compose, "run", "--rm", "-T", "hearth", *arguments]
        return Telling(command, self.environ)

    def containers(self, service: str, *options: str) -> list[str]:
        """Ids of a service's running containers."""
        labels = (
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={service}",
        )
        filters = [word for label in labels for word in ("--filter", label)]
        return docker("ps", "--quiet", "--no-trunc", *options, *filters).split()

    def logs(self) -> str:
        """The last lines of every container."""
        return self.compose("logs", "--no-color", "--tail", "30", check=False).stdout

    # -- Prometheus --------------------------------------------------------------------------------

    def prometheus(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of Prometheus's HTTP API."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an instant query; NaN (of 0/0) is nothing."""
        data = self.prometheus("query", query=expression)
        samples = [data] if data["resultType"] == "scalar" else data["result"]
        values = [float(s["value"][1] if isinstance(s, dict) else s[1]) for s in samples]
        return [value for value in values if not math.isnan(value)]

    def total(self, expression: str) -> float:
        """The sum of an instant query's values."""
        return sum(self.query(expression))


def inspect(container: str) -> dict[str, Any]:
    """`docker inspect` of one container or image."""
    (found,) = json.loads(docker("inspect", container))
    assert isinstance(found, dict)
    return found
