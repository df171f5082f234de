"""The Compose and monitoring files, without a container engine: what they promise and name.

Running them is test_compose.py's (make deploy-test).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring import (
    ALERTS,
    COMPOSE,
    DASHBOARD,
    TOP,
    alerts,
    expressions,
    load,
    metric_names,
    panels,
)
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hearth.cli import root, worker
from hearth.common.metrics import NodeFacts, RootMetrics
from hearth.common.settings import variable

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is missing: apt-get install prometheus"
)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(COMPOSE / "compose.yaml")["services"]
    return found


# -- Compose ---------------------------------------------------------------------------------------


def hardened(service: dict[str, Any]) -> bool:
    """No capability, no new privileges, and nothing to write to but what is mounted."""
    return (
        service["cap_drop"] == ["ALL"]
        and service["security_opt"] == ["no-new-privileges:true"]
        and service["read_only"] is True
    )


@pytest.mark.parametrize("file", ["compose.yaml", "worker.yaml"])
def test_no_service_can_do_more_than_it_must(file: str) -> None:
    for name, service in load(COMPOSE / file)["services"].items():
        assert not service.get("privileged"), name
        assert ":latest" not in service["image"], name
        # Grafana writes beside its volume.
        assert hardened(service | ({"read_only": True} if name == "grafana" else {})), name
        for port in service.get("ports", ()):
            # On this machine, or where its owner says.
            assert port.startswith(("127.0.0.1:", "${HEARTH_LISTEN")), (name, port)


def test_each_role_sees_its_own_secrets_only(services: dict[str, dict[str, Any]]) -> None:
    seen = {
        name: {
            volume.partition(":")[0]: volume.endswith(":ro")
            for volume in service.get("volumes", ())
            if volume.startswith("tls-")
        }
        for name, service in services.items()
    }
    made = seen.pop("certs")
    assert not any(made.values())
    assert services["certs"]["network_mode"] == "none"
    assert seen == {
        "root": {"tls-root": True},
        "worker": {"tls-worker": True},
        "hearth": {"tls-operator": True},
        "prometheus": {"tls-monitor": True},
        "grafana": {},
    }
    roles = ("authority", "root", "worker", "client", "operator", "monitor")
    assert set(made) == {f"tls-{role}" for role in roles}


@pytest.mark.parametrize(
    ("file", "name", "module"),
    [
        ("compose.yaml", "root", root),
        ("compose.yaml", "worker", worker),
        ("worker.yaml", "worker", worker),
    ],
)
def test_a_service_has_the_time_to_drain(file: str, name: str, module: Any) -> None:
    """To wait as long as it does by default, and then to end: a worker's streams and its server
    have 5 s each for that."""
    service = load(COMPOSE / file)["services"][name]
    assert "HEARTH_DRAIN_SECONDS" not in service["environment"]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > module.command().read(["demo"] * (module is root)).drain_seconds + 5 + 5


def test_services_are_bounded_and_come_back(services: dict[str, dict[str, Any]]) -> None:
    for name in ("root", "worker"):
        service = services[name]
        assert service["restart"] == "unless-stopped"
        # Equal: no swapping instead of an honest refusal by the planner.
        assert service["mem_limit"] == service["memswap_limit"]
        assert service["cpus"]
        assert service["depends_on"] == {"certs": {"condition": "service_completed_successfully"}}
        assert "healthcheck" not in service  # the image's own
    assert services["worker"]["networks"] == ["cluster"]
    assert load(COMPOSE / "compose.yaml")["networks"]["cluster"] == {"internal": True}


@pytest.mark.parametrize(
    ("file", "name", "module"),
    [
        ("compose.yaml", "root", root),
        ("compose.yaml", "worker", worker),
        ("worker.yaml", "worker", worker),
    ],
)
def test_commands_and_settings_are_ones_that_there_are(file: str, name: str, module: Any) -> None:
    service = load(COMPOSE / file)["services"][name]
    parser = module.command()
    known = {variable(option.long_name) for option in parser.settings()}
    assert set(service.get("environment", ())) <= known
    command = service["command"]
    assert command[0] == name
    words = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in command[1:]]
    if module is root:
        words += ["--model", "demo"]  # as the environment has it
    options = parser.read(words)
    assert options.listen.startswith("0.0.0.0:")
    assert options.metrics


def merged(command: list[str], *files: str) -> str:
    """Files together, as Compose understands them. Skips where there is no such command."""
    found = shutil.which(command[0]) and subprocess.run(
        [*command, "version"], capture_output=True, check=False
    )
    if not found or found.returncode:
        pytest.skip(f"no {' '.join(command)} here")
    profiles = ["--profile", "observability", "--profile", "client"]
    given = [word for file in files for word in ("-f", str(COMPOSE / file))]
    done = subprocess.run(
        [*command, *given, *profiles, "config"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HEARTH_RENDER_GROUP": "104"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARN" not in done.stderr.upper(), done.stderr
    return done.stdout


@pytest.mark.parametrize("file", ["compose.yaml", "worker.yaml"])
@pytest.mark.parametrize("command", [["docker-compose"], ["docker", "compose"]])
def test_compose_itself_takes_the_files(file: str, command: list[str]) -> None:
    assert merged(command, file)


# Files for GPUs, what each lies over, and the service that it gives one.
GPUS = [
    ("vulkan.yaml", "compose.yaml", "root", root),
    ("nvidia.yaml", "compose.yaml", "root", root),
    ("worker-vulkan.yaml", "worker.yaml", "worker", worker),
    ("worker-nvidia.yaml", "worker.yaml", "worker", worker),
]


@pytest.mark.parametrize(("file", "base", "name", "module"), GPUS)
def test_a_gpu_is_added_to_a_service(file: str, base: str, name: str, module: Any) -> None:
    """To one that there is, with what there is."""
    services = load(COMPOSE / file)["services"]
    added, service = services.pop(name), load(COMPOSE / base)["services"][name]
    assert services in ({}, {"worker": {"scale": 0}})
    assert added["build"]["context"] == service["build"]["context"]
    assert added["build"]["dockerfile"] == service["build"]["dockerfile"]
    # Another name, or the next `up` of the base alone would run this variant.
    assert added["image"] != service["image"]
    assert set(added["environment"]) <= {variable(o.long_name) for o in module.command().settings()}
    # Nothing of what bounds the service is lifted.
    rest = set(added) - {"image", "build", "environment"}
    assert rest <= {"devices", "group_add", "deploy"}
    (argument,) = added["build"]["args"]
    dockerfile = (TOP / added["build"]["dockerfile"].removeprefix("../../")).read_text()
    assert re.search(rf"^ARG {argument}=$", dockerfile, re.MULTILINE)
    assert re.search(rf"^ +{added['build']['args'][argument]}\)", dockerfile, re.MULTILINE)


@pytest.mark.parametrize(("file", "base", "name", "module"), GPUS)
@pytest.mark.parametrize("command", [["docker-compose"], ["docker", "compose"]])
def test_compose_itself_adds_a_gpu(
    file: str, base: str, name: str, module: Any, command: list[str]
) -> None:
    services = yaml.safe_load(merged(command, base, file))["services"]
    found = services[name]
    assert found["image"] == "hearth-vulkan"
    assert found["environment"]["HEARTH_DEVICE"] == "vulkan"
    assert found["cap_drop"] == ["ALL"] and found["read_only"] is True
    if "vulkan" in file:
        assert "/dev/dri" in str(found["devices"])
        assert [str(group) for group in found["group_add"]] == ["104"]
    else:
        (device,) = found["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    if module is root:
        assert not found["environment"]["HEARTH_WORKERS_DNS"]
        # (Later versions of Compose say it as deploy.replicas.)
        workers = services["worker"]
        assert workers.get("scale", workers.get("deploy", {}).get("replicas")) == 0


def test_the_image_is_given_all_of_the_package() -> None:
    listed = (TOP / ".dockerignore").read_text().splitlines()
    assert "*" in listed  # nothing unless it is named below
    named = {line[1:] for line in listed if line.startswith("!")}
    for project in (TOP, TOP / "packaging" / "hearth-client"):
        table = tomllib.loads((project / "pyproject.toml").read_text())
        packages = table["tool"]["scikit-build"]["wheel"]["packages"].values()
        folders = {(project / folder).resolve().relative_to(TOP).parts[0] for folder in packages}
        assert folders <= named
    assert all((TOP / name).exists() for name in named)
    # What the build files read: theirs beside them, by include() and add_subdirectory().
    read = re.compile(r"^\s*(?:include|add_subdirectory)\(([\w./-]+/[\w./-]+|[a-z_]+)\)", re.M)
    for build_file in (TOP / "CMakeLists.txt", TOP / "native" / "CMakeLists.txt"):
        for word in read.findall(build_file.read_text()):
            wanted = (build_file.parent / word).relative_to(TOP)
            given = [wanted, *wanted.parents]
            assert (TOP / wanted).exists()
            assert any(str(each) in named for each in given) or any(
                name.startswith(f"{wanted}/") for name in named
            ), wanted
    assert not {".git", ".venv", "build", "tests"} & named


# -- Prometheus and Grafana ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Every name that a scrape of a Hearth service can show."""
    metrics = RootMetrics()
    metrics.build_info("root", "1", "scalar", "x86_64")
    metrics.kv_pages(1, 1)
    metrics.cluster(True, 1, {"serving": 1}, 0, True)
    metrics.nodes([NodeFacts("root", 1)])
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {sample.name for family in families for sample in family.samples} | {"up"}


