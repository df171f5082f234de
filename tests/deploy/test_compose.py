"""The image, and compose.yaml with three workers and a Prometheus, for real.

`make deploy-test` runs this: it needs a container engine with Compose, and takes minutes. All of it
is removed after but the images, so that the next run is quick.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from compose_stack import (
    PROMETHEUS_DOCKERFILE,
    PROMETHEUS_IMAGE,
    WAIT_SECONDS,
    WORKERS,
    Stack,
    docker,
    eventually,
    inspect,
)
from compose_stack import run as run_command
from harness import free_port
from monitoring import TOP, alerts, expressions, metric_names

# Not in the default run.
__test__ = bool(os.environ.get("HEARTH_DEPLOY_TEST"))

IMAGE = "hearth:deploy-test"
PROMPT = "Once upon a time"
# Past the demo's own end, so that it takes long enough for something to happen on the way.
LONG = ("--prompt", PROMPT, "--max-tokens", "480", "--ignore-eos")
# What the fixtures run has limits of its own: the image takes as long as the core to compile.
pytestmark = pytest.mark.timeout(600, func_only=True)


@pytest.fixture(scope="module")
def image() -> str:
    """The image, built from this checkout."""
    return os.environ.get("HEARTH_DEPLOY_IMAGE", "") or build(IMAGE)


@pytest.fixture(scope="module")
def vulkan_image(image: str) -> str:
    """The variant with Vulkan's drivers; all its other layers are the image's."""
    given = os.environ.get("HEARTH_DEPLOY_VULKAN_IMAGE", "")
    return given or build(f"{IMAGE}-vulkan", "--build-arg", "VARIANT=vulkan")


def build(name: str, *arguments: str) -> str:
    """Builds the image from this checkout; its name."""
    started = time.monotonic()
    dockerfile = str(TOP / "deploy" / "docker" / "Dockerfile")
    command = ("docker", "build", "-f", dockerfile, *arguments, "-t", name, str(TOP))
    run_command(*command, seconds=1500)
    size, base = (inspect(each)["Size"] for each in (name, "debian:bookworm-slim"))
    print(
        f"\n{name}: {size / 1e6:.0f} MB, of which {base / 1e6:.0f} MB are its base; "
        f"built in {time.monotonic() - started:.0f} s"
    )
    return name


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    """Root, three workers and Prometheus, serving."""
    run_command(
        "docker", "build", "-t", PROMETHEUS_IMAGE, "-", input=PROMETHEUS_DOCKERFILE, seconds=600
    )
    made = Stack(image)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def expected(image: str) -> str:
    """The text that as many nodes make where nothing happens to them."""
    nodes = str(1 + WORKERS)
    arguments = ("generate", "--model", "demo", "--nodes", nodes, "--threads", "1", "--json")
    answer = json.loads(docker("run", "--rm", "--network", "none", image, *arguments, *LONG))
    return PROMPT + str(answer["text"])


def generate(stack: Stack) -> str:
    return str(stack.client("generate", *LONG).stdout.rstrip("\n"))


# -- the image -------------------------------------------------------------------------------------


def test_the_image_does_something_at_once_with_nothing_writable(image: str) -> None:
    options = ("--rm", "--read-only", "--network", "none", "--cap-drop", "ALL")
    arguments = ("generate", "--model", "demo", "--prompt", PROMPT, "--max-tokens", "16")
    assert docker("run", *options, image, *arguments).startswith(f"{PROMPT}, there was")


def test_the_image_holds_no_tools_to_build_with(image: str) -> None:
    script = "for tool in cc gcc g++ make cmake ninja pip; do command -v $tool; done; id -u"
    assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", script) == "10001"
    config = inspect(image)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["hearth"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "hearth", "healthcheck"]
    assert config["Labels"]["org.opencontainers.image.title"] == "Hearth"


def test_a_service_that_would_be_open_to_everybody_does_not_start(image: str) -> None:
    arguments = ("root", "--model", "demo", "--listen", "0.0.0.0:7716")
    done = run_command("docker", "run", "--rm", image, *arguments, check=False)
    assert done.returncode != 0
    assert "--tls" in done.stderr and "--insecure" in done.stderr


def test_health_is_no_where_nothing_serves(image: str) -> None:
    done = run_command("docker", "run", "--rm", image, "healthcheck", check=False)
    assert done.returncode == 1
    assert "127.0.0.1:7719" in done.stderr


# -- its variant for GPUs --------------------------------------------------------------------------


def test_the_image_without_drivers_says_what_is_missing(image: str) -> None:
    arguments = ("generate", "--model", "demo", "--prompt", PROMPT, "--device", "vulkan")
    done = run_command("docker", "run", "--rm", image, *arguments, check=False)
    assert done.returncode != 0
    assert "Vulkan finds no GPU, or no driver of one" in done.stderr


def test_a_worker_on_a_gpu_tells_the_same_story(vulkan_image: str) -> None:
    """A worker in the variant computes by Mesa's lavapipe; the root is in another container."""
    asked = ("--model", "demo", "--prompt", PROMPT, "--max-tokens", "200", "--temperature", "0")
    alone = docker(
        *("run", "--rm", "--network", "none", vulkan_image),
        *("generate", *asked, "--nodes", "2", "--threads", "1"),
    )
    assert len(alone) > 400
    network = worker = f"hearthtest{os.getpid()}gpu"
    docker("network", "create", "--internal", network)
    try:
        docker(
            *("run", "--detach", "--name", worker, "--network", network, "--cap-drop", "ALL"),
            *("--read-only", "--tmpfs", "/tmp", vulkan_image),
            *("worker", "--listen", "0.0.0.0:7717", "--insecure", "--device", "vulkan"),
            *("--cache-dir", "none"),
        )
        # The name's owner is known as soon as the container runs; its port when it listens.
        eventually("a worker that listens", lambda: "listening" in logs(worker))
        told = docker(
            *("run", "--rm", "--network", network, vulkan_image),
            *("generate", *asked, "--workers", f"{worker}:7717", "--insecure", "--threads", "1"),
        )
        assert told == alone
        assert "Failed to create" not in logs(worker)  # Mesa's cache has its place
    finally:
        run_command("docker", "rm", "--force", worker, check=False)
        docker("network", "rm", network)


