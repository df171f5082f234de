"""Several clusters in one release: their objects apart, one Service, KEDA and an InferencePool.

The schemas say what the kinds of other projects must and may have, of what the chart uses: KEDA's
ScaledObject (v1alpha1) and the Gateway API Inference Extension's InferencePool (v1). An unknown
field is an error here, which the projects' own definitions would drop in silence.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
from jsonschema import Draft202012Validator, ValidationError

yaml = pytest.importorskip("yaml", reason="the chart's tests need make chart-test")

from api_server import Object  # noqa: E402
from chart import (  # noqa: E402
    OPTIONS,
    Cluster,
    Installed,
    mounted,
    name_of,
    options_of,
    ports,
)
from helm import HelmError  # noqa: E402

from hearth.common.metrics import RootMetrics  # noqa: E402

Look = Callable[[str], Installed]
FLEET = "three clusters"
ROOTS = ["hearth-root", "hearth-2-root", "hearth-3-root"]
WORKERS = ["hearth-worker", "hearth-2-worker", "hearth-3-worker"]


def _record(required: list[str], **properties: Object) -> Object:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


_TEXT: Object = {"type": "string", "minLength": 1}
_COUNT: Object = {"type": "integer", "minimum": 0}
_PORT = _record(["number"], number={"type": "integer", "minimum": 1, "maximum": 65535})
_LABELS: Object = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}
_METADATA = _record(["name", "labels"], name=_TEXT, namespace=_TEXT, labels=_LABELS)


def _kind(version: str, kind: str, spec: Object) -> Draft202012Validator:
    return Draft202012Validator(
        _record(
            ["apiVersion", "kind", "metadata", "spec"],
            apiVersion={"const": version},
            kind={"const": kind},
            metadata=_METADATA,
            spec=spec,
        )
    )


SCHEMAS = {
    "InferencePool": _kind(
        "inference.networking.k8s.io/v1",
        "InferencePool",
        _record(
            ["selector", "targetPorts"],
            selector=_record(["matchLabels"], matchLabels=_LABELS),
            targetPorts={"type": "array", "minItems": 1, "maxItems": 8, "items": _PORT},
            appProtocol={"enum": ["http", "kubernetes.io/h2c"]},
            # A Service, which the kind is by default, needs a port.
            endpointPickerRef=_record(
                ["name", "port"],
                group={"type": "string"},
                kind=_TEXT,
                name=_TEXT,
                port=_PORT,
                failureMode={"enum": ["FailOpen", "FailClose"]},
            ),
        ),
    ),
    "ScaledObject": _kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _record(
            ["scaleTargetRef", "triggers"],
            scaleTargetRef=_record(["name"], apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            pollingInterval=_COUNT,
            cooldownPeriod=_COUNT,
            triggers={
                "type": "array",
                "minItems": 1,
                # All of a scaler's settings are texts.
                "items": _record(
                    ["type", "metadata"],
                    type={"const": "prometheus"},
                    metadata=_record(
                        ["serverAddress", "query", "threshold"],
                        serverAddress=_TEXT,
                        query=_TEXT,
                        threshold=_TEXT,
                        activationThreshold=_TEXT,
                    ),
                ),
            },
        ),
    ),
}


def as_sent(item: Object) -> Object:
    """An object without what the server adds."""
    kept = ("name", "namespace", "labels")
    metadata = {key: value for key, value in item["metadata"].items() if key in kept}
    return {**{key: item[key] for key in ("apiVersion", "kind", "spec")}, "metadata": metadata}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_objects_of_other_projects_are_valid(installed: Look, kind: str) -> None:
    found = installed(FLEET).kind(kind)
    assert len(found) == {"InferencePool": 1, "ScaledObject": 2}[kind]
    for item in found:
        SCHEMAS[kind].validate(as_sent(item))
        broken = copy.deepcopy(as_sent(item))
        broken["spec"]["replicas"] = 3
        with pytest.raises(ValidationError):
            SCHEMAS[kind].validate(broken)


def test_each_cluster_has_nodes_and_volumes_of_its_own(installed: Look) -> None:
    found = installed(FLEET)
    owners = {name_of(each): each for each in found.kind("Deployment") + found.kind("StatefulSet")}
    assert sorted(owners) == sorted(ROOTS + WORKERS)
    roots, workers = ([owners[name] for name in names] for names in (ROOTS, WORKERS))
    lists = {
        name_of(each): each for each in found.kind("Service") if name_of(each).endswith("-worker")
    }
    claims = []
    for root, worker in zip(roots, workers, strict=True):
        pod = root["spec"]["template"]
        asked, _, port = options_of(pod).workers_dns.rpartition(":")
        assert worker["spec"]["serviceName"] == asked == name_of(lists[asked])
        assert int(port) == ports(worker["spec"]["template"])["grpc"]
        # Its list has its workers and nobody else's; a Deployment and a StatefulSet their own pods.
        chosen = lists[asked]["spec"]["selector"].items()
        assert [
            name_of(each)
            for each in roots + workers
            if chosen <= each["spec"]["template"]["metadata"]["labels"].items()
        ] == [name_of(worker)]
        for owner in (root, worker):
            own = owner["spec"]["selector"]["matchLabels"].items()
            assert [
                name_of(each)
                for each in roots + workers
                if own <= each["spec"]["template"]["metadata"]["labels"].items()
            ] == [name_of(owner)]
        claims += [
            mounted(pod, path)["persistentVolumeClaim"]["claimName"]
            for path in ("/models", options_of(pod).cache_dir)
        ]
    assert sorted(claims) == sorted(map(name_of, found.kind("PersistentVolumeClaim")))
    assert len(set(claims)) == 6


def test_the_first_is_as_if_it_were_alone(installed: Look, cluster: Cluster) -> None:
    values = {
        key: value
        for key, value in OPTIONS[FLEET].items()
        if key not in ("clusters", "autoscaling", "inferencePool")
    }
    alone = cluster.install(values)
    several = installed(FLEET)
    for kind, ending in (("Deployment", "hearth-root"), ("StatefulSet", "hearth-worker")):
        assert alone.one(kind, ending)["spec"] == several.one(kind, ending)["spec"]
    # So the others come and go by upgrades.
    grown = cluster.upgrade({**values, "clusters": 2})
    assert len(grown.kind("Deployment")) == 2
    assert len(cluster.upgrade(values).kind("Deployment")) == 1


def test_one_service_leads_to_every_root_that_serves(installed: Look) -> None:
    found = installed(FLEET)
    service = found.one("Service", "hearth-root")["spec"]
    pool = found.kind("InferencePool")[0]["spec"]
    for chosen in (service["selector"], pool["selector"]["matchLabels"]):
        reached = [
            name_of(each)
            for each in found.kind("Deployment") + found.kind("StatefulSet")
            if chosen.items() <= each["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert sorted(reached) == sorted(ROOTS)
    # One that waits for its workers is left out, and a client stays where its pages are.
    assert not service.get("publishNotReadyAddresses")
    assert service["sessionAffinity"] == "ClientIP"
    pod = found.one("Deployment", "hearth-root")["spec"]["template"]
    assert [port["number"] for port in pool["targetPorts"]] == [ports(pod)["http"]]


@pytest.mark.parametrize("role", ["root", "worker"])
def test_policies_and_budgets_are_those_of_all_clusters(installed: Look, role: str) -> None:
    found = installed(FLEET)
    owners = found.kind({"root": "Deployment", "worker": "StatefulSet"}[role])
    chosen = [found.one("NetworkPolicy", f"hearth-{role}")["spec"]["podSelector"]["matchLabels"]]
    chosen.append(found.one("Service", f"hearth-{role}-metrics")["spec"]["selector"])
    if role == "worker":
        (budget,) = found.kind("PodDisruptionBudget")
        chosen.append(budget["spec"]["selector"]["matchLabels"])
    for selector in chosen:
        for owner in owners:
            labels = owner["spec"]["template"]["metadata"]["labels"]
            assert selector.items() <= labels.items()


def test_a_cluster_starts_whole_when_the_others_are_full(installed: Look) -> None:
    found = installed(FLEET)
    scaled = {name_of(each): each["spec"] for each in found.kind("ScaledObject")}
    # Two always run; KEDA has the third, whose replicas an upgrade must not set.
    assert sorted(scaled) == ["hearth-3-root", "hearth-3-worker"]
    known = {
        sample.name for family in RootMetrics().registry.collect() for sample in family.samples
    }
    for name, replicas in (("hearth-3-root", 1), ("hearth-3-worker", 2)):
        spec = scaled[name]
        target = spec["scaleTargetRef"]
        owner = found.one(target["kind"], target["name"])
        assert name_of(owner) == name
        assert "replicas" not in owner["spec"]
        assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, replicas)
        (trigger,) = spec["triggers"]
        asked = trigger["metadata"]
        # 6 requests for each of the two before it; a metric of 2 by a threshold of 1 is 2 pods.
        chosen = '{job="hearth-root",namespace="home"}'
        names = ("hearth_running_sequences", "hearth_queue_depth")
        assert known.issuperset(names)
        total = " + ".join(f"sum({metric}{chosen})" for metric in names)
        assert asked["query"] == f"(({total}) > bool 12) * {replicas}"
        assert (asked["threshold"], asked["activationThreshold"]) == ("1", "0")
    for name in ("hearth-root", "hearth-2-root"):
        assert found.one("Deployment", name)["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"clusters": 0}, "clusters"),
        ({"clusters": 1.5}, "clusters"),
        ({"clusters": 2, "autoscaling": {"enabled": True, "minClusters": 2}}, "minClusters"),
        ({"clusters": 2, "autoscaling": {"enabled": True}}, "autoscaling.prometheus"),
        ({"clusters": 2, "autoscaling": {"prometheus": "prometheus:9090"}}, "prometheus"),
        ({"inferencePool": {"enabled": True, "endpointPicker": {"name": "epp"}}}, "tls.enabled"),
        ({"tls": {"enabled": False}, "inferencePool": {"enabled": True}}, "endpointPicker.name"),
        (
            {
                "tls": {"enabled": False},
                "apiKeys": {"enabled": True},
                "inferencePool": {"enabled": True, "endpointPicker": {"name": "epp"}},
            },
            "API key",
        ),
        ({"inferencePool": {"failureMode": "Open"}}, "failureMode"),
        (
            {
                "clusters": 2,
                "cluster": {"kvCache": "disk"},
                "root": {"pages": {"existingClaim": "mine"}},
            },
            "root.pages.existingClaim",
        ),
        (
            {
                "clusters": 2,
                "model": {
                    "pull": {"name": "owner/model"},
                    "volume": {"enabled": True, "existingClaim": "mine"},
                },
            },
            "model.pull",
        ),
    ],
)
def test_fleets_that_cannot_be_are_refused(cluster: Cluster, values: Object, word: str) -> None:
    with pytest.raises(HelmError, match=word):
        cluster.install(values)
    assert cluster.server.objects("home") == []


def test_names_of_the_last_cluster_fit(cluster: Cluster) -> None:
    found = cluster.install({"fullnameOverride": "a" * 40, "clusters": 99})
    names = [name_of(each) for each in found.kind("StatefulSet")]
    assert len(set(names)) == 99
    # A StatefulSet's pods carry its name and a hash of 11 characters in a label of at most 63.
    assert max(map(len, names)) <= 52
    json.dumps(found.all())
