"""Measured speeds: kept on disk, in messages, and beside what a plan was expected to do."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth import _native
from hearth.cli import cluster
from hearth.common import devices, system
from hearth.common import speeds as module
from hearth.common.errors import HearthError
from hearth.common.speeds import Speeds, speeds_here, speeds_message, speeds_of
from hearth.converter.readers.random import RandomModel, random_spec
from hearth.root.cluster import measuring
from hearth.root.cluster.measuring import Root
from hearth.root.planning.blueprint import Blueprint, draw
from hearth.root.planning.catalogue import CATALOGUE, LINKS
from hearth.root.planning.drift import Drift
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.machines import Machine
from hearth.root.planning.predict import Prediction
from hearth.root.settings import ClusterSettings
from hearth.root.status import describe
from hearth.v1 import common_pb2, root_pb2

KNOWN = Speeds(20e9, 100e9, 60e9, 1e-5, 1e9)


KINDS = ("discrete", "integrated", "cpu")
IDS = tuple(f"vulkan:{number}" for number in range(len(KINDS)))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of each kind on this machine."""
    found = [
        SimpleNamespace(id=id, name=f"A {kind} GPU", kind=kind, memory_bytes=8 << 30)
        for id, kind in zip(IDS, KINDS, strict=True)
    ]
    monkeypatch.setattr(_native, "list_devices", lambda: found)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Measurements of the machine so far."""
    done: list[int] = []

    def measured(threads: int, directory: Path | None, pin: object, device: str) -> Speeds:
        done.append(threads)
        return replace(KNOWN, layer_seconds=float(len(done)))

    monkeypatch.setattr(module, "_measured", measured)
    monkeypatch.setattr(module, "_busy", lambda: False)
    return lambda: len(done)


def test_measured_once_for_each_count_of_threads(tmp_path: Path, count: Callable[[], int]) -> None:
    assert speeds_here(2, tmp_path, may_measure=False) is None
    first = speeds_here(2, tmp_path)
    assert first is not None
    assert first.layer_seconds == 1
    assert speeds_here(2, tmp_path) == speeds_here(2, tmp_path, may_measure=False) == first
    assert count() == 1
    assert speeds_here(3, tmp_path) != first
    again = speeds_here(2, tmp_path, again=True)
    assert again == speeds_here(2, tmp_path)
    assert count() == 3


def test_speeds_of_a_busy_machine_are_kept_for_a_while(
    tmp_path: Path, count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_busy", lambda: True)
    first = speeds_here(2, tmp_path)
    assert speeds_here(2, tmp_path) == first
    (file,) = (tmp_path / "speeds").glob("*.busy")
    os.utime(file, (1, 1))
    assert speeds_here(2, tmp_path) != first
    assert count() == 2
    assert not list((tmp_path / "speeds").glob("*.json"))


def test_each_device_is_measured_by_itself(
    tmp_path: Path, count: Callable[[], int], gpus: None
) -> None:
    found = [speeds_here(2, tmp_path, device=device) for device in ("cpu", *IDS, *IDS)]
    assert count() == 1 + len(IDS)
    assert found[1 : 1 + len(IDS)] == found[1 + len(IDS) :]
    with pytest.raises(HearthError, match="--device vulkan:9 is not there"):
        speeds_here(2, tmp_path, device="vulkan:9")


def test_nothing_is_kept_without_a_folder(count: Callable[[], int]) -> None:
    assert speeds_here(2, None, may_measure=False) is None
    assert speeds_here(2, None) is not None
    assert count() == 1


@given(st.binary(max_size=100) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(
    lambda value: json.dumps(value).encode()
))  # fmt: skip
def test_any_damage_of_a_kept_file_is_measured_again(content: bytes) -> None:
    assert module._parsed(content) is None


@pytest.mark.parametrize("name", list(asdict(KNOWN)))
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_absurd_speeds_of_a_worker_do_not_count(name: str, value: float) -> None:
    assert speeds_of(speeds_message(replace(KNOWN, **{name: value}))) is None


def test_speeds_of_a_message() -> None:
    assert speeds_of(speeds_message(KNOWN)) == KNOWN
    assert speeds_of(root_pb2.ClusterNode().info.speeds) is None


WORKERS = ("a:1", "b:1")


def blueprint(shape: str = "tinyllama-1.1b", **given_settings: object) -> Blueprint:
    model = RandomModel(random_spec(shape))
    known = ClusterSettings(workers=WORKERS, **given_settings)  # type: ignore[arg-type]
    return draw(model, known)


def machines(link: str, kind: str = "pc-ddr4") -> list[Machine]:
    return [replace(CATALOGUE[kind], name=name, link=LINKS[link]) for name in ("root", "a", "b")]


def predicted(found: Blueprint) -> Prediction:
    prediction = found.prediction(found.plan(WORKERS), WORKERS, None)
    assert prediction is not None
    return prediction


def test_slow_links_choose_stages_and_say_so() -> None:
    found = blueprint()
    assert found.prediction(found.plan(WORKERS), WORKERS, None) is None
    found.measured(WORKERS, machines("weak-wifi"))
    assert found.layout(WORKERS).ranks == (1, 1, 1)
    assert any(note.startswith("layout pipeline: ") for note in found.plan(WORKERS).notes)
    assert predicted(found).layout == found.layout(WORKERS)
    # Other workers were not measured.
    assert found.layout(("a:1",)).ranks == (2,)


def test_fast_links_keep_one_stage() -> None:
    found = blueprint()
    found.measured(WORKERS, machines("10-gigabit", "pi5"))
    assert found.layout(WORKERS).ranks == (3,)
    found.measured(WORKERS, machines("weak-wifi"))
    found.measured(WORKERS, machines("10-gigabit", "pi5"))
    assert found.layout(WORKERS).ranks == (3,)


def test_a_given_layout_stays() -> None:
    found = blueprint(parallel="tensor")
    found.measured(WORKERS, machines("weak-wifi"))
    assert found.layout(WORKERS).ranks == (3,)


def slow(link: str = "weak-wifi", count: int = 1) -> list[Machine]:
    """A root and a worker on fast links; the last ones slow, and far away."""
    found = machines("10-gigabit")
    for i in range(3 - count, 3):
        found[i] = replace(found[i], read_bandwidth=1e9, prefill_rate=5e9, link=LINKS[link])
    return found


def facts(*rooms: int) -> list[NodeFacts]:
    names = [address.partition(":")[0] for address in WORKERS]
    return [
        NodeFacts(name, room, address)
        for name, room, address in zip(names, rooms, WORKERS, strict=True)
    ]


GIB = 1 << 30


def test_a_worker_that_slows_requests_is_left_out() -> None:
    found = blueprint()
    roomy = facts(8 * GIB, 8 * GIB)
    assert found.left_out(roomy) is None  # nothing was measured
    found.measured(WORKERS, slow())
    left_out = found.left_out(roomy)
    assert left_out is not None
    assert left_out.workers == ("b:1",)
    assert re.match(
        r"left out: a request is expected to take \S+ s with it, and \S+ s without",
        left_out.reason,
    )
    # The others are worth having.
    assert found.left_out(roomy[:1]) is None
    # A restarted one is measured again.
    found.to_measure(WORKERS)
    assert not found.to_measure(WORKERS)
    found.forget("b:1")
    assert found.to_measure(WORKERS)
    assert found.left_out(roomy) is None


def test_several_slow_workers_are_left_out_together() -> None:
    """Without one of them, the other still slows requests."""
    found = blueprint()
    found.measured(WORKERS, slow(count=2))
    left_out = found.left_out(facts(8 * GIB, 8 * GIB))
    assert left_out is not None
    assert left_out.workers == WORKERS


def test_a_slow_worker_is_used_for_its_memory() -> None:
    """Of 1.1 GiB, and room for four sequences, half of it on the root."""
    found = blueprint(memory_limit=700 << 20)
    found.measured(WORKERS, [replace(each, memory_bytes=700 << 20) for each in slow(count=2)])
    assert found.left_out(facts(700 << 20, 700 << 20)) is None


def test_equal_machines_are_all_used() -> None:
    found = blueprint()
    found.measured(WORKERS, machines("10-gigabit", "pi5"))
    assert found.left_out(facts(8 * GIB, 8 * GIB)) is None
    assert found.slowing(WORKERS) == []


def test_where_requests_are_fast_all_workers_are_used() -> None:
    """At 100 times the speed, the same machines take under two seconds."""
    found = blueprint()
    fast = [
        replace(
            each,
            read_bandwidth=100 * each.read_bandwidth,
            few_rows_rate=100 * each.few_rows_rate,
            prefill_rate=100 * each.prefill_rate,
            link=LINKS["10-gigabit"],
        )
        for each in slow()
    ]
    found.measured(WORKERS, fast)
    assert found.left_out(facts(8 * GIB, 8 * GIB)) is None


@pytest.mark.parametrize(
    "given",
    [
        {"use_all_workers": True},
        {"parallel": "tensor"},
        {"shares": (1.0, 1.0, 1.0)},
        {"stages": (8, 7, 7)},
    ],
    ids=str,
)
def test_options_that_name_all_workers_use_them_and_say_what_it_costs(
    given: dict[str, object],
) -> None:
    found = blueprint("tinyllama-1.1b", **given)
    found.measured(WORKERS, slow())
    assert found.left_out(facts(8 * GIB, 8 * GIB)) is None
    (sentence,) = found.slowing(WORKERS)
    assert sentence.startswith("without b a request would take 0.")
    assert "hearth cluster drain" in sentence


def test_measured_speeds_choose_shares() -> None:
    """A worker of half the speed is worth having, with half the share."""
    found = blueprint()
    uneven = machines("10-gigabit", "pi5")
    last = uneven[2]
    uneven[2] = replace(
        last,
        read_bandwidth=last.read_bandwidth / 2,
        few_rows_rate=last.few_rows_rate / 2,
        prefill_rate=last.prefill_rate / 2,
    )
    found.measured(WORKERS, uneven)
    plan = found.plan(WORKERS)
    assert any(note.endswith("by the nodes' measured speeds") for note in plan.notes)
    sizes = [node.weight_bytes for node in plan.nodes]
    assert sizes[2] < 0.7 * sizes[1]
    given = blueprint(shares=(1.0, 1.0, 1.0))
    given.measured(WORKERS, uneven)
    assert not any("measured speeds" in note for note in given.plan(WORKERS).notes)


def drift() -> tuple[Drift, Prediction]:
    found = blueprint()
    found.measured(WORKERS, machines("gigabit"))
    prediction = predicted(found)
    return Drift(prediction), prediction


def feed(found: Drift, times: list[float]) -> list[bool]:
    return [found.add(0.02, [(seconds, 0.001) for seconds in times]) for _ in range(32)]


def test_a_node_that_computes_twice_as_long_is_named_once() -> None:
    found, prediction = drift()
    times = list(prediction.node_seconds)
    times[1] *= 2.5
    assert found.decode == 0
    assert feed(found, times) == [False] * 31 + [True]
    (sentence,) = found.suspects()
    assert sentence.startswith("a computes ")
    assert "busy or throttled" in sentence
    assert found.suspects() == []
    assert found.decode == pytest.approx(50)


def test_a_probe_that_was_too_low_is_named() -> None:
    found, prediction = drift()
    feed(found, [seconds / 3 for seconds in prediction.node_seconds])
    assert len(found.suspects()) == 3


@settings(max_examples=20)
@given(st.lists(st.floats(0.6, 1.8), min_size=3, max_size=3))
def test_nodes_near_their_prediction_are_not_named(factors: list[float]) -> None:
    found, prediction = drift()
    pairs = zip(prediction.node_seconds, factors, strict=True)
    feed(found, [seconds * factor for seconds, factor in pairs])
    assert found.suspects() == []


def test_steps_of_other_nodes_do_not_count() -> None:
    found, _ = drift()
    assert not any(feed(found, [0.01]))
    assert found.decode == 0


def test_predictions_are_shown() -> None:
    found = blueprint()
    found.measured(WORKERS, machines("gigabit"))
    prediction = predicted(found)
    status = root_pb2.ClusterStatus(state=root_pb2.CLUSTER_STATE_SERVING)
    assert not any("expected" in line for line in cluster.describe(status))
    status.prediction.CopyFrom(describe.prediction(prediction))
    shown = f"{prediction.decode:.3g} tokens/s expected, not measured yet"
    assert any(shown in line for line in cluster.describe(status))
    status.prediction.measured_decode_tokens_per_second = 12.34
    assert any("expected, measured 12.3;" in line for line in cluster.describe(status))
    assert f"expected: {prediction.decode:.3g} tokens/s" in describe.prediction_note(prediction)


def test_links_as_the_mesh_measured_them_count() -> None:
    found = blueprint(parallel="tensor")
    found.measured(WORKERS, machines("gigabit"))
    plan = found.plan(WORKERS)
    slow = replace(LINKS["gigabit"], latency_seconds=5e-3)
    one, other = predicted(found), found.prediction(plan, WORKERS, slow)
    assert other is not None
    # 22 layers of two syncs, the step and its answer: each 4.9 ms slower.
    added = other.transfer_seconds - one.transfer_seconds
    assert added == pytest.approx(46 * (5e-3 - 100e-6), rel=0.01)


class FakeLink:
    """A worker that measured itself, at 0.5 ms and 125 MB/s."""

    def __init__(self, address: str, speeds: Speeds | None = KNOWN) -> None:
        self.address = address
        self._speeds = speeds

    def measure_speeds(self) -> Speeds | None:
        return self._speeds

    def measure_seconds(self, sent: int, received: int) -> float:
        return 1e-3 + (sent + received) / 125e6


def measured_by_root(
    monkeypatch: pytest.MonkeyPatch, links: list[FakeLink], threads: int = 1
) -> list[Machine] | None:
    monkeypatch.setattr(measuring, "speeds_here", lambda *_, **__: KNOWN)
    monkeypatch.setattr(measuring, "_latency", lambda _: 0.0)
    infos = [
        common_pb2.NodeInfo(
            threads=1, memory_available_bytes=1 << 30, instruction_set=devices.kernels(devices.CPU)
        )
        for _ in links
    ]
    root = Root(2 << 30, threads)
    return measuring.measure(root, links, infos)  # type: ignore[arg-type]


def test_links_and_nodes_of_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_by_root(monkeypatch, [FakeLink("10.0.0.1:1"), FakeLink("10.0.0.2:1")])
    assert found is not None
    assert [each.host for each in found] == ["", "", ""]
    assert [each.memory_bytes >> 30 for each in found] == [2, 1, 1]
    for each in found:
        assert each.link.latency_seconds == pytest.approx(0.5e-3)
        assert each.link.send_bandwidth == pytest.approx(125e6)
        assert each.read_bandwidth == pytest.approx(KNOWN.read_bandwidth / 1.1)


def test_nodes_of_this_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker here needs no speeds of its own.
    links = [FakeLink("127.0.0.1:1", None), FakeLink("10.0.0.2:1")]
    found = measured_by_root(monkeypatch, links)
    assert found is not None
    assert [bool(each.host) for each in found] == [True, True, False]
    assert found[0].host_bandwidth == found[1].host_bandwidth > 0


def on_devices(
    monkeypatch: pytest.MonkeyPatch, chosen: list[str], threads: int = 1
) -> list[Machine]:
    """Nodes of this machine on such devices, the root's first; GPUs read faster by their number."""

    def known(threads: int, *_: object, device: str = "cpu", **__: object) -> Speeds:
        number = 0 if device == "cpu" else 1 + IDS.index(device)
        return replace(KNOWN, read_bandwidth=1e9 * threads * 10**number)

    monkeypatch.setattr(measuring, "speeds_here", known)
    monkeypatch.setattr(measuring, "_latency", lambda _: 0.0)
    monkeypatch.setattr(system, "cores", lambda: 4)
    infos = [
        common_pb2.NodeInfo(threads=threads, instruction_set=devices.kernels(device))
        for device in chosen[1:]
    ]
    links = [FakeLink(f"127.0.0.1:{number}", None) for number, _ in enumerate(infos, 1)]
    root = Root(2 << 30, threads, device=chosen[0])
    found = measuring.measure(root, links, infos)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_gpu_with_memory_of_its_own_shares_none(
    monkeypatch: pytest.MonkeyPatch, gpus: None
) -> None:
    for chosen in (["cpu", IDS[0]], [IDS[0], "cpu"]):
        found = on_devices(monkeypatch, chosen)
        assert [each.host for each in found] == ["", ""]
        speeds = [each.read_bandwidth * 1.1 for each in found]
        assert speeds == pytest.approx([1e9 if device == "cpu" else 1e10 for device in chosen])