def logs(container: str) -> str:
    """All that a container wrote."""
    done = run_command("docker", "logs", container)
    return done.stdout + done.stderr


# -- the cluster -----------------------------------------------------------------------------------


def test_the_demo_tells_its_story(stack: Stack, expected: str) -> None:
    assert generate(stack) == expected


def test_the_planner_sees_what_the_containers_may_use(stack: Stack) -> None:
    root, *workers = stack.cluster()["nodes"]
    assert int(root["info"]["memory_total_bytes"]) == 768 << 20
    assert len(workers) == WORKERS
    for node in workers:
        assert int(node["info"]["memory_total_bytes"]) == 640 << 20
        # 256 MiB are kept for the process itself.
        assert 64 << 20 < int(node["info"]["memory_available_bytes"]) <= 384 << 20
        assert (node["info"]["cores"], node["info"]["threads"]) == (1, 1)


def test_containers_can_do_no_more_than_they_must(stack: Stack) -> None:
    for service in ("root", "worker"):
        for container in stack.containers(service):
            facts = inspect(container)
            assert facts["State"]["Health"]["Status"] in ("healthy", "starting")
            assert facts["Config"]["User"] == "10001:10001"
            host = facts["HostConfig"]
            assert host["ReadonlyRootfs"] is True
            assert host["CapDrop"] == ["ALL"]
            assert host["SecurityOpt"] == ["no-new-privileges:true"]
            assert host["RestartPolicy"]["Name"] == "unless-stopped"
            for place in ("/opt", "/etc/hearth/tls", "/models"):
                touched = run_command(
                    "docker", "exec", container, "touch", f"{place}/x", check=False
                )
                assert touched.returncode != 0, place
            status = docker("exec", container, "grep", "CapEff", "/proc/1/status")
            assert int(status.split()[1], 16) == 0
    (root,) = stack.containers("root")
    files = docker("exec", root, "ls", "/etc/hearth/tls").split()
    assert files == ["ca.crt", "tls.crt", "tls.key", "token"]
    mode = docker("exec", root, "stat", "-c", "%a %u", "/etc/hearth/tls/tls.key")
    assert mode == "600 10001"


def test_workers_have_no_way_out(stack: Stack) -> None:
    worker = stack.containers("worker")[0]
    (network,) = inspect(worker)["NetworkSettings"]["Networks"]
    assert network == f"{stack.project}_cluster"
    assert inspect(network)["Internal"] is True
    assert not inspect(worker)["HostConfig"]["PortBindings"]


