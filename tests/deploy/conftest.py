"""Fixtures of the chart's tests: Helm, started once; the chart installed with all OPTIONS."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chart import Cluster, Installed
    from helm import Helm


# What Go calls the CPUs.
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helm]:
    """Helm; the test is skipped where its package is not installed, or has nothing for this CPU."""
    package = pytest.importorskip(
        "helm_sdkpy", reason="helm-sdkpy is missing: make chart-test installs it"
    )
    carried = [path.name for path in Path(str(package.__file__)).parent.glob("_lib/*")]
    if f"{sys.platform}-{_GO_NAMES.get(platform.machine())}" not in carried:
        pytest.skip(f"helm-sdkpy carries Helm for {', '.join(carried)} only")
    from helm import Helm

    running = Helm(tmp_path_factory.mktemp("helm") / "helm.log")
    yield running
    running.close()


@pytest.fixture(scope="session")
def new_cluster(
    helm: Helm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Cluster]]:
    """Makes clusters with nothing in them."""
    from api_server import ApiServer
    from chart import Cluster

    servers: list[ApiServer] = []

    def make() -> Cluster:
        servers.append(ApiServer())
        return Cluster(servers[-1], helm, tmp_path_factory.mktemp("cluster"))

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def installed(new_cluster: Callable[[], Cluster]) -> Callable[[str], Installed]:
    """The chart installed with the OPTIONS of that name; once for all tests, who only look."""
    from chart import OPTIONS

    done: dict[str, Installed] = {}

    def install(name: str) -> Installed:
        if name not in done:
            done[name] = new_cluster().install(OPTIONS[name])
        return done[name]

    return install


@pytest.fixture
def cluster(new_cluster: Callable[[], Cluster]) -> Cluster:
    """A cluster with nothing in it."""
    return new_cluster()