def every_expression() -> list[tuple[str, str]]:
    return expressions() + [(name, rule["expr"]) for name, rule in alerts().items()]


@pytest.mark.parametrize(("title", "expression"), every_expression())
def test_every_expression_reads_metrics_that_there_are(
    exposed: set[str], title: str, expression: str
) -> None:
    assert metric_names(expression), title
    assert metric_names(expression) <= exposed


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    provisioned = load(COMPOSE / "grafana/provisioning/datasources/hearth.yaml")["datasources"]
    sources = {(source["type"], source["uid"]) for source in provisioned}
    drawn = [panel for panel in panels() if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels()}) == len(list(panels()))
    for panel in drawn:
        assert (panel["datasource"]["type"], panel["datasource"]["uid"]) in sources
        assert panel["title"]
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(references) == len(set(references))
        assert references or panel["type"] == "alertlist"
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not taken & cells, f"{panel['title']} lies over another panel"
        taken |= cells
    # Where the provider looks is where the file is put.
    (provider,) = load(COMPOSE / "grafana/provisioning/dashboards/hearth.yaml")["providers"]
    volumes = load(COMPOSE / "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in volumes
    assert dashboard["uid"] and dashboard["time"] and dashboard["schemaVersion"] >= 36


def test_alerts_say_what_to_do() -> None:
    for name, rule in alerts().items():
        assert name.startswith("Hearth")
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["action"]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    # The certificates that it names are made when the services first start.
    promtool("check", "config", "--syntax-only", COMPOSE / "prometheus" / "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", ALERTS)


ROOT = 'job="hearth-root",instance="root:9716"'
WORKER = 'job="hearth-worker",instance="10.0.0.2:9716"'
OTHER = 'job="hearth-worker",instance="10.0.0.3:9716"'
# A cluster of three that serves, minute by minute: series to values.
HEALTHY = {
    f"up{{{ROOT}}}": "1x60",
    f"up{{{WORKER}}}": "1x60",
    f"up{{{OTHER}}}": "1x60",
    f"hearth_cluster_serving{{{ROOT}}}": "1x60",
    # A worker has all metrics too, and knows of no cluster.
    f"hearth_cluster_serving{{{WORKER}}}": "0x60",
    f"hearth_queue_depth{{{WORKER}}}": "0x60",
    f"hearth_worker_losses_total{{{ROOT}}}": "0x60",
    f"process_start_time_seconds{{{WORKER}}}": "1000x60",
    f'hearth_requests_total{{{ROOT},outcome="eos"}}': "0+60x60",
    f'hearth_requests_total{{{ROOT},outcome="cancelled"}}': "0+60x60",
    f'hearth_requests_total{{{ROOT},outcome="worker_lost"}}': "0+1x60",
    f"hearth_queue_depth{{{ROOT}}}": "0 3 0 5 0x56",
    f'hearth_time_to_first_token_seconds_bucket{{{ROOT},le="1.0"}}': "0+60x60",
    f'hearth_time_to_first_token_seconds_bucket{{{ROOT},le="25.0"}}': "0+60x60",
    f'hearth_time_to_first_token_seconds_bucket{{{ROOT},le="50.0"}}': "0+60x60",
    f'hearth_time_to_first_token_seconds_bucket{{{ROOT},le="+Inf"}}': "0+60x60",
    f'hearth_node_compute_seconds_total{{{ROOT},rank="0",node="pc"}}': "0+20x60",
    f'hearth_node_compute_seconds_total{{{ROOT},rank="1",node="pi"}}': "0+24x60",
    f'hearth_node_compute_seconds_total{{{ROOT},rank="2",node="nuc"}}': "0+21x60",
    f'hearth_sync_seconds_sum{{{ROOT},phase="decode"}}': "0+10x60",
    f'hearth_step_seconds_sum{{{ROOT},phase="decode"}}': "0+40x60",
    f'hearth_step_seconds_count{{{ROOT},phase="decode"}}': "0+400x60",
    f"hearth_memory_available_bytes{{{ROOT}}}": "500x60",
    f"hearth_memory_total_bytes{{{ROOT}}}": "2000x60",
    f'hearth_build_info{{{ROOT},version="1.2"}}': "1x60",
    f'hearth_build_info{{{WORKER},version="1.2"}}': "1x60",
}
# What is other than that, and the alerts that must fire for it, these and no others.
SLOW_FIRST = 'hearth_time_to_first_token_seconds_bucket{job="hearth-root",instance="root:9716",le='
FAULTS: list[tuple[str, dict[str, str | None], set[str]]] = [
    ("healthy", {}, set()),
    ("no traffic", {key: None for key in HEALTHY if "requests" in key or "seconds_" in key}, set()),
    ("root silent", {f"up{{{ROOT}}}": "0x60"}, {"HearthRootDown"}),
    ("root unknown", {f"up{{{ROOT}}}": None}, {"HearthRootDown"}),
    ("not serving", {f"hearth_cluster_serving{{{ROOT}}}": "0x60"}, {"HearthNotServing"}),
    ("worker silent", {f"up{{{OTHER}}}": "0x60"}, {"HearthWorkerDown"}),
    (
        "worker lost again and again",
        {f"hearth_worker_losses_total{{{ROOT}}}": "0x29 0+1x30"},
        {"HearthWorkersKeepBeingLost"},
    ),
    (
        "worker restarts",
        {f"process_start_time_seconds{{{WORKER}}}": "1000x35 1001+60x4 2000x20"},
        {"HearthRestarting"},
    ),
    (
        "requests fail",
        {f'hearth_requests_total{{{ROOT},outcome="worker_lost"}}': "0+20x60"},
        {"HearthRequestsFail"},
    ),
    ("queue", {f"hearth_queue_depth{{{ROOT}}}": "4x60"}, {"HearthQueueDoesNotEmpty"}),
    (
        "slow first token",
        {f'{SLOW_FIRST}"1.0"}}': "0+6x60", f'{SLOW_FIRST}"25.0"}}': "0+12x60"},
        {"HearthFirstTokenSlow"},
    ),
    (
        "straggler",
        {f'hearth_node_compute_seconds_total{{{ROOT},rank="1",node="pi"}}': "0+58x60"},
        {"HearthStraggler"},
    ),
    (
        "slow network",
        {f'hearth_sync_seconds_sum{{{ROOT},phase="decode"}}': "0+36x60"},
        {"HearthSyncDominates"},
    ),
    (
        "slow network beside a small model",
        {
            f'hearth_sync_seconds_sum{{{ROOT},phase="decode"}}': "0+36x60",
            f'hearth_step_seconds_count{{{ROOT},phase="decode"}}': "0+4000x60",
        },
        set(),
    ),
    ("memory", {f"hearth_memory_available_bytes{{{ROOT}}}": "60x60"}, {"HearthMemoryLow"}),
    (
        "versions",
        {
            f'hearth_build_info{{{WORKER},version="1.2"}}': None,
            f'hearth_build_info{{{WORKER},version="1.3"}}': "1x60",
        },
        {"HearthVersionsDiffer"},
    ),
]


def test_there_is_a_fault_for_every_alert() -> None:
    assert set().union(*(names for _, _, names in FAULTS)) == set(alerts())


@needs_promtool
def test_each_alert_fires_for_its_fault_and_for_no_other(tmp_path: Path) -> None:
    groups = []
    for name, changes, firing in FAULTS:
        series = {key: values for key, values in (HEALTHY | changes).items() if values}
        expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
        groups.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "45m",
                        "exp_samples": expected,
                    }
                ],
            }
        )
    # JSON is YAML.
    file = tmp_path / "alerts_test.yml"
    rules = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": groups}
    file.write_text(json.dumps(rules))
    promtool("test", "rules", file)


@needs_promtool
def test_the_test_of_alerts_can_fail(tmp_path: Path) -> None:
    """An alert that fires where none is expected is a failure of promtool's."""
    file = tmp_path / "alerts_test.yml"
    group = {
        "interval": "1m",
        "input_series": [{"series": f"up{{{ROOT}}}", "values": "0x60"}],
        "promql_expr_test": [
            {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "45m", "exp_samples": []}
        ],
    }
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": [group]}))
    with pytest.raises(AssertionError, match="HearthRootDown"):
        promtool("test", "rules", file)


def test_folders_on_the_host_are_made_before_they_are_filled() -> None:
    """In the commands that people copy: `tar -C` and `>` do not make folders."""
    text = (COMPOSE / "README.md").read_text()
    filled = 0
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        made: set[str] = set()
        for line in block.splitlines():
            made |= set(re.findall(r"mkdir -p (\S+)", line))
            for folder in re.findall(r"(?:tar -x -C |> ?)(~/[^\s/]+)", line):
                assert folder in made, line
                filled += 1
    assert filled
