"""Metrics of the cluster, from statuses alone: events in, what a scrape shows out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving_fakes import BOS, ByteTokenizer, FakeRunner, Greedy, script

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.root.engine.engine import Engine
from hearth.root.engine.params import GenerateParams
from hearth.root.scheduling.batch import Limits
from hearth.root.status.observing import Observer
from hearth.v1 import root_pb2

SERVING = root_pb2.NODE_STATE_SERVING
LOST = root_pb2.NODE_STATE_LOST
READY = root_pb2.NODE_STATE_READY


def scrape(metrics: RootMetrics) -> dict[tuple[str, ...], float]:
    """Value by (name, label values in the order of their names)."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def observer(metrics: RootMetrics) -> Callable[[root_pb2.ClusterStatus], None]:
    """Shows an Observer one status after another."""
    shown: list[root_pb2.ClusterStatus] = []
    observe = Observer(metrics, lambda: shown[-1])

    def show(status: root_pb2.ClusterStatus) -> None:
        shown.append(status)
        observe(status)

    return show


def status(
    state: root_pb2.ClusterState.ValueType,
    *workers: tuple[str, root_pb2.NodeState.ValueType],
    epoch: int = 1,
) -> root_pb2.ClusterStatus:
    """A root and workers, ranks in the order given, 100 bytes of weights more for each."""
    made = root_pb2.ClusterStatus(state=state, epoch=epoch)
    for rank, (name, node_state) in enumerate([("local", SERVING), *workers]):
        node = made.nodes.add(address=name, state=node_state, weight_bytes=100 * (rank + 1))
        node.info.name = f"name-of-{name}"
        node.placement.rank = rank
    return made


def test_a_cluster_that_forms_loses_a_worker_and_serves_again() -> None:
    metrics = RootMetrics()
    observe = observer(metrics)
    assert scrape(metrics)[("hearth_cluster_serving",)] == 0
    observe(status(root_pb2.CLUSTER_STATE_FORMING, ("a", READY), ("b", READY)))
    seen = scrape(metrics)
    assert seen[("hearth_cluster_serving",)] == 0
    assert seen[("hearth_formations_total",)] == 0
    assert seen[("hearth_workers", "ready")] == 2

    for _ in range(2):  # a status that says the same again counts nothing again
        observe(status(root_pb2.CLUSTER_STATE_SERVING, ("a", SERVING), ("b", SERVING)))
    seen = scrape(metrics)
    assert seen[("hearth_cluster_serving",)] == 1
    assert seen[("hearth_formations_total",)] == 1
    assert (seen[("hearth_workers", "serving")], seen[("hearth_workers", "ready")]) == (2, 0)
    assert seen[("hearth_node_weight_bytes", "name-of-b", "2")] == 300

    for _ in range(2):
        observe(status(root_pb2.CLUSTER_STATE_DEGRADED, ("a", SERVING), ("b", LOST)))
    seen = scrape(metrics)
    assert seen[("hearth_cluster_serving",)] == 0
    assert seen[("hearth_worker_losses_total",)] == 1
    assert seen[("hearth_workers", "lost")] == 1

    observe(status(root_pb2.CLUSTER_STATE_SERVING, ("a", SERVING), ("b", SERVING), epoch=2))
    observe(status(root_pb2.CLUSTER_STATE_DEGRADED, ("a", LOST), ("b", LOST), epoch=2))
    seen = scrape(metrics)
    assert seen[("hearth_formations_total",)] == 2
    assert seen[("hearth_cluster_epoch",)] == 2
    assert seen[("hearth_worker_losses_total",)] == 3


def test_a_status_that_comes_late_does_not_stay() -> None:
    metrics = RootMetrics()
    newest = status(root_pb2.CLUSTER_STATE_SERVING, ("a", SERVING))
    observe = Observer(metrics, lambda: newest)
    observe(newest)
    observe(status(root_pb2.CLUSTER_STATE_FORMING, ("a", READY)))
    assert scrape(metrics)[("hearth_cluster_serving",)] == 1


def test_nodes_times_go_to_their_ranks_and_end_with_their_plan() -> None:
    metrics = RootMetrics()
    observe = observer(metrics)
    observe(status(root_pb2.CLUSTER_STATE_SERVING, ("a", SERVING), ("b", SERVING)))
    metrics.node_times([(0.5, 0.25), (0.125, 1.0), (0.0, 2.0)])
    metrics.node_times([(0.5, 0.25), (0.125, 1.0), (0.0, 2.0)])
    seen = scrape(metrics)
    assert seen[("hearth_node_compute_seconds_total", "name-of-local", "0")] == 1.0
    assert seen[("hearth_node_compute_seconds_total", "name-of-a", "1")] == 0.25
    assert seen[("hearth_node_sync_seconds_total", "name-of-b", "2")] == 4.0

    # A worker went for good: nobody is to see its figures stand still for ever.
    observe(status(root_pb2.CLUSTER_STATE_SERVING, ("b", SERVING), epoch=2))
    metrics.node_times([(0.5, 0.25), (3.0, 1.0)])
    seen = scrape(metrics)
    nodes = {key[1:] for key in seen if key[0] == "hearth_node_compute_seconds_total"}
    assert nodes == {("name-of-local", "0"), ("name-of-b", "1")}
    assert seen[("hearth_node_compute_seconds_total", "name-of-b", "1")] == 3.0


