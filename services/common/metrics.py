"""All Prometheus metrics of both services. Names are listed here and nowhere else.

Base units, prefix `hearth_`, no label that grows with requests. Observed after a step's answer has
been sent, never inside it. Each Metrics has its own registry: two services fit in one process.
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
)

from hearth.common import system
from hearth.common.channels import refuse_exposed
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics_port import MetricsPort
from hearth.common.security import Security

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
# How a request ends well, or by its client's wish; all else is a failure, named by its reason. Of
# those the likely ones, which a rate would miss the first of if they were not there from the start.
_OUTCOMES = ("eos", "length", "stop", "context", "cancelled")
_FAILURES = ("cluster_not_ready", "internal", "prompt_too_long", "queue_full", "worker_lost")
_FAULTS = ("deadline", "peer_lost", "unreachable", "worker_lost")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node of the running plan, for people to recognize: its rank is its place in the list."""

    name: str
    weight_bytes: int


class Metrics:
    """The metrics of one service (root or worker)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._http: MetricsPort | None = None

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self._sync = histogram(
            "hearth_sync_seconds", "Time that one step spent in its syncs.", _FAST, "phase"
        )
        self._step = histogram("hearth_step_seconds", "Wall time of one step.", _FAST, "phase")
        self._inference = histogram(
            "hearth_inference_seconds", "A request's time in prefill and in decode.", _SLOW, "phase"
        )
        self._first_token = histogram(
            "hearth_time_to_first_token_seconds", "From request to first token.", _SLOW
        )
        self._per_token = histogram(
            "hearth_time_per_output_token_seconds", "Between tokens of one request, mean.", _FAST
        )
        self._gap = histogram(
            "hearth_token_gap_seconds", "Between two tokens of one request, pauses included.", _GAPS
        )
        self._pause = histogram(
            "hearth_pause_seconds", "From a worker's loss until requests went on.", _SLOW
        )
        self._tokens = Counter("hearth_tokens", "Tokens.", ["kind"], registry=self.registry)
        self._requests = Counter(
            "hearth_requests", "Requests that ended, by how.", ["outcome"], registry=self.registry
        )
        self._faults = Counter(
            "hearth_faults", "What went wrong, by reason.", ["reason"], registry=self.registry
        )
        self._losses = Counter(
            "hearth_worker_losses", "Workers that were lost.", registry=self.registry
        )
        self._formations = Counter(
            "hearth_formations", "Times that the cluster began to serve.", registry=self.registry
        )
        self._serving = Gauge(
            "hearth_cluster_serving", "1 while the cluster serves.", registry=self.registry
        )
        self._epoch = Gauge("hearth_cluster_epoch", "Epoch of the plan.", registry=self.registry)
        self._workers = Gauge("hearth_workers", "Workers.", ["state"], registry=self.registry)
        node = ["rank", "node"]
        self._node_compute = Counter(
            "hearth_node_compute_seconds",
            "Time that a node spent computing steps, by its own clock.",
            node,
            registry=self.registry,
        )
        self._node_sync = Counter(
            "hearth_node_sync_seconds",
            "Time that a node waited in the syncs of steps, by its own clock.",
            node,
            registry=self.registry,
        )
        self._node_weights = Gauge(
            "hearth_node_weight_bytes", "Weights of a node.", node, registry=self.registry
        )
        self._nodes: list[tuple[str, str]] = []
        self._sent = Counter("hearth_sent_bytes", "Bytes sent to peers.", registry=self.registry)
        self._received = Counter(
            "hearth_received_bytes", "Bytes received from peers.", registry=self.registry
        )
        self._weights = Counter(
            "hearth_weight_bytes", "Weight bytes loaded.", ["source"], registry=self.registry
        )
        self._queue = Gauge("hearth_queue_depth", "Requests waiting.", registry=self.registry)
        self._running = Gauge(
            "hearth_running_sequences", "Sequences in the batch.", registry=self.registry
        )
        self._preemptions = Counter(
            "hearth_preemptions",
            "Sequences taken out of the batch because KV pages ran out; they are prefilled again.",
            registry=self.registry,
        )
        self._pages = Gauge("hearth_kv_pages", "KV pages.", ["state"], registry=self.registry)
        self._build = Gauge(
            "hearth_build_info",
            "1; what runs here, in labels.",
            ["version", "role", "instruction_set", "architecture"],
            registry=self.registry,
        )
        total = Gauge(
            "hearth_memory_total_bytes",
            "Memory of the machine or the container, the lower.",
            registry=self.registry,
        )
        total.set_function(system.memory_total)
        available = Gauge(
            "hearth_memory_available_bytes",
            "Memory that could be taken now within that.",
            registry=self.registry,
        )
        available.set_function(system.memory_available)
        # process_*: resident memory, CPU time, descriptors, and when it was started.
        ProcessCollector(registry=self.registry)
        # Children exist from the start, so that a scrape before the first request shows zeros.
        for phase in ("prefill", "decode"):
            for metric in (self._sync, self._step, self._inference):
                metric.labels(phase)
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind)
        for source in ("network", "cache", "local"):
            self._weights.labels(source)
        for outcome in _OUTCOMES + _FAILURES:
            self._requests.labels(outcome)
        for reason in _FAULTS:
            self._faults.labels(reason)

    def build_info(self, role: str, version: str, instruction_set: str, architecture: str) -> None:
        """What runs here; `role` is "root" or "worker"."""
        self._build.labels(version, role, instruction_set, architecture).set(1)

    def step(self, phase: str, wall_seconds: float, sync_seconds: float) -> None:
        """One step done; `phase` is "decode" when every sequence had one row, else "prefill"."""
        self._step.labels(phase).observe(wall_seconds)
        self._sync.labels(phase).observe(sync_seconds)

    def traffic(self, sent_bytes: int, received_bytes: int) -> None:
        """Payload bytes exchanged with peers (steps, syncs, weights) since the last call."""
        self._sent.inc(sent_bytes)
        self._received.inc(received_bytes)

    def weights(self, source: str, size_bytes: int) -> None:
        """Weight bytes loaded; `source` is "network", "cache" or "local" (the root's own files)."""
        self._weights.labels(source).inc(size_bytes)

    def request_done(
        self,
        outcome: str,
        prompt_tokens: int,
        completion_tokens: int,
        prefill_seconds: float,
        decode_seconds: float,
    ) -> None:
        """A request that had been taken in ended; `outcome` is a finish or an error's reason."""
        self._requests.labels(outcome.lower()).inc()
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._inference.labels("prefill").observe(prefill_seconds)
        self._inference.labels("decode").observe(decode_seconds)
        if completion_tokens > 1:
            self._per_token.observe(decode_seconds / (completion_tokens - 1))

    def request_refused(self, reason: str) -> None:
        """A request was not taken in; `reason` is an error's."""
        self._requests.labels(reason.lower()).inc()

    def first_token(self, seconds: float) -> None:
        """A request's first token, `seconds` after the request came (queueing included)."""
        self._tokens.labels("completion").inc()
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Another token of a request, `seconds` after the last one."""
        self._tokens.labels("completion").inc()
        self._gap.observe(seconds)

    def paused(self, seconds: float) -> None:
        """The cluster serves again, and requests go on that waited for it so long."""
        self._pause.observe(seconds)

    def fault(self, reason: str) -> None:
        """Something went wrong that was no request's own doing; `reason` is an error's."""
        self._faults.labels(reason.lower()).inc()

    def cluster(
        self, serving: bool, epoch: int, workers: dict[str, int], lost: int, formed: bool
    ) -> None:
        """The cluster now: how many workers in each state; since the last call, how many were
        lost, and whether it began to serve."""
        self._serving.set(serving)
        self._epoch.set(epoch)
        for state, count in workers.items():
            self._workers.labels(state).set(count)
        self._losses.inc(lost)
        self._formations.inc(formed)

    def nodes(self, nodes: Sequence[NodeFacts]) -> None:
        """The nodes of the plan that serves now, in rank order; forgets those before."""
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

    def queue(self, waiting: int, running: int) -> None:
        """Requests that wait for a place, and sequences in the batch, now."""
        self._queue.set(waiting)
        self._running.set(running)

    def kv_pages(self, used: int, free: int) -> None:
        """Pages of KV cache, now."""
        self._pages.labels("used").set(used)
        self._pages.labels("free").set(free)

    def preempted(self, count: int) -> None:
        """Sequences preempted since the last call."""
        self._preemptions.inc(count)

    def serve(self, address: str, security: Security | None = None, insecure: bool = False) -> int:
        """Answers GET /metrics on host:port; the port it has.

        With `security` by mutual TLS; without, beyond loopback only if `insecure`. Raises
        HearthError PORT_IN_USE or INSECURE.
        """
        refuse_exposed("--metrics", address, security, insecure)
        try:
            self._http = MetricsPort(address, self.registry, security)
        except OSError as error:
            problem = (
                f"cannot serve metrics on {address}: {error.strerror or error}; "
                "choose another --metrics HOST:PORT"
            )
            raise HearthError(Reason.PORT_IN_USE, problem, {"address": address}) from None
        return self._http.port

    def stop(self) -> None:
        """Ends `serve`, if it was called."""
        if self._http is not None:
            self._http.stop()
            self._http = None