# -- Prometheus ------------------------------------------------------------------------------------


@pytest.fixture
def traffic(stack: Stack) -> Iterator[None]:
    """One request after another."""
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            stack.client("generate", "--prompt", PROMPT, "--max-tokens", "60", check=False)

    thread = threading.Thread(target=ask, name="traffic")
    thread.start()
    yield
    stopping.set()
    thread.join()


def test_every_target_is_scraped(stack: Stack, traffic: None) -> None:
    def healthy() -> list[str] | None:
        targets = stack.prometheus("targets")["activeTargets"]
        jobs = sorted(t["labels"]["job"] for t in targets if t["health"] == "up")
        return jobs if len(jobs) == len(targets) == 1 + WORKERS else None

    jobs = eventually("every target up", healthy)
    assert jobs == ["hearth-root", *["hearth-worker"] * WORKERS]


def test_every_panel_shows_something(stack: Stack, traffic: None) -> None:
    """With traffic, every expression of the dashboard has a value; `faults` come further down."""
    lacking: list[tuple[str, str]] = []

    def all_answered() -> bool:
        lacking[:] = [
            (title, expression)
            for title, expression in expressions()
            if title != "Began to serve"
            and not stack.query(expression.replace("$__rate_interval", "1m"))
        ]
        return not lacking

    try:
        eventually("a value for each", all_answered)
    except AssertionError:
        raise AssertionError(f"nothing for {lacking}") from None
    # And not just something: what the traffic must have made of them.
    serving = 'hearth_cluster_serving == 1 and on (instance) hearth_workers{state="serving"} == %d'
    eventually("the cluster's state", lambda: stack.query(serving % WORKERS))
    for name in ("compute", "sync"):
        rates = stack.query(f"rate(hearth_node_{name}_seconds_total[1m])")
        assert len(rates) == 1 + WORKERS
        assert all(rate > 0 for rate in rates), (name, rates)
    # f32 syncs of 256 numbers, twice in each of 5 layers, to three others: 10 syncs of 1 KiB parts
    # from 4 nodes, and logits besides.
    sent = dict(expressions())["Bytes per token"].replace("$__rate_interval", "1m")
    assert 4 * 10 * 1024 < stack.total(sent) < 100 * 4 * 10 * 1024


def test_no_alert_fires_where_all_is_well(stack: Stack, traffic: None) -> None:

    def others() -> list[tuple[str, str, str]]:
        (group,) = stack.prometheus("rules")["groups"]
        assert {rule["name"] for rule in group["rules"]} == set(alerts())
        return [
            (rule["name"], rule["health"], rule["state"])
            for rule in group["rules"]
            if (rule["health"], rule["state"]) != ("ok", "inactive")
        ]

    # The cluster was forming a moment ago, and rules are looked at every 15 seconds.
    with suppress(AssertionError):
        eventually("every rule inactive", lambda: not others())
    assert others() == []
    # Inactive because all is well, not because what it reads is not there.
    for name, rule in alerts().items():
        for metric in metric_names(rule["expr"]):
            assert stack.query(metric), (name, metric)


# -- faults ----------------------------------------------------------------------------------------