def test_nodes_on_one_gpu_share_it(monkeypatch: pytest.MonkeyPatch, gpus: None) -> None:
    found = on_devices(monkeypatch, [IDS[0], "cpu", IDS[0]])
    assert [bool(each.host) for each in found] == [True, False, True]
    assert found[0].host == found[2].host
    assert found[0].host_bandwidth == found[0].read_bandwidth
    assert found[0].host_nodes == 1


def test_a_gpu_without_memory_of_its_own_shares_that_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: None
) -> None:
    integrated = on_devices(monkeypatch, ["cpu", IDS[1]], threads=2)
    drawn = on_devices(monkeypatch, ["cpu", IDS[2]], threads=2)
    assert len({each.host for each in (*integrated, *drawn)} - {""}) == 1
    # Two nodes of two threads fit four cores, and the GPU has its own; the drawn one takes all.
    assert [integrated[0].host_nodes, drawn[0].host_nodes] == [3, 1]
    # The faster of both is what the memory gives at least.
    assert integrated[0].host_bandwidth == integrated[1].read_bandwidth


def test_a_gpu_that_is_not_here_measures_itself(
    monkeypatch: pytest.MonkeyPatch, gpus: None
) -> None:
    monkeypatch.setattr(measuring, "speeds_here", lambda *_, **__: KNOWN)
    own = replace(KNOWN, read_bandwidth=5e11, submit_seconds=4e-5)
    links = [FakeLink("127.0.0.1:1", own), FakeLink("10.0.0.1:1", own)]
    infos = [common_pb2.NodeInfo(instruction_set="vulkan:0 (Another GPU)") for _ in links]
    found = measuring.measure(Root(2 << 30, 1), links, infos)  # type: ignore[arg-type]
    assert found is not None
    assert [each.submit_seconds for each in found] == [0, 4e-5, 4e-5]
    assert [each.host for each in found] == ["", "", ""]


