"""The chart's objects compared with Hearth itself: options, ports, secrets, notes.

test_chart_network.py covers NetworkPolicies; test_chart_run.py runs the commands.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="the chart's tests need make chart-test")

from chart import (  # noqa: E402
    CHART,
    NAMESPACE,
    OPTIONS,
    Installed,
    containers,
    main_container,
    mounted,
    name_of,
    options_of,
    parse,
    ports,
    secret,
)

from hearth.common.certificates import (  # noqa: E402
    REVOCATION_LIST,
    Role,
    peer_of_pem,
)
from hearth.common.errors import HearthError, Reason  # noqa: E402
from hearth.common.health import LIVE, READY  # noqa: E402
from hearth.common.identity import read_identity  # noqa: E402

Look = Callable[[str], Installed]
# Of one cluster; test_chart_fleet.py has what several are.
every_option = pytest.mark.parametrize(
    "name", [name for name, values in OPTIONS.items() if values.get("clusters", 1) == 1]
)
SERVICES = ("root", "worker")


@every_option
def test_hearth_takes_the_options(installed: Look, name: str) -> None:
    pods = installed(name).pods()
    options = {role: options_of(pods[role]) for role in pods}
    for role in set(pods) & set(SERVICES):
        found, own = options[role], ports(pods[role])
        assert found.listen == f"0.0.0.0:{own['grpc']}"
        assert found.health == f"0.0.0.0:{own['health']}"
        assert found.metrics == (f"0.0.0.0:{own['metrics']}" if "metrics" in own else None)
        assert bool(found.tls) is not bool(found.insecure)
        assert len(set(own.values())) == len(own)
    if "worker" in pods:
        assert options["worker"].mesh_port == ports(pods["worker"])["mesh"]
        assert options["worker"].name == "from-the-cluster"
        assert options["root"].workers_dns
    else:
        assert not options["root"].workers_dns
    assert not options["root"].workers
    if "test" in pods:
        service = installed(name).one("Service", "-root")
        published = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        assert published.keys() == {"grpc", "http"}
        assert options["test"].root == f"{name_of(service)}:{published['grpc']}"
        assert options["root"].http == f"0.0.0.0:{published['http']}"


def test_values_arrive_as_options(installed: Look) -> None:
    pods = installed("everything").pods()
    root, worker = options_of(pods["root"]), options_of(pods["worker"])
    assert (root.min_workers, root.join_seconds, root.wait_seconds) == (3, 300.0, 45.5)
    assert (root.context, root.sequences, root.max_step_tokens) == (1_000_000, 2, 64)
    assert (root.lane, root.sync_type, root.kv_type, root.weights) == ("grpc", "q80", "q80", "q8_0")
    assert (root.step_seconds, root.pause_seconds, root.drain_seconds) == (300.0, 120.0, 90.5)
    assert (root.threads, root.memory_limit, root.shares) == (3, 700 << 20, (3.0, 1.0))
    assert (root.parallel, root.stages) == ("2x2", (3, 2))
    for node in (root, worker):
        assert (node.kv_cache, node.kv_cache_size) == ("disk", 2 << 30)
    assert root.any_model
    assert (worker.threads, worker.memory_limit, worker.lease_grace) == (2, 3 << 29, 8.0)
    assert worker.cache_limit == 18 << 30
    assert worker.drain_seconds == 45.5


@every_option
def test_what_is_written_goes_to_volumes(installed: Look, name: str) -> None:
    found = installed(name)
    for role, pod in found.pods().items():
        mounts = [m for c in containers(pod) for m in c["volumeMounts"]]
        stateful = found.kind("StatefulSet")[0]["spec"] if role == "worker" else {}
        claims = {c["metadata"]["name"] for c in stateful.get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        assert not claims & volumes
        assert {mount["name"] for mount in mounts} == claims | volumes
        assert "/tmp" in {mount["mountPath"] for mount in mounts}
        if role == "worker":
            cache = OPTIONS[name].get("worker", {}).get("cache", {}).get("enabled", True)
            assert bool(claims) is cache
            kept = options_of(pod).cache_dir
            assert any(kept.startswith(m["mountPath"] + "/") for m in mounts)
    root = found.pods()["root"]
    claims = {name_of(each) for each in found.kind("PersistentVolumeClaim")}
    on_disk = OPTIONS[name].get("cluster", {}).get("kvCache") == "disk"
    assert (options_of(root).kv_cache == "disk") is on_disk
    if on_disk and OPTIONS[name]["root"]["pages"].get("enabled", True):
        folder = options_of(root).cache_dir
        assert mounted(root, folder)["persistentVolumeClaim"]["claimName"] in claims
    else:
        assert not any(claim.endswith("-pages") for claim in claims)
    if options_of(root).model.startswith("/models"):
        claim = mounted(root, "/models")["persistentVolumeClaim"]["claimName"]
        given = OPTIONS[name].get("model", {}).get("volume", {}).get("existingClaim")
        assert claim == (given or name_of(found.one("PersistentVolumeClaim", "-models")))


def test_a_pulled_model_is_the_one_that_is_served(installed: Look, tmp_path: Path) -> None:
    pod = installed("everything").pods()["root"]
    (pull,) = pod["spec"]["initContainers"]
    served = options_of(pod).model
    calls = tmp_path / "calls"
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "hearth").write_text(
        f'#!/bin/sh\necho "$@" >>{calls}\n'
        f'mkdir -p "{tmp_path}$6" && touch "{tmp_path}$6/config.json"\n'
    )
    (bin_ / "hearth").chmod(0o755)
    moved = [
        part.replace('"$1/config.json"', f'"{tmp_path}$1/config.json"') for part in pull["args"]
    ]
    environ = {"PATH": f"{bin_}:/usr/bin:/bin", "HF_HOME": str(tmp_path / "hub")}
    (tmp_path / "hub").mkdir()
    for _ in range(2):  # a restart finds what the first start made
        subprocess.run([*pull["command"], *moved], env=environ, check=True, timeout=30)
    (line,) = calls.read_text().splitlines()
    asked = parse(line.split(), {})
    assert (asked.name, asked.weights, str(asked.dest)) == ("owner/gated", "f16", served)
    assert not (tmp_path / "hub").exists()
    variables = {item["name"] for item in pull["env"]}
    assert variables == {"HF_HOME", "HF_TOKEN"}


# -- probes, security, placement -------------------------------------------------------------------


@every_option
def test_probes_ask_the_port_that_only_answers_probes(installed: Look, name: str) -> None:
    for role, pod in installed(name).pods().items():
        container = main_container(pod)
        asked = {
            kind: container[f"{kind}Probe"]["httpGet"]
            for kind in ("startup", "liveness", "readiness")
            if f"{kind}Probe" in container
        }
        assert len(asked) == (3 if role in SERVICES else 0)
        assert all(probe["port"] == "health" for probe in asked.values())
        if asked:
            assert "health" in ports(pod)
            assert asked["liveness"]["path"] == asked["startup"]["path"] == LIVE
            assert asked["readiness"]["path"] == READY
            patience = container["livenessProbe"]
            assert patience["periodSeconds"] * patience["failureThreshold"] >= 60


@every_option
def test_pods_may_do_nothing_that_they_need_not(installed: Look, name: str) -> None:
    for pod in installed(name).pods().values():
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"] or container["resources"]["limits"]
        assert all("hostPath" not in volume for volume in spec["volumes"])


@every_option
def test_a_pod_has_the_time_to_drain(installed: Look, name: str) -> None:
    """Time to wait as configured and then to end: streams and server of a worker have 5 s each."""
    pods = installed(name).pods()
    assert pods.keys() & {"root", "worker"}
    for part in pods.keys() & {"root", "worker"}:
        pod = pods[part]
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        assert grace > options_of(pod).drain_seconds + 10
        for container in pod["spec"]["containers"]:
            assert (
                "lifecycle" not in container
            )  # nothing else is needed, and nothing delays SIGTERM


def test_service_links_would_set_options() -> None:
    """The reason to disable them: variables that kubelet would set for a Service hearth-mesh."""
    links = {"HEARTH_MESH_SERVICE_HOST": "10.43.0.9", "HEARTH_MESH_PORT": "tcp://10.43.0.9:7718"}
    with pytest.raises(HearthError, match="HEARTH_MESH_PORT") as caught:
        parse(["worker"], links)
    assert caught.value.reason == Reason.BAD_SETTING


@every_option
def test_each_node_has_a_device_of_its_own(installed: Look, name: str) -> None:
    found = installed(name)
    spread = OPTIONS[name].get("spread", "ScheduleAnyway")
    for role in set(found.pods()) & set(SERVICES):
        pod = found.pods()[role]
        constraints = pod["spec"].get("topologySpreadConstraints", [])
        assert len(constraints) == (spread != "none")
        for constraint in constraints:
            assert constraint["whenUnsatisfiable"] == spread
            assert constraint["topologyKey"] == "kubernetes.io/hostname"
            # Both roles count: else the root and a worker could share a device.
            wanted = constraint["labelSelector"]["matchLabels"].items()
            assert all(wanted <= p["metadata"]["labels"].items() for p in found.pods().values())


@every_option
def test_a_gpu_comes_with_all_that_it_needs(installed: Look, name: str) -> None:
    """A node on one has the device, the image with drivers and the group; others have nothing."""
    values, found = OPTIONS[name], installed(name)
    for role in set(found.pods()) & set(SERVICES):
        pod = found.pods()[role]
        gpu = values.get(role, {}).get("gpu", {})
        container, security = main_container(pod), pod["spec"]["securityContext"]
        assert options_of(pod).device == gpu.get("device", "cpu")
        limits = {k: v for k, v in container["resources"]["limits"].items() if "/" in k}
        assert limits == ({gpu["resource"]: gpu.get("count", 1)} if gpu else {})
        assert pod["spec"].get("runtimeClassName") == gpu.get("runtimeClassName")
        assert security.get("supplementalGroups") == ([gpu["group"]] if "group" in gpu else None)
        plain = main_container(found.test)["image"] if found.test else ""
        if not gpu:
            assert container["image"] == plain or not found.test
        elif digest := values.get("image", {}).get("gpu", {}).get("digest"):
            assert container["image"] == f"hearth@{digest}" != plain
        else:
            assert container["image"] == f"{plain}-vulkan"


def test_four_pis_hold_four_nodes(installed: Look) -> None:
    found = installed("four pis")
    workers = found.one("StatefulSet", "-worker")["spec"]
    assert workers["replicas"] + found.one("Deployment", "-root")["spec"]["replicas"] == 4
    assert options_of(found.pods()["root"]).min_workers == workers["replicas"]
    for role in SERVICES:
        spec = found.pods()[role]["spec"]
        assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
        assert {t["key"] for t in spec["tolerations"]} == {
            "node-role.kubernetes.io/control-plane",
            "node-role.kubernetes.io/master",
        }


def test_workers_start_together_and_keep_what_they_have(installed: Look) -> None:
    spec = installed("defaults").one("StatefulSet", "-worker")["spec"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    assert installed("defaults").one("Deployment", "-root")["spec"]["strategy"] == {
        "type": "Recreate"
    }


# -- selectors and services ------------------------------------------------------------------------


@every_option
def test_selectors_find_their_pods_and_no_others(installed: Look, name: str) -> None:
    found = installed(name)
    pods = found.pods()
    selecting = [
        *(item for kind in ("Deployment", "StatefulSet") for item in found.kind(kind)),
        *(item for kind in ("Service", "PodDisruptionBudget") for item in found.kind(kind)),
    ]
    assert len(selecting) >= 3 or "worker" not in pods
    for item in selecting:
        selector = item["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        chosen = [
            r for r, pod in pods.items() if wanted.items() <= pod["metadata"]["labels"].items()
        ]
        assert chosen == [item["metadata"]["labels"]["app.kubernetes.io/component"]]
        if item["kind"] == "Service":
            own = ports(pods[chosen[0]])
            for port in item["spec"]["ports"]:
                assert own[port["targetPort"]] == port["port"]


@every_option
def test_the_root_finds_its_workers_by_a_name_that_lists_them(installed: Look, name: str) -> None:
    found = installed(name)
    if "worker" not in found.pods():
        return
    stateful = found.one("StatefulSet", "-worker")
    service = found.one("Service", "-worker")
    asked = options_of(found.pods()["root"]).workers_dns
    (port,) = [p["port"] for p in service["spec"]["ports"] if p["name"] == "grpc"]
    assert asked == f"{name_of(service)}:{port}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert stateful["spec"]["serviceName"] == name_of(service)


# -- secrets ---------------------------------------------------------------------------------------


@every_option
def test_secrets_lie_where_hearth_looks(installed: Look, name: str, tmp_path: Path) -> None:
    found = installed(name)
    for role, pod in found.pods().items():
        tls = options_of(pod).tls
        if not tls:
            assert not found.kind("Secret")
            continue
        volume = mounted(pod, tls)["projected"]
        # Readable for the pod's user by its group alone.
        assert volume["defaultMode"] == 0o440
        assert pod["spec"]["securityContext"]["fsGroup"] == 10001
        files = [
            (source["secret"]["name"], item["key"], item["path"])
            for source in volume["sources"]
            for item in source["secret"]["items"]
            if not source["secret"].get("optional")
        ]
        (optional,) = (s["secret"] for s in volume["sources"] if s["secret"].get("optional"))
        assert [item["path"] for item in optional["items"]] == [REVOCATION_LIST]
        expected = {"ca.crt", "tls.crt", "tls.key"} | ({"token"} if role in SERVICES else set())
        assert {path for _, _, path in files} == expected
        assert all(key == path for _, key, path in files)
        if name == "given secrets":
            sources = {key: source for source, key, _ in files}
            assert sources.pop("token", "my-token") == "my-token"
            assert set(sources.values()) == {"my-client" if role == "test" else f"my-{role}"}
            assert not found.kind("Secret")
            continue
        folder = tmp_path / role
        folder.mkdir()
        for source, key, path in files:
            (folder / path).write_bytes(secret(found, source)[key])
        if role in SERVICES:
            assert len(read_identity(folder).token) == 48
    # The authority's key is for Helm alone.
    mounts = yaml.safe_dump([pod["spec"] for pod in found.pods().values()])
    assert "-ca\n" not in mounts
    assert "ca.key" not in mounts


@pytest.mark.parametrize("name", ["everything", "given secrets"])
def test_api_keys_lie_where_hearth_looks(installed: Look, name: str) -> None:
    found = installed(name)
    root = found.pods()["root"]
    folder, _, file = options_of(root).api_keys.rpartition("/")
    volume = mounted(root, folder)["secret"]
    assert [item["path"] for item in volume["items"]] == [file]
    if name == "everything":
        lines = secret(found, volume["secretName"])[volume["items"][0]["key"]].decode().splitlines()
        assert [line.split()[::2] for line in lines] == [["anna"], ["ben"], ["eva", "operator"]]
        (key,) = [v for v in main_container(found.pods()["test"])["env"] if "KEY" in v["name"]]
        assert key["valueFrom"]["secretKeyRef"] == {"name": volume["secretName"], "key": "anna"}
        assert lines[0].split()[1].encode() == secret(found, volume["secretName"])["anna"]


# -- monitoring ------------------------------------------------------------------------------------


def test_prometheus_finds_the_metrics(installed: Look) -> None:
    found = installed("everything")
    monitors = found.kind("ServiceMonitor")
    assert len(monitors) == 2
    for monitor in monitors:
        spec = monitor["spec"]
        assert monitor["metadata"]["labels"]["release"] == "monitoring"
        wanted = spec["selector"]["matchLabels"].items()
        (service,) = [s for s in found.kind("Service") if wanted <= s["metadata"]["labels"].items()]
        (endpoint,) = spec["endpoints"]
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
        role = service["metadata"]["labels"]["app.kubernetes.io/component"]
        # The job is what the alerts and the dashboard call it, the name that of the certificate.
        assert service["metadata"]["labels"][spec["jobLabel"]] == f"hearth-{role}"
        assert endpoint["scheme"] == "https"
        tls = endpoint["tlsConfig"]
        assert tls["serverName"] == f"hearth-{role}"
        client = {key: tls[part]["secret"] for part, key in (("ca", "ca.crt"), ("cert", "tls.crt"))}
        client["tls.key"] = tls["keySecret"]
        for key, reference in client.items():
            assert reference["key"] == key
            assert secret(found, reference["name"])[key].startswith(b"-----BEGIN")
        pem = secret(found, client["tls.crt"]["name"])["tls.crt"]
        assert peer_of_pem(pem).roles == {Role.MONITOR}


def test_rules_and_dashboards_are_those_of_compose(installed: Look) -> None:
    found = installed("everything")
    compose = CHART.parents[1] / "compose"
    (rules,) = found.kind("PrometheusRule")
    assert rules["spec"] == yaml.safe_load((compose / "prometheus" / "alerts.yml").read_text())
    (dashboards,) = found.kind("ConfigMap")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboards["data"] == {
        path.name: path.read_text() for path in (compose / "grafana" / "dashboards").glob("*.json")
    }
    assert not installed("defaults").kind("PrometheusRule")
    # No copies.
    assert all(path.is_symlink() for path in CHART.glob("files/*/*"))


# -- messages to people --------------------------------------------------------------------------


@every_option
def test_the_notes_are_commands_that_work(installed: Look, name: str) -> None:
    found = installed(name)
    commands = re.findall(r"^ +kubectl exec .* -- hearth (.+)$", found.notes, re.MULTILINE)
    commands += re.findall(r"^ +hearth (.+)$", found.notes, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(re.sub(r"\$\([^)]*\)", "key", command))
        asked = parse(words, {})
        assert asked.root == f"127.0.0.1:{ports(found.pods()['root'])['grpc']}"
    for kind, of in re.findall(r"(deploy|svc)/([a-z0-9-]+)", found.notes):
        assert found.one({"deploy": "Deployment", "svc": "Service"}[kind], of)
    assert f"-n {NAMESPACE} " in found.notes
    assert ("WARNING" in found.notes) is (name == "bare")


def test_the_notes_fetch_a_clients_files(installed: Look, tmp_path: Path) -> None:
    (script,) = re.findall(r"^  (mkdir .*?done)$", installed("defaults").notes, re.DOTALL | re.M)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\nprintf "%s" "$*" | base64\n')
    kubectl.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environ, check=True, timeout=30)
    for file in ("ca.crt", "tls.crt", "tls.key"):
        asked = (tmp_path / "hearth-tls" / file).read_text()
        escaped = file.replace(".", r"\.")
        assert asked == f"get secret -n home hearth-client-tls -o jsonpath={{.data['{escaped}']}}"


def test_the_readmes_commands_are_ours(installed: Look) -> None:
    readme = (CHART / "README.md").read_text()
    commands = re.findall(r"^(?:kubectl exec deploy/hearth-root -- )?hearth (.+)$", readme, re.M)
    assert [command.split()[0] for command in commands] == ["certs", "cluster"]
    for command in commands:
        parse(shlex.split(command), {})
    drained = parse(shlex.split(commands[1]), {}).worker
    assert drained.startswith(name_of(installed("four pis").one("StatefulSet", "-worker")) + "-")
    given = set(re.findall(r"tls\.existingSecrets\.(\w+)=", readme))
    assert given == {"root", "worker", "client", "monitor"}