def test_killed_workers_change_no_text(stack: Stack, expected: str) -> None:
    """HEARTH_KILLS times (3): at a random moment a random worker is killed, and started again."""
    stack.wait_until_serving()
    lost, formed = (stack.total(f"hearth_{name}_total") for name in ("worker_losses", "formations"))
    kills = int(os.environ.get("HEARTH_KILLS", "3"))
    chance = random.Random(4)
    pauses = []
    for _ in range(kills):
        telling = stack.begin_client("generate", *LONG)
        telling.until(chance.randrange(40, len(expected) * 3 // 4))
        victim = chance.choice(stack.containers("worker"))
        docker("kill", victim)
        # The engine does not restart what its owner killed.
        docker("start", victim)
        assert telling.finish() == expected
        pauses.append(telling.longest_pause)
        stack.wait_until_serving()
    print(f"\n{kills} kills, longest pauses: {', '.join(f'{p:.1f}' for p in sorted(pauses))} s")
    eventually("losses counted", lambda: stack.total("hearth_worker_losses_total") > lost)
    eventually("formings counted", lambda: stack.total("hearth_formations_total") > formed)
    assert stack.total("hearth_pause_seconds_count") > 0
    now = time.time()
    told = stack.prometheus(
        "query_range",
        query=dict(expressions())["Began to serve"],
        start=str(now - 120),
        end=str(now),
        step="5",
    )
    assert told["result"], "the dashboard's annotation shows nothing of it"
    assert generate(stack) == expected


def test_a_crashed_worker_is_started_again(stack: Stack, expected: str) -> None:
    stack.wait_until_serving()
    telling = stack.begin_client("generate", *LONG)
    telling.until(80)
    victim = stack.containers("worker")[0]
    os.kill(inspect(victim)["State"]["Pid"], signal.SIGKILL)
    assert telling.finish() == expected
    eventually("a restart", lambda: inspect(victim)["RestartCount"] == 1)
    stack.wait_until_serving()


def test_text_goes_on_without_a_worker_that_is_gone_for_good(stack: Stack, expected: str) -> None:
    stack.wait_until_serving()
    telling = stack.begin_client("generate", *LONG)
    telling.until(80)
    docker("rm", "--force", stack.containers("worker")[0])
    assert telling.finish() == expected
    print(f"\ngone for good, longest pause: {telling.longest_pause:.1f} s")
    stack.wait_until_serving(workers=WORKERS - 1)
    stack.up()  # and in comes a new one


def test_a_worker_stopped_on_purpose_is_not_waited_for(stack: Stack, expected: str) -> None:
    stack.wait_until_serving()
    telling = stack.begin_client("generate", *LONG)
    telling.until(80)
    victim = stack.containers("worker")[0]
    docker("stop", victim)  # with the time that compose.yaml gives it
    assert telling.finish() == expected
    assert inspect(victim)["State"]["ExitCode"] == 0
    print(f"\nstopped on purpose, longest pause: {telling.longest_pause:.1f} s")
    assert telling.longest_pause < WAIT_SECONDS
    docker("start", victim)
    stack.wait_until_serving()


def test_a_stopped_root_lets_its_requests_end(stack: Stack, expected: str) -> None:
    stack.wait_until_serving()
    telling = stack.begin_client("generate", *LONG)
    telling.until(80)
    (root,) = stack.containers("root")
    docker("stop", "--time", "30", root)
    assert telling.finish() == expected
    assert inspect(root)["State"]["ExitCode"] == 0
    docker("start", root)
    stack.wait_until_serving()


def test_containers_made_anew_find_their_weights(stack: Stack, expected: str) -> None:
    stack.down(volumes=False)
    stack.up()
    _, *workers = stack.cluster()["nodes"]
    for node in workers:
        assert int(node.get("weight_bytes_from_network", 0)) == 0
        assert int(node["weight_bytes_from_cache"]) == int(node["weight_bytes"]) > 1 << 20
    assert generate(stack) == expected


def test_a_worker_of_another_machine_joins(stack: Stack, expected: str) -> None:
    """The recipe for several machines; this one, with worker.yaml, is the other too."""
    ports = [str(free_port()) for _ in range(3)]
    lan = Stack(
        stack.image,
        "worker.yaml",
        dict(zip(("HEARTH_PORT", "HEARTH_MESH_PORT", "HEARTH_METRICS_PORT"), ports, strict=True)),
    )
    (gateway,) = {
        config["Gateway"] for config in inspect(f"{stack.project}_clients")["IPAM"]["Config"]
    }
    bundle = stack.compose_bytes(
        "run",
        "--rm",
        "-T",
        "--no-deps",
        "--entrypoint",
        "tar",
        "certs",
        "-C",
        "/etc/hearth/certs/worker",
        "-c",
        ".",
    )
    try:
        lan.compose_bytes("--profile", "setup", "run", "--rm", "-T", "join", given=bundle)
        lan.compose("up", "--detach", "--no-build", "worker")
        # The root now takes in this worker, and no other.
        address = f"{gateway}:{ports[0]}"
        stack.environ |= {
            "HEARTH_WORKERS": address,
            "HEARTH_WORKERS_DNS": "",
            "HEARTH_MIN_WORKERS": "1",
        }
        stack.compose("up", "--detach", "--no-build", "--no-deps", "root")
        status = stack.wait_until_serving(workers=1)
        assert status["nodes"][1]["address"] == address
        two = stack.client("generate", "--prompt", PROMPT, "--max-tokens", "60").stdout
        assert expected.startswith(two.rstrip("\n"))
    finally:
        lan.down()
