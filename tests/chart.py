"""Shared by the chart's tests: the chart installed with some values, and its objects."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import ApiServer, Object
from helm import Helm

from hearth.cli.command import Options
from hearth.cli.commands import load

TOP = Path(__file__).resolve().parents[1]
CHART = TOP / "deploy" / "k8s" / "hearth"
FOUR_PIS = TOP / "deploy" / "k8s" / "values-4pi.yaml"
ONE_GPU = TOP / "deploy" / "k8s" / "values-gpu.yaml"
NAMESPACE = "home"
RELEASE = "hearth"

# What a user may ask for, by name: each is installed and held to everything that must hold for all.
OPTIONS: dict[str, Object] = {
    "defaults": {},
    "four pis": yaml.safe_load(FOUR_PIS.read_text()),
    "one gpu": yaml.safe_load(ONE_GPU.read_text()),
    "nvidia": {
        "image": {
            "digest": "sha256:" + "0123456789abcdef" * 4,
            "gpu": {"digest": "sha256:" + "fedcba9876543210" * 4},
        },
        "worker": {
            "gpu": {
                "device": "vulkan:1",
                "resource": "nvidia.com/gpu",
                "count": 2,
                "runtimeClassName": "nvidia",
            },
            "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        },
    },
    "bare": {
        "tls": {"enabled": False},
        "metrics": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "worker": {"cache": {"enabled": False}},
        "cluster": {"kvCache": "disk"},
        "root": {"pages": {"enabled": False}},
        "spread": "none",
        "test": {"enabled": False},
    },
    "alone": {"worker": {"replicas": 0}, "model": {"name": "random:tinyllama-1.1b"}},
    "everything": {
        "fullnameOverride": "llm",
        "serviceAccountName": "hearth",
        "image": {
            "repository": "registry.lan:5000/hearth",
            "digest": "sha256:" + "0123456789abcdef" * 4,
            "pullPolicy": "Always",
            "pullSecrets": [{"name": "registry"}],
        },
        "model": {
            "weights": "q80",
            "pull": {"name": "owner/gated", "weights": "f16", "tokenSecret": "hub"},
            "volume": {"enabled": True, "storageClass": "local-path", "size": "50Gi"},
        },
        "cluster": {
            "minWorkers": 3,
            "joinSeconds": 300,
            "waitSeconds": 45.5,
            "pauseSeconds": 120,
            "context": 1000000,
            "sequences": 2,
            "parallel": "2x2",
            "stages": "3,2",
            "lane": "grpc",
            "syncType": "q80",
            "kvType": "q80",
            "kvCache": "disk",
            "kvCacheSize": "2GiB",
            "maxStepTokens": 64,
            "stepSeconds": 300,
        },
        "root": {
            "threads": 3,
            "memoryLimit": "700MiB",
            "drainSeconds": 90.5,
            "service": {"type": "NodePort", "nodePort": 30716, "annotations": {"a/b": "c"}},
            "tolerations": [{"key": "pi", "operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}
                        ]
                    }
                }
            },
            "priorityClassName": "high",
            "podLabels": {"team": "home"},
            "podAnnotations": {"note": "root"},
            "pages": {"storageClass": "local-path", "size": "4Gi"},
            "extraArgs": ["--any-model"],
            "extraEnv": [{"name": "HEARTH_SHARES", "value": "3,1"}],
        },
        "worker": {
            "replicas": 4,
            "threads": 2,
            "memoryLimit": "1.5GiB",
            "minReadySeconds": 0,
            "drainSeconds": 45.5,
            "cache": {"storageClass": "local-path", "size": "20Gi", "limit": "18GiB"},
            "resources": {"limits": {"memory": "2Gi", "cpu": 2}},
            "nodeSelector": {"kubernetes.io/arch": "arm64"},
            "podLabels": {"team": "home"},
            "extraArgs": ["--lease-grace", "8"],
        },
        "spread": "DoNotSchedule",
        "tls": {"days": 90, "hosts": ["llm.lan", "192.168.1.20", "fd00::20"]},
        "apiKeys": {"enabled": True, "names": ["anna", "ben"], "operators": ["eva"]},
        "networkPolicy": {
            "clients": [{"podSelector": {"matchLabels": {"app": "chat"}}}],
            "prometheus": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        },
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "monitoring"}},
            "rules": {"enabled": True, "labels": {"release": "monitoring"}},
            "dashboards": {"enabled": True},
        },
    },
    "three clusters": {
        "clusters": 3,
        "worker": {"replicas": 2},
        "tls": {"enabled": False},
        "model": {"name": "/models/llama", "volume": {"enabled": True}},
        "cluster": {"kvCache": "disk"},
        "networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]},
        "autoscaling": {
            "enabled": True,
            "minClusters": 2,
            "requestsPerCluster": 6,
            "prometheus": "http://prometheus.monitoring:9090",
        },
        "inferencePool": {"enabled": True, "endpointPicker": {"name": "hearth-epp"}},
    },
    "given secrets": {
        "tls": {
            "existingSecrets": {
                "root": "my-root",
                "worker": "my-worker",
                "client": "my-client",
                "monitor": "my-monitor",
                "token": "my-token",
            }
        },
        "apiKeys": {"enabled": True, "existingSecret": "my-keys"},
        "model": {"name": "/models/llama", "volume": {"enabled": True, "existingClaim": "nfs"}},
        "metrics": {"serviceMonitor": {"enabled": True}},
    },
}


@dataclass
class Installed:
    """A release, and what the cluster has of it; `test` is the pod of `helm test`, if any."""

    objects: list[Object]
    notes: str
    test: Object | None

    @classmethod
    def of(cls, release: Object, server: ApiServer) -> Installed:
        hooks = [yaml.safe_load(hook["manifest"]) for hook in release.get("hooks") or []]
        return cls(server.objects(NAMESPACE), release["info"]["notes"], next(iter(hooks), None))

    def all(self) -> list[Object]:
        return self.objects + ([self.test] if self.test else [])

    def kind(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, ending: str) -> Object:
        """The only object of a kind whose name ends so."""
        (found,) = [found for found in self.kind(kind) if name_of(found).endswith(ending)]
        return found

    def pods(self) -> dict[str, Object]:
        """Pod templates by component: root, worker, test; as pods, with metadata and spec."""
        found = {
            str(owner["metadata"]["labels"]["app.kubernetes.io/component"]): owner["spec"][
                "template"
            ]
            for owner in self.kind("Deployment") + self.kind("StatefulSet")
        }
        return found | ({"test": self.test} if self.test else {})


class Cluster:
    """An empty API server and the Helm that talks to it."""

    def __init__(self, server: ApiServer, helm: Helm, folder: Path) -> None:
        self.server = server
        self._helm = helm
        self._kubeconfig = folder / "kubeconfig"
        self._kubeconfig.write_text(server.kubeconfig())

    def install(self, values: Object, chart: Path = CHART) -> Installed:
        """Raises HelmError."""
        done = self._helm.install(self._kubeconfig, chart, values, RELEASE, NAMESPACE)
        return Installed.of(done, self.server)

    def upgrade(self, values: Object) -> Installed:
        """Raises HelmError."""
        done = self._helm.upgrade(self._kubeconfig, CHART, values, RELEASE, NAMESPACE)
        return Installed.of(done, self.server)


def name_of(item: Object) -> str:
    return str(item["metadata"]["name"])


def containers(pod: Object) -> list[Object]:
    """All of a pod's, those that run first too."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def main_container(pod: Object) -> Object:
    (found,) = pod["spec"]["containers"]
    return dict(found)