def test_tokens_requests_and_memory_are_counted_as_they_come() -> None:
    metrics = RootMetrics()
    metrics.first_token(0.5)
    metrics.next_token(0.002)
    metrics.next_token(7.0)
    seen = scrape(metrics)
    assert seen[("hearth_tokens_total", "completion")] == 3  # while the request still runs
    assert seen[("hearth_token_gap_seconds_count",)] == 2
    assert seen[("hearth_token_gap_seconds_bucket", "5.0")] == 1
    assert seen[("hearth_requests_total", "eos")] == 0
    metrics.request_done("EOS", 5, 3, 0.5, 7.002)
    metrics.request_done("WORKER_LOST", 5, 0, 0.0, 0.0)
    metrics.request_refused("QUEUE_FULL")
    metrics.fault("WORKER_LOST")
    seen = scrape(metrics)
    assert seen[("hearth_tokens_total", "completion")] == 3
    assert seen[("hearth_tokens_total", "prompt")] == 10
    for outcome in ("eos", "worker_lost", "queue_full"):
        assert seen[("hearth_requests_total", outcome)] == 1
    assert seen[("hearth_faults_total", "worker_lost")] == 1
    available = seen[("hearth_memory_available_bytes",)]
    assert 0 < available < seen[("hearth_memory_total_bytes",)]
    assert seen[("process_resident_memory_bytes",)] > 1 << 20
    assert math.isfinite(seen[("process_start_time_seconds",)])


def test_only_a_gpu_has_a_series_for_its_memory() -> None:
    metrics = RootMetrics()
    assert not [key for key in scrape(metrics) if key[0] == "hearth_gpu_memory_bytes"]
    metrics.gpu("vulkan:0 (A card)", "discrete", 24 << 30)
    seen = scrape(metrics)
    assert seen[("hearth_gpu_memory_bytes", "vulkan:0 (A card)", "discrete")] == 24 << 30


def test_the_engine_tells_how_long_requests_were_paused() -> None:
    metrics = RootMetrics()
    limits = Limits(context_size=16, max_pages=16, page_size=4, max_step_tokens=8, max_running=4)
    engine = Engine(FakeRunner(), ByteTokenizer(), limits, metrics=metrics, pause_seconds=60)
    engine.start()
    try:
        engine.resume()  # nothing was paused
        lost = HearthError(Reason.WORKER_LOST, "a worker was lost")
        assert engine.suspend(lost).wait(30)
        engine.resume()
        assert engine.suspend(lost, refuse=True).wait(30)  # refused, not paused
        engine.resume()
    finally:
        assert engine.stop(finish=False)
    seen = scrape(metrics)
    assert seen[("hearth_pause_seconds_count",)] == 1
    assert 0 <= seen[("hearth_pause_seconds_sum",)] < 60


def test_the_engine_tells_of_every_request(caplog: pytest.LogCaptureFixture) -> None:
    metrics = RootMetrics()
    limits = Limits(context_size=16, max_pages=16, page_size=4, max_step_tokens=8, max_running=4)
    runner = FakeRunner(script("Once", "H"))
    engine = Engine(runner, ByteTokenizer(), limits, metrics=metrics, sampler_factory=Greedy)
    engine.start()
    try:
        list(engine.generate(GenerateParams((BOS, ord("H")), 0)))
        list(engine.generate(GenerateParams((BOS, ord("H")), 2)))
        with pytest.raises(HearthError):
            list(engine.generate(GenerateParams((BOS,) * 17, 0)))
    finally:
        assert engine.stop(finish=False)
    seen = scrape(metrics)
    ended = {key[1]: value for key, value in seen.items() if key[0] == "hearth_requests_total"}
    assert {outcome: count for outcome, count in ended.items() if count} == {
        "eos": 1,
        "length": 1,
        "prompt_too_long": 1,
    }
    # "Once" and its end, then two tokens.
    assert seen[("hearth_tokens_total", "completion")] == 7
    assert seen[("hearth_token_gap_seconds_count",)] == 5
    assert seen[("hearth_time_to_first_token_seconds_count",)] == 2
    assert not [record for record in caplog.records if record.exc_info]