def test_a_gpu_is_handed_work_before_each_sync() -> None:
    found = blueprint(parallel="tensor")
    plan = found.plan(WORKERS)
    cpus = machines("gigabit")
    found.measured(WORKERS, cpus)
    before = predicted(found)
    found.measured(WORKERS, [replace(each, submit_seconds=1e-3) for each in cpus])
    assert found.plan(WORKERS) == plan
    after = predicted(found)
    # 22 layers of two syncs, and what follows the last one.
    assert after.compute_seconds - before.compute_seconds == pytest.approx(45e-3)
    one = blueprint(parallel="pipeline")
    one.measured(WORKERS, cpus)
    apart = predicted(one)
    one.measured(WORKERS, [replace(each, submit_seconds=1e-3) for each in cpus])
    assert predicted(one).compute_seconds - apart.compute_seconds == pytest.approx(3e-3)


def test_a_gpu_takes_most_of_a_model() -> None:
    from hearth.root.planning.predict import Choices
    from hearth.root.planning.search import Search

    model = RandomModel(random_spec("llama-3-8b"))
    search = Search(model.spec, model.tensor_type, Choices(context=1024))
    nodes = [replace(CATALOGUE[kind], name=kind) for kind in ("pc-ddr4", "rtx-3060")]
    best = search.best(nodes)
    assert best[0].machines == (nodes[1],) or best[0].shares[1] > 2 * best[0].shares[0]
    assert best[0].decode > 2 * search.best(nodes[:1])[0].decode


