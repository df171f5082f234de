"""All Prometheus metrics of both services. Names are listed here and nowhere else.

Base units, prefix `hearth_`, no label that grows with requests. Observed after a step's result has
been sent, never during the step. Each object has a registry of its own: two services fit in one
process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from hearth.common import system
from hearth.common.channels import refuse_exposed
from hearth.common.metrics_port import MetricsPort
from hearth.common.security import Security

# Each counter and histogram would have a second series, with the time at which it was made.
disable_created_metrics()  # type: ignore[no-untyped-call]

# A sync of one step over loopback takes tens of microseconds; over Wi-Fi, tens of milliseconds.
_FAST = (
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2.5e-3,
    5e-3,
    1e-2,
    2.5e-2,
    5e-2,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_SLOW = (5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 300.0)
# From a small model's token to the time in which a lost worker is replaced.
_GAPS = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Outcomes of requests and reasons of faults that exist from the start: a rate misses the event with
# which a series begins. Other reasons appear when they happen.
_OUTCOMES = ("eos", "length", "stop", "context", "cancelled")
_FAILURES = ("cluster_not_ready", "internal", "prompt_too_long", "queue_full", "worker_lost")
# Faces of the HTTP port.
_FACES = ("openai", "anthropic", "ollama", "llama-server", "page")
_FAULTS = ("deadline", "peer_lost", "unreachable", "worker_lost")


def phase_of(rows: int, output_rows: int) -> str:
    """Phase of a step on root and workers: "decode" if all its rows return logits, else "prefill".

    A sequence in decode has a row for its last token and one for each draft token.
    """
    return "decode" if output_rows == rows else "prefill"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node of the running plan; its rank is its place in the list."""

    name: str
    weight_bytes: int


class Metrics:
    """Metrics that both services export."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._http: MetricsPort | None = None
        self._sync = self._histogram(
            "hearth_sync_seconds", "Time that one step spent in its syncs.", _FAST, "phase"
        )
        self._step = self._histogram(
            "hearth_step_seconds", "Wall time of one step.", _FAST, "phase"
        )
        self._sent = self._counter("hearth_sent_bytes", "Bytes sent to other nodes.")
        self._received = self._counter("hearth_received_bytes", "Bytes received from other nodes.")
        self._pages = self._gauge("hearth_kv_pages", "Pages of KV cache.", "state")
        self._build = self._gauge(
            "hearth_build_info",
            "Always 1; the labels describe the running service.",
            *("version", "role", "instruction_set", "architecture"),
        )
        self._gpu = self._gauge(
            "hearth_gpu_memory_bytes",
            "Memory of the GPU that this node computes on; no series on a CPU.",
            *("gpu", "kind"),
        )
        self._gauge(
            "hearth_memory_total_bytes", "Memory of the machine or the container, the lower."
        ).set_function(system.memory_total)
        self._gauge(
            "hearth_memory_available_bytes", "Memory that can be taken now, within that limit."
        ).set_function(system.memory_available)
        self._stored_pages = self._counter(
            "hearth_stored_pages",
            "KV pages and snapshots on this node's disk: stored, fetched, missing, damaged, "
            "removed for others, dropped because the disk was slow or full.",
            "event",
        )
        self._stored_bytes = self._counter(
            "hearth_stored_page_bytes", "Bytes of these pages, written and read.", "direction"
        )
        # process_*: resident memory, CPU time, descriptors, start time.
        ProcessCollector(registry=self.registry)
        # Children exist from the start, so that a scrape before the first request shows zeros.
        for phase in ("prefill", "decode"):
            self._sync.labels(phase)
            self._step.labels(phase)
        for event in ("stored", "fetched", "missing", "damaged", "removed", "dropped"):
            self._stored_pages.labels(event)
        for direction in ("written", "read"):
            self._stored_bytes.labels(direction)

    def stored_page(self, event: str) -> None:
        """One KV page or snapshot on disk; `event` is one of those that `__init__` lists."""
        self._stored_pages.labels(event).inc()

    def stored_bytes(self, direction: str, count: int) -> None:
        """Bytes of KV pages; `direction` is "written" or "read"."""
        self._stored_bytes.labels(direction).inc(count)

    def build_info(self, role: str, version: str, instruction_set: str, architecture: str) -> None:
        """The running service; `role` is "root" or "worker"."""
        self._build.labels(version, role, instruction_set, architecture).set(1)

    def gpu(self, gpu: str, kind: str, memory_bytes: int) -> None:
        """The GPU that computes: its id and name, and "discrete", "integrated" and so on."""
        self._gpu.labels(gpu, kind).set(memory_bytes)

    def step(self, phase: str, wall_seconds: float, sync_seconds: float) -> None:
        """One step done; `phase` is that of `phase_of`."""
        self._step.labels(phase).observe(wall_seconds)
        self._sync.labels(phase).observe(sync_seconds)

    def traffic(self, sent_bytes: int, received_bytes: int) -> None:
        """Payload bytes of steps, syncs and weights since the last call."""
        self._sent.inc(sent_bytes)
        self._received.inc(received_bytes)

    def kv_pages(self, used: int, free: int) -> None:
        """Pages of KV cache, now."""
        self._pages.labels("used").set(used)
        self._pages.labels("free").set(free)

    def text(self) -> bytes:
        """All measurements in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def serve(self, address: str, security: Security | None = None, insecure: bool = False) -> int:
        """Answers GET /metrics on host:port; the port it has.

        With `security` by mutual TLS; without, beyond loopback only if `insecure`. Raises
        HearthError PORT_IN_USE, BAD_ADDRESS or INSECURE.
        """
        refuse_exposed("--metrics", address, security, insecure)
        self._http = MetricsPort(address, self.registry, security)
        return self._http.port

    def stop(self) -> None:
        """Ends `serve`, if it was called."""
        if self._http is not None:
            self._http.stop()
            self._http = None

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class WorkerMetrics(Metrics):
    """Metrics of a worker."""

    def __init__(self) -> None:
        super().__init__()
        self._weights = self._counter(
            "hearth_shard_weight_bytes",
            "Weight bytes that this worker's shard got, by source: the network or its cache.",
            "source",
        )
        for source in ("network", "cache"):
            self._weights.labels(source)

    def weights(self, source: str, size_bytes: int) -> None:
        """Weight bytes that this worker loaded; `source` is "network" or "cache"."""
        self._weights.labels(source).inc(size_bytes)