def ports(pod: Object) -> dict[str, int]:
    """The ports that a pod's container says it has, by name."""
    return {port["name"]: port["containerPort"] for port in main_container(pod).get("ports", [])}


def environ_of(container: Object) -> dict[str, str]:
    """The container's variables, with stand-ins for values that only a cluster has."""
    return {item["name"]: item.get("value", "from-the-cluster") for item in container["env"]}


def parse(arguments: list[str], environ: Mapping[str, str]) -> Options:
    """The options as `hearth ARGUMENTS` reads them. UsageError, or HearthError, when it refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", dict(environ))
        return load(arguments[0]).read(arguments[1:])


def options_of(pod: Object) -> Options:
    """Arguments of the pod's container to `hearth`."""
    container = main_container(pod)
    assert container["command"] == ["hearth"]
    return parse(container["args"], environ_of(container))


def secret(installed: Installed, name: str) -> dict[str, bytes]:
    """A secret's files; none where the chart made no such secret."""
    found = [item for item in installed.kind("Secret") if name_of(item) == name]
    return {
        key: base64.b64decode(value, validate=True)
        for item in found
        for key, value in item["data"].items()
    }


def mounted(pod: Object, at: str) -> Object:
    """The volume that the pod's container has at a path."""
    (mount,) = [m for m in main_container(pod)["volumeMounts"] if m["mountPath"] == at]
    (volume,) = [v for v in pod["spec"].get("volumes", []) if v["name"] == mount["name"]]
    return dict(volume)


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All mappings in a document, with where they are."""
    if isinstance(value, dict):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from walk(item, (*path, str(key)))
