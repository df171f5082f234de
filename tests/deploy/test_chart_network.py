"""Connections that the chart's NetworkPolicies allow, by Kubernetes' rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("yaml", reason="the chart's tests need make chart-test")

from api_server import Object
from chart import Installed, ports

Look = Callable[[str], Installed]


def _admits(peers: list[Object] | None, labels: dict[str, str], other_namespace: bool) -> bool:
    """Test whether a rule's peers include a pod with these labels."""
    if peers is None:
        return True
    for peer in peers:
        if other_namespace and "namespaceSelector" not in peer:
            continue
        selector = peer.get("podSelector", {})
        fits = selector.get("matchLabels", {}).items() <= labels.items()
        for term in selector.get("matchExpressions", []):
            assert term["operator"] == "In"
            fits = fits and labels.get(term["key"]) in term["values"]
        if fits:
            return True
    return False


class Network:
    """NetworkPolicies, evaluated by Kubernetes' rules."""

    def __init__(self, policies: list[Object]) -> None:
        self._policies = [policy["spec"] for policy in policies]

    def _open(
        self, way: str, own: dict[str, str], other: dict[str, str], port: int, abroad: bool
    ) -> bool:
        side = "from" if way == "ingress" else "to"
        applying = [
            spec
            for spec in self._policies
            if spec["podSelector"]["matchLabels"].items() <= own.items()
            and way.capitalize() in spec["policyTypes"]
        ]
        return not applying or any(
            port in [entry["port"] for entry in rule["ports"]]
            and _admits(rule.get(side), other, abroad)
            for spec in applying
            for rule in spec[way]
        )

    def reaches(
        self, one: dict[str, str], other: dict[str, str], port: int, abroad: bool = False
    ) -> bool:
        """Test whether a pod with labels `one` (abroad: of another namespace) may dial `other`."""
        out = abroad or self._open("egress", one, other, port, False)
        return out and self._open("ingress", other, one, port, abroad)


def _network(found: Installed) -> tuple[Network, dict[str, dict[str, str]]]:
    labels = {role: pod["metadata"]["labels"] for role, pod in found.pods().items()}
    labels["stranger"] = {"app": "stranger"}
    labels["chat"] = {"app": "chat"}
    labels["prometheus"] = {"app.kubernetes.io/name": "prometheus"}
    return Network(found.kind("NetworkPolicy")), labels


@pytest.mark.parametrize("name", ["defaults", "four pis", "given secrets"])
def test_only_those_reach_a_port_who_need_it(installed: Look, name: str) -> None:
    found = installed(name)
    network, labels = _network(found)
    root, worker = ports(found.pods()["root"]), ports(found.pods()["worker"])
    everybody = {"root", "worker", "test", "stranger", "chat", "prometheus"} & set(labels)
    open_to = {
        ("root", root["grpc"]): everybody - {"worker"},
        ("root", root["metrics"]): {"prometheus"},
        ("root", root["health"]): set(),
        ("worker", worker["grpc"]): {"root"},
        ("worker", worker["mesh"]): {"root", "worker"},
        ("worker", worker["metrics"]): {"prometheus"},
        ("worker", worker["health"]): set(),
        ("worker", 22): set(),
    }
    for (role, port), allowed in open_to.items():
        reaching = {
            one
            for one in everybody
            if network.reaches(labels[one], labels[role], port, abroad=one == "prometheus")
        }
        # What a root does with itself crosses no network.
        mine = {"root"} if role == "root" else set()
        assert reaching - mine == allowed - mine, (role, port)


def test_clients_may_be_few(installed: Look) -> None:
    network, labels = _network(installed("everything"))
    port = ports(installed("everything").pods()["root"])["grpc"]
    reaching = {one for one in labels if network.reaches(labels[one], labels["root"], port)}
    assert reaching == {"chat", "test"}


def test_workers_reach_nothing_outside(installed: Look) -> None:
    network, labels = _network(installed("defaults"))
    outside = {"somewhere": "else"}
    assert not any(network.reaches(labels["worker"], outside, port) for port in (53, 80, 443))
    assert network.reaches(labels["root"], outside, 53)
    assert not network.reaches(labels["root"], outside, 443)
    pulling, labels = _network(installed("four pis"))
    assert pulling.reaches(labels["root"], outside, 443)