class RootMetrics(Metrics):
    """Metrics of a root: its requests, and the cluster as it sees it."""

    def __init__(self) -> None:
        super().__init__()
        self._inference = self._histogram(
            "hearth_inference_seconds", "A request's time in prefill and in decode.", _SLOW, "phase"
        )
        self._first_token = self._histogram(
            "hearth_time_to_first_token_seconds", "From a request to its first token.", _SLOW
        )
        self._per_token = self._histogram(
            "hearth_time_per_output_token_seconds",
            "Mean time between two tokens of one request.",
            _FAST,
        )
        self._gap = self._histogram(
            "hearth_token_gap_seconds", "Between two tokens of one request, pauses included.", _GAPS
        )
        self._pause = self._histogram(
            "hearth_pause_seconds", "From the loss of a worker until requests resumed.", _SLOW
        )
        self._tokens = self._counter("hearth_tokens", "Tokens of prompts and answers.", "kind")
        self._requests = self._counter(
            "hearth_requests", "Requests that ended, by outcome.", "outcome"
        )
        self._http_requests = self._counter(
            "hearth_http_requests",
            "HTTP requests, by face and status; 499: the client left before the answer began.",
            *("face", "status"),
        )
        self._preemptions = self._counter(
            "hearth_preemptions",
            "Sequences taken out of the batch because KV pages ran out; they are prefilled again.",
        )
        self._drafted = self._counter(
            "hearth_draft_tokens", "Draft tokens that speculation had verified."
        )
        self._accepted = self._counter(
            "hearth_accepted_draft_tokens", "Draft tokens that the model would have made itself."
        )
        self._draft_seconds = self._counter(
            "hearth_draft_seconds", "Time that the draft model computed, by the root's clock."
        )
        self._prefix_lookups = self._counter(
            "hearth_prefix_lookup_tokens", "Prompt tokens that the prefix cache was searched for."
        )
        self._prefix_hits = self._counter(
            "hearth_prefix_hit_tokens",
            "Prompt tokens whose KV pages were in the prefix cache: they were not computed.",
        )
        self._prefix_evictions = self._counter(
            "hearth_prefix_evicted_pages",
            "Pages of the prefix cache that were dropped: their place was needed, or nobody used "
            "them for half an hour.",
        )
        self._prefix_pages = self._gauge(
            "hearth_prefix_pages", "KV pages kept for a prefix that may come again."
        )
        self._prefix_bytes = self._gauge(
            "hearth_prefix_bytes", "Memory of these pages on all nodes together."
        )
        self._page_bytes = 0
        self._faults = self._counter("hearth_faults", "Faults of the cluster, by reason.", "reason")
        self._losses = self._counter("hearth_worker_losses", "Workers that were lost.")
        self._formations = self._counter("hearth_formations", "Times that the cluster was formed.")
        self._serving = self._gauge("hearth_cluster_serving", "1 while the cluster is ready.")
        self._epoch = self._gauge("hearth_cluster_epoch", "Epoch of the plan.")
        self._predicted_decode = self._gauge(
            "hearth_predicted_decode_tokens_per_second",
            "Tokens per second of one sequence that are expected of the plan; 0 where nodes were "
            "not measured.",
        )
        self._measured_decode = self._gauge(
            "hearth_measured_decode_tokens_per_second",
            "Tokens per second of the last steps that decoded one sequence.",
        )
        self._workers = self._gauge("hearth_workers", "Workers, by state.", "state")
        self._queue = self._gauge("hearth_queue_depth", "Requests that wait for a place.")
        self._running = self._gauge("hearth_running_sequences", "Sequences in the batch.")
        self._cache_usage = self._gauge(
            "hearth_kv_cache_usage_ratio", "Part of the KV pages that sequences use, 0 to 1."
        )
        # The labels are those that endpoint pickers of the Gateway API look for.
        self._cache_info = self._gauge(
            "hearth_kv_cache_info",
            "Always 1; the labels are the tokens of a KV page and the number of pages.",
            *("block_size", "num_gpu_blocks"),
        )
        self._weights = self._counter(
            "hearth_weight_bytes",
            "Weight bytes that all nodes got, by source: the network, a worker's cache, the "
            "root's files.",
            "source",
        )
        node = ("rank", "node")
        self._node_compute = self._counter(
            "hearth_node_compute_seconds", "Time that a node computed, by its own clock.", *node
        )
        self._node_sync = self._counter(
            "hearth_node_sync_seconds", "Time that a node waited in syncs, by its own clock.", *node
        )
        self._busy = self._counter(
            "hearth_busy_seconds",
            "Time in which steps ran, by the root's clock; a node's computing is a part of it.",
        )
        self._node_weights = self._gauge(
            "hearth_node_weight_bytes", "Weight bytes that a node holds.", *node
        )
        self._nodes: list[tuple[str, str]] = []
        self._cache = (0, 0)
        for phase in ("prefill", "decode"):
            self._inference.labels(phase)
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind)
        for source in ("network", "cache", "local"):
            self._weights.labels(source)
        for outcome in _OUTCOMES + _FAILURES:
            self._requests.labels(outcome)
        for face in _FACES:
            self._http_requests.labels(face, "200")
        for reason in _FAULTS:
            self._faults.labels(reason)

    def weights(self, source: str, size_bytes: int) -> None:
        """Weight bytes that a node loaded; `source` is "network", "cache" or "local"."""
        self._weights.labels(source).inc(size_bytes)

    def request_done(
        self,
        outcome: str,
        prompt_tokens: int,
        completion_tokens: int,
        prefill_seconds: float,
        decode_seconds: float,
    ) -> None:
        """An admitted request ended; `outcome` is a finish reason or an error's reason."""
        self._requests.labels(outcome.lower()).inc()
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._inference.labels("prefill").observe(prefill_seconds)
        self._inference.labels("decode").observe(decode_seconds)
        if completion_tokens > 1:
            self._per_token.observe(decode_seconds / (completion_tokens - 1))

    def request_refused(self, reason: str) -> None:
        """A request was refused; `reason` is an error's."""
        self._requests.labels(reason.lower()).inc()

    def http_request(self, face: str, status: int) -> None:
        """An HTTP request ended; face: one of _FACES."""
        self._http_requests.labels(face, str(status)).inc()

    def first_token(self, seconds: float) -> None:
        """A request's first token, `seconds` after the request arrived (queueing included)."""
        self._tokens.labels("completion").inc()
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Another token of a request, `seconds` after the last one."""
        self._tokens.labels("completion").inc()
        self._gap.observe(seconds)

    def preempted(self, count: int) -> None:
        """Sequences preempted since the last call."""
        self._preemptions.inc(count)

    def speculated(self, drafted: int, accepted: int, seconds: float) -> None:
        """Drafts of one step, how many of them were right, and the draft model's time."""
        self._draft_seconds.inc(seconds)
        self._drafted.inc(drafted)
        self._accepted.inc(accepted)

    def prefix(self, lookup_tokens: int, hit_tokens: int, evicted_pages: int) -> None:
        """Tokens and pages of the prefix cache since the last call."""
        self._prefix_lookups.inc(lookup_tokens)
        self._prefix_hits.inc(hit_tokens)
        self._prefix_evictions.inc(evicted_pages)

    def prefix_pages(self, kept: int) -> None:
        """Pages kept for their prefix, now; see `page_bytes`."""
        self._prefix_pages.set(kept)
        self._prefix_bytes.set(kept * self._page_bytes)

    def page_bytes(self, size: int) -> None:
        """Bytes of one KV page on all nodes together."""
        self._page_bytes = size

    def paused(self, seconds: float) -> None:
        """Requests resume after they waited `seconds` for the cluster."""
        self._pause.observe(seconds)

    def fault(self, reason: str) -> None:
        """Something failed, not because of a request; `reason` is an error's."""
        self._faults.labels(reason.lower()).inc()

    def cluster(
        self, serving: bool, epoch: int, workers: dict[str, int], lost: int, formed: bool
    ) -> None:
        """The cluster now.

        workers: count of each state. lost, formed: workers lost since the last call, and whether
        the cluster was formed in that time.
        """
        self._serving.set(serving)
        self._epoch.set(epoch)
        for state, count in workers.items():
            self._workers.labels(state).set(count)
        self._losses.inc(lost)
        self._formations.inc(formed)

    def predicted(self, decode: float) -> None:
        """Tokens per second of one sequence that are expected of the plan."""
        self._predicted_decode.set(decode)

    def measured(self, decode: float) -> None:
        """Tokens per second of the last steps that decoded one sequence."""
        self._measured_decode.set(decode)

    def nodes(self, nodes: Sequence[NodeFacts]) -> None:
        """The nodes of the plan in use, in rank order; forgets those before."""
        labels = [(str(rank), node.name) for rank, node in enumerate(nodes)]
        for gone in set(self._nodes) - set(labels):
            for metric in (self._node_compute, self._node_sync, self._node_weights):
                metric.remove(*gone)
        self._nodes = labels
        for label, node in zip(labels, nodes, strict=True):
            self._node_weights.labels(*label).set(node.weight_bytes)
            self._node_compute.labels(*label)
            self._node_sync.labels(*label)

    def node_times(self, seconds: Sequence[tuple[float, float]]) -> None:
        """(compute, sync) seconds of every node in the last step, in rank order."""
        for label, (compute, sync) in zip(self._nodes, seconds, strict=False):
            self._node_compute.labels(*label).inc(max(0.0, compute))
            self._node_sync.labels(*label).inc(max(0.0, sync))

    def busy(self, seconds: float) -> None:
        """Time since the last call in which at least one step ran."""
        self._busy.inc(max(0.0, seconds))

    def kv_cache(self, page_tokens: int, used_pages: int, pages: int) -> None:
        """The root's view of the KV cache, now."""
        self.kv_pages(used_pages, pages - used_pages)
        self._cache_usage.set(used_pages / pages if pages else 0.0)
        if self._cache != (page_tokens, pages):
            self._cache = page_tokens, pages
            self._cache_info.clear()
            self._cache_info.labels(str(page_tokens), str(pages)).set(1)

    def queue(self, waiting: int, running: int) -> None:
        """Requests that wait for a place, and sequences in the batch, now."""
        self._queue.set(waiting)
        self._running.set(running)