def test_no_prediction_without_the_speed_of_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_by_root(monkeypatch, [FakeLink("10.0.0.1:1", None)]) is None


def test_numbers_that_no_machine_has_do_not_count() -> None:
    message = speeds_message(KNOWN)
    for field, value in [
        ("read_bytes_per_second", 1e-310),
        ("prefill_products_per_second", 1e300),
        ("few_rows_products_per_second", math.inf),
        ("layer_seconds", 1e308),
        ("disk_bytes_per_second", -1.0),
        ("submit_seconds", 1e308),
    ]:
        changed = type(message)()
        changed.CopyFrom(message)
        setattr(changed, field, value)
        assert speeds_of(changed) is None, field


def test_a_fifo_among_kept_speeds_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "speeds"
    folder.mkdir()
    os.mkfifo(folder / f"{module._key(1, ())}.json")
    assert speeds_here(1, tmp_path, may_measure=False) is None


def test_a_set_of_workers_is_measured_once() -> None:
    model = RandomModel(random_spec("tinyllama-1.1b"))
    blueprint = draw(model, ClusterSettings(workers=("a:1", "b:1")))
    assert blueprint.to_measure(("a:1", "b:1"))
    assert not blueprint.to_measure(("a:1", "b:1"))
    machines = [replace(CATALOGUE["pi5"], name=name) for name in ("root", "a", "b")]
    blueprint.measured(("a:1", "b:1"), machines)
    # What is left of them after a loss is known.
    assert blueprint.known_machines(("b:1",)) == [machines[0], machines[2]]
    assert blueprint.known_machines(("c:1",)) is None


