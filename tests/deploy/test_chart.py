"""The chart as Helm and Kubernetes see it: it lints, packages, installs, upgrades; every object is
valid; its values are described and checked. What the objects mean is test_chart_meaning.py's.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="the chart's tests need make chart-test")

from api_server import Object  # noqa: E402
from chart import CHART, OPTIONS, TOP, Cluster, Installed, name_of, secret, walk  # noqa: E402
from cryptography import x509  # noqa: E402
from helm import Helm, HelmError  # noqa: E402

# Kubernetes' own schemas do not know them. The first two are of the Prometheus operator; the others
# are held to test_chart_fleet.py's.
CUSTOM = {"ServiceMonitor", "PrometheusRule", "InferencePool", "ScaledObject"}
Look = Callable[[str], Installed]
every_option = pytest.mark.parametrize("name", OPTIONS)


def test_it_lints(helm: Helm) -> None:
    assert helm.lint(CHART) == []


def test_lint_would_tell(helm: Helm, tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: broken\nversion: 0.1.0\n")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.yaml").write_text('kind: {{ include "absent" . }}\n')
    assert helm.lint(tmp_path)


@every_option
def test_objects_are_valid(installed: Look, name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    versions = sorted(
        {tuple(map(int, v.split(".")[:2])) for v in validate.utils.all_versions()}, reverse=True
    )[:2]
    found = installed(name).all()
    checked = 0
    for item in found:
        if item["kind"] not in CUSTOM:
            # As sent: without what the server adds.
            for major, minor in versions:
                validate.validate(item, f"{major}.{minor}", strict=True)
                checked += 1
    assert checked == 2 * len([item for item in found if item["kind"] not in CUSTOM]) > 0
    names = [(item["kind"], name_of(item)) for item in found]
    assert len(names) == len(set(names))


def test_validation_would_tell(installed: Look) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    broken: Object = json.loads(json.dumps(installed("defaults").one("StatefulSet", "-worker")))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["grcp"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, validate.latest_version(), strict=True)


@every_option
def test_names_fit_and_labels_are_legal(installed: Look, name: str) -> None:
    label = re.compile(r"(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
    for item in installed(name).all():
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name_of(item)), name_of(item)
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "hearth"
        assert all(label.fullmatch(value) for value in labels.values()), labels


def test_a_long_release_name_still_fits(cluster: Cluster, helm: Helm, tmp_path: Path) -> None:
    release = "a" * 45 + "-stack"
    config = tmp_path / "kubeconfig"
    config.write_text(cluster.server.kubeconfig())
    helm.install(config, CHART, {}, release, "home")
    workers = [name_of(o) for o in cluster.server.objects("home") if o["kind"] == "StatefulSet"]
    # A StatefulSet's pods carry its name and a hash of 11 characters in a label of at most 63.
    assert workers and all(len(found) <= 52 and found.endswith("-worker") for found in workers)


def test_the_package_has_all_that_the_folder_has(
    helm: Helm, new_cluster: Callable[[], Cluster], tmp_path: Path
) -> None:
    values = OPTIONS["everything"]
    archive = helm.package(CHART, tmp_path)
    packed = {(o["kind"], name_of(o)): o for o in new_cluster().install(values, archive).objects}
    lying = {(o["kind"], name_of(o)): o for o in new_cluster().install(values).objects}
    assert packed.keys() == lying.keys()
    for key, item in lying.items():
        if key[0] != "Secret":
            assert packed[key].get("spec") == item.get("spec"), key
            assert packed[key].get("data") == item.get("data"), key


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"workers": 3}, "workers"),
        ({"worker": {"replica": 3}}, "replica"),
        ({"worker": {"replicas": "3"}}, "replicas"),
        ({"worker": {"replicas": -1}}, "replicas"),
        ({"worker": {"cache": {"size": "lots"}}}, "size"),
        ({"root": {"memoryLimit": "6 potatoes"}}, "memoryLimit"),
        ({"cluster": {"syncType": "q8"}}, "syncType"),
        ({"model": {"name": "llama.gguf"}}, "name"),
        ({"model": {"pull": {"name": "owner/model"}}}, "volume"),
        ({"model": {"name": "/models/llama"}}, "volume"),
        ({"spread": "always"}, "spread"),
        ({"apiKeys": {"names": ["api-keys"]}}, "names"),
        ({"apiKeys": {"enabled": True, "operators": ["home"]}}, "apiKeys.operators: home"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"networkPolicy": {"prometheus": []}}, "prometheus"),
        ({"root": {"gpu": {"device": "cuda"}}}, "device"),
        ({"worker": {"gpu": {"resource": "nvidia.com/gpu"}}}, "resource"),
        ({"worker": {"gpu": {"device": "vulkan", "resource": "gpu"}}}, "resource"),
        (
            {"image": {"digest": "sha256:" + "0" * 64}, "root": {"gpu": {"device": "vulkan"}}},
            "give image.gpu.digest or image.gpu.tag too",
        ),
        ({"tls": {"existingSecrets": {"root": "mine"}}}, "give both root and worker"),
        (
            {
                "tls": {"existingSecrets": {"root": "a", "worker": "b"}},
                "metrics": {"serviceMonitor": {"enabled": True}},
            },
            "existingSecrets.monitor",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(cluster: Cluster, values: Object, word: str) -> None:
    with pytest.raises(HelmError, match=re.escape(word)):
        cluster.install(values)
    assert cluster.server.objects("home") == []


def test_the_schema_is_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    declared = [found for _, found in walk(schema) if found.get("type") == "object"]
    closed = [found for found in declared if "properties" in found]
    assert len(closed) > 15
    assert all(found["additionalProperties"] is False for found in closed)
    # A value without a default would be a value that nobody can find.
    default = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - set(default) == {"global"}


def test_every_value_is_in_the_readme_with_its_default() -> None:
    default = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = re.findall(
        r"^\| `([A-Za-z.]+)` \| `(.*?)` \| (.+) \|$",
        (CHART / "README.md").read_text(),
        re.MULTILINE,
    )
    listed: dict[str, Object] = {}
    for path, shown, what in rows:
        value = default
        for part in path.split("."):
            value = value[part]
        assert json.loads(shown) == value, path
        assert len(what) > 4, path
        listed[path] = value
    assert len(listed) == len(rows)

    def leaves(value: Object, path: str = "") -> list[str]:
        """Paths that no row covers, itself or above."""
        if path in listed:
            return []
        if isinstance(value, dict) and value:
            return [p for key, v in value.items() for p in leaves(v, f"{path}.{key}".lstrip("."))]
        return [path]

    assert leaves(default) == []


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == project["version"]


# -- upgrades --------------------------------------------------------------------------------------


def _secrets(found: Installed) -> dict[str, dict[str, bytes]]:
    return {name_of(item): secret(found, name_of(item)) for item in found.kind("Secret")}


def test_an_upgrade_keeps_every_secret_and_starts_nothing_anew(cluster: Cluster) -> None:
    values: Object = {"apiKeys": {"enabled": True}}
    before = cluster.install(values)
    after = cluster.upgrade(values)
    assert _secrets(after) == _secrets(before)
    assert len(_secrets(after)) == 7
    assert after.pods() == before.pods()


def test_two_installs_have_nothing_in_common(new_cluster: Callable[[], Cluster]) -> None:
    values: Object = {"apiKeys": {"enabled": True}}
    one, other = (_secrets(new_cluster().install(values)) for _ in range(2))
    assert one.keys() == other.keys()
    for name, files in one.items():
        assert all(other[name][key] != content for key, content in files.items()), name


def test_a_new_name_changes_one_certificate_and_not_the_authority(cluster: Cluster) -> None:
    before = _secrets(cluster.install({}))
    after = _secrets(cluster.upgrade({"tls": {"hosts": ["llm.lan", "192.168.1.20"]}}))
    changed = {
        (name, key)
        for name, files in after.items()
        for key in files
        if before[name][key] != files[key]
    }
    assert changed == {("hearth-root-tls", "tls.crt"), ("hearth-root-tls", "tls.key")}
    certificate = x509.load_pem_x509_certificate(after["hearth-root-tls"]["tls.crt"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "llm.lan" in names.get_values_for_type(x509.DNSName)
    assert "192.168.1.20" in map(str, names.get_values_for_type(x509.IPAddress))
    authority = x509.load_pem_x509_certificate(after["hearth-ca"]["ca.crt"])
    certificate.verify_directly_issued_by(authority)


def test_a_lost_secret_is_made_again_by_the_same_authority(cluster: Cluster) -> None:
    before = _secrets(cluster.install({}))
    cluster.server.forget("home", "Secret", "hearth-root-tls")
    after = _secrets(cluster.upgrade({}))
    assert after["hearth-worker-tls"] == before["hearth-worker-tls"]
    assert after["hearth-root-tls"]["token"] == before["hearth-root-tls"]["token"]
    assert after["hearth-root-tls"]["tls.crt"] != before["hearth-root-tls"]["tls.crt"]
    x509.load_pem_x509_certificate(after["hearth-root-tls"]["tls.crt"]).verify_directly_issued_by(
        x509.load_pem_x509_certificate(before["hearth-ca"]["ca.crt"])
    )


def test_a_lost_authority_renews_everything(cluster: Cluster) -> None:
    before = _secrets(cluster.install({}))
    cluster.server.forget("home", "Secret", "hearth-ca")
    after = _secrets(cluster.upgrade({}))
    for role in ("root", "worker", "client", "operator", "monitor"):
        files = after[f"hearth-{role}-tls"]
        assert files["ca.crt"] == after["hearth-ca"]["ca.crt"] != before["hearth-ca"]["ca.crt"]
        x509.load_pem_x509_certificate(files["tls.crt"]).verify_directly_issued_by(
            x509.load_pem_x509_certificate(files["ca.crt"])
        )


def test_a_client_more_has_a_key_and_the_others_keep_theirs(cluster: Cluster) -> None:
    before = cluster.install({"apiKeys": {"enabled": True, "names": ["anna"]}})
    after = cluster.upgrade({"apiKeys": {"enabled": True, "names": ["anna", "ben"]}})
    old, new = (secret(found, "hearth-api-keys") for found in (before, after))
    assert new["anna"] == old["anna"] != new["ben"]
    assert new["api-keys"].decode().splitlines() == [
        f"{name} {new[name].decode()}" for name in ("anna", "ben")
    ]
