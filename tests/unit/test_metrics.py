"""Each service exports its own metrics, and nothing of the other's."""

from prometheus_client import generate_latest

from hearth.common.metrics import Metrics, RootMetrics, WorkerMetrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Value of each series of a scrape, labels included in its name."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def names(metrics: Metrics) -> set[str]:
    return {name.partition("{")[0] for name in samples(metrics)}


def test_a_worker_exports_nothing_of_the_root() -> None:
    common = names(Metrics())
    root, worker = names(RootMetrics()), names(WorkerMetrics())
    assert common == root & worker
    assert worker - common == {"hearth_shard_weight_bytes_total"}
    assert {
        "hearth_inference_seconds_bucket",
        "hearth_time_to_first_token_seconds_bucket",
        "hearth_time_per_output_token_seconds_bucket",
        "hearth_tokens_total",
        "hearth_requests_total",
        "hearth_queue_depth",
        "hearth_running_sequences",
        "hearth_weight_bytes_total",
    } <= root - worker


def test_no_series_of_times_of_creation() -> None:
    metrics = RootMetrics()
    metrics.step("decode", 1, 1)
    assert not [name for name in names(metrics) if name.endswith("_created")]


def test_weights_are_counted_once_on_each_side() -> None:
    """A slice sent to a worker: the root counts it for the cluster, the worker for its shard."""
    root, worker = RootMetrics(), WorkerMetrics()
    root.weights("network", 100)
    worker.weights("network", 100)
    assert samples(root)['hearth_weight_bytes_total{source="network"}'] == 100
    assert samples(worker)['hearth_shard_weight_bytes_total{source="network"}'] == 100
    assert "hearth_weight_bytes_total" not in names(worker)


def test_phases_and_likely_outcomes_are_there_from_the_start() -> None:
    seen = samples(RootMetrics())
    assert seen['hearth_requests_total{outcome="queue_full"}'] == 0
    assert seen['hearth_step_seconds_count{phase="decode"}'] == 0
    assert seen['hearth_faults_total{reason="worker_lost"}'] == 0