# -- other shares ----------------------------------------------------------------------------------


def test_shares_by_measured_speeds() -> None:
    found = blueprint("gpt2-xl", parallel="tensor")  # its heads allow fine cuts
    assert found.faster_shares(WORKERS, 0.05, (0.02, 0.02, 0.04)) is None  # not measured
    found.measured(WORKERS, machines("gigabit"))
    before = [node.weight_bytes for node in found.plan(WORKERS).nodes]
    taken = found.faster_shares(WORKERS, 0.05, (0.02, 0.02, 0.04))
    assert taken is not None
    shares, gain = taken
    # The third computes half as fast: 2 to 2 to 1, and the step loses 40 ms less what is left.
    assert shares[0] == pytest.approx(shares[1], abs=4)
    assert shares[2] / shares[1] == pytest.approx(0.5, abs=0.06)
    assert 1.2 < gain < 0.05 / (0.01 + 0.024)
    found.take_shares(WORKERS, shares)
    plan = found.plan(WORKERS)
    after = [node.weight_bytes for node in plan.nodes]
    assert after[2] < before[2]
    assert after[1] > before[1]
    assert any("by the nodes' measured speeds" in note for note in plan.notes)
    # Divided so, they take the same time, and nothing more is gained.
    assert found.faster_shares(WORKERS, 0.036, (0.025, 0.025, 0.026)) is None
    assert len({node.weight_bytes for node in found.plan(("a:1",)).nodes[1:]}) == 1


@pytest.mark.parametrize(
    ("step", "seconds"),
    [
        (0.05, (0.02, 0.02, 0.021)),  # even
        (1.00, (0.02, 0.02, 0.040)),  # links take most of the time
        (0.05, (0.02, 0.02, 0.000)),
        (0.05, ()),
    ],
)
def test_nothing_to_gain_by_other_shares(step: float, seconds: tuple[float, ...]) -> None:
    found = blueprint()
    found.measured(WORKERS, machines("gigabit"))
    assert found.faster_shares(WORKERS, step, seconds) is None


def test_other_shares_fit_the_memory() -> None:
    found = blueprint()
    tight = machines("gigabit")
    needs = [node.weight_bytes for node in found.plan(WORKERS).nodes]
    tight[1] = replace(tight[1], memory_bytes=needs[1] + (64 << 20))
    found.measured(WORKERS, tight)
    assert found.faster_shares(WORKERS, 0.05, (0.02, 0.02, 0.04)) is None


def test_layers_are_not_cut_by_shares() -> None:
    found = blueprint(parallel="pipeline")
    found.measured(WORKERS, machines("gigabit"))
    assert found.faster_shares(WORKERS, 0.05, (0.02, 0.02, 0.04)) is None


def test_given_shares_stay() -> None:
    found = blueprint(shares=(2.0, 1.0, 1.0))
    found.measured(WORKERS, machines("gigabit"))
    before = found.plan(WORKERS)
    found.take_shares(WORKERS, (1.0, 1.0, 1.0))
    assert found.plan(WORKERS) == before


def test_shares_are_looked_at_ever_more_rarely() -> None:
    found, prediction = drift()
    times = list(prediction.node_seconds)
    looked = []
    for step in range(1, 1100):
        found.add(0.02, [(seconds, 0.001) for seconds in times])
        if found.due:
            looked.append(step)
    assert looked == [64, 128, 256, 512, 1024]
    assert found.node_seconds == tuple(times)
