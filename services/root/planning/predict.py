"""Predicts the speed and the memory of a model on machines in one layout. Pure; see cost.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hearth.converter.spec import ModelSpec
from hearth.root.planning.cost import (
    Work,
    compute_seconds,
    hop_seconds,
    payload_bytes,
    sync_seconds,
    sync_sent_bytes,
    work_of,
)
from hearth.root.planning.cut import joined, size
from hearth.root.planning.layout import Layout
from hearth.root.planning.machines import Machine
from hearth.root.planning.memory import disk_cache_bytes, needed_bytes
from hearth.root.planning.plan import NodePlan, Plan
from hearth.root.planning.streaming import disk_bytes, to_disk

# Sequences of the second figure of each rate.
MANY = 8
# Bytes of the candidates or of the state of a step that a worker returns.
_ANSWER_BYTES = 2048
# Programs on both sides take the request of a step and its answer: while ranks compute anyway, or
# between two stages. Measured with TinyLlama on two cores of a Zen 5, as is the next one.
_CALL_SECONDS, _STAGE_CALL_SECONDS = 0.1e-3, 1e-3
# Part of the computing for which ranks wait for the slowest of them: they are not even.
_UNEVEN = 0.05
_SYNCS = 2  # of a layer: after the mixer and after the feed-forward


@dataclass(frozen=True, slots=True)
class Choices:
    """Settings of the cluster that a prediction depends on."""

    context: int
    kv_type: str = "f16"
    page_size: int = 32
    sync_type: str = "f32"
    lane: str = "mesh"
    # Rows of a prefill's step.
    step_tokens: int = 128
    # Positions of each sequence's context, on average.
    depth: int = 256
    # Tokens of the prompt whose prefill is predicted.
    prompt_tokens: int = 512
    # "disk": weights lie on disk where memory is too small.
    weights_on: str = "memory"
    # Sequences of full context that the KV cache has room for, where memory allows.
    sequences: int = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted speed and memory of one layout."""

    machines: tuple[Machine, ...]
    layout: Layout
    shares: tuple[float, ...]
    # Tokens per second: of one sequence, and of MANY together.
    decode: float
    decode_many: float
    prefill: float
    # Of a decode step of one sequence: computing, and all else.
    compute_seconds: float
    transfer_seconds: float
    # The computing of each machine.
    node_seconds: tuple[float, ...]
    # Bytes that the busiest node sends for a token of one sequence.
    sent_bytes: float
    # Of each machine: what it needs at least.
    memory_bytes: tuple[int, ...]
    # The machine that takes longest in a decode step, and what limits the step: "reading" of its
    # weights, "layers" (their fixed work), "latency" or "bandwidth" of the links.
    slowest: str
    limit: str

    @property
    def request_seconds(self) -> float:
        """Time of one common request: a prompt of 256 tokens and an answer of 128."""
        return 256 / self.prefill + 128 / self.decode

    @property
    def fits(self) -> bool:
        """True if every machine has the memory that it needs."""
        return not self.short

    @property
    def short(self) -> tuple[str, ...]:
        """Names of the machines whose memory is too small."""
        pairs = zip(self.machines, self.memory_bytes, strict=True)
        return tuple(machine.name for machine, need in pairs if need > machine.memory_bytes)


class Predictor:
    """Predictions of one model with one choice of settings."""

    def __init__(self, spec: ModelSpec, choices: Choices) -> None:
        self._spec = spec
        self._choices = choices

    def predict(
        self,
        plan: Plan,
        layout: Layout,
        shares: Sequence[float],
        machines: Sequence[Machine],
    ) -> Prediction:
        """The prediction for a plan; machines: in the plan's order, the root first."""
        spec, choices = self._spec, self._choices
        works = [work_of(node, spec) for node in plan.nodes]
        stages = [range(*span) for span in joined(layout.ranks)]
        reading = [
            self._disk_seconds(node, machine)
            for node, machine in zip(plan.nodes, machines, strict=True)
        ]

        def cached(node: NodePlan, sequences: float) -> float:
            page = node.kv_page_bytes(spec, choices.kv_type, choices.page_size)
            return sequences * choices.depth * page / choices.page_size

        def computed(index: int, rows: float, sequences: float, busy: Sequence[int]) -> float:
            """Computing of a node while all those of `busy` compute."""
            read = cached(plan.nodes[index], sequences)
            together = sum(machines[i].host == machines[index].host for i in busy)
            # A chunk of a prompt needs logits of its last row at most.
            sampled = 1 if rows > MANY else None
            own = compute_seconds(works[index], machines[index], rows, read, together, sampled)
            own += handing(index)
            # The disk is read meanwhile.
            return max(own, reading[index])

        def handing(index: int) -> float:
            """Seconds in which a GPU is handed a step: in one piece, or one before each sync."""
            nodes = next(nodes for nodes in stages if index in nodes)
            syncs = _SYNCS * works[index].layers if len(nodes) > 1 else 0
            return (1 + syncs) * machines[index].submit_seconds

        def stage_times(
            rows: float, sequences: float, *, all_busy: bool = False
        ) -> list[tuple[float, float]]:
            """Computing, and syncs, of each stage's step; all_busy: while the others compute."""
            payload = payload_bytes(spec.hidden_size, rows, choices.sync_type)
            times = []
            for nodes in stages:
                layers = size(plan.nodes[nodes[0]].layers)
                links = [machines[i].link for i in nodes]
                syncs = _SYNCS * layers * sync_seconds(links, payload, choices.lane)
                busy = range(len(machines)) if all_busy else nodes
                slowest = max(computed(i, rows, sequences, busy) for i in nodes)
                uneven = _UNEVEN * slowest if len(nodes) > 1 else 0.0
                times.append((slowest, syncs + uneven))
            return times

        def hops(rows: float) -> float:
            return self._hops(machines, [nodes[0] for nodes in stages], rows)

        one = stage_times(1, 1)
        own = machines[0].step_seconds
        compute = sum(each for each, _ in one) + own
        transfer = sum(each for _, each in one) + hops(1) + self._round_trip(machines, len(stages))
        batches = min(len(stages), MANY)
        rows = MANY / batches
        many = [sum(each) for each in stage_times(rows, rows, all_busy=True)]
        alone = sum(many) + hops(rows) + self._round_trip(machines, len(stages)) + own
        cycle = max(alone, batches * max(max(many), own))
        prompt = min(choices.prompt_tokens, choices.context)
        chunk = min(choices.step_tokens, prompt)
        chunks = [sum(each) for each in stage_times(chunk, 1)]
        busy_chunks = [sum(each) for each in stage_times(chunk, 1, all_busy=True)]
        between = hops(chunk) / max(1, len(stages) - 1)
        # Chunks follow each other: after the first, the slowest stage or hop decides, while all
        # stages compute.
        first = sum(chunks) + hops(chunk) + self._round_trip(machines, len(stages)) + own
        next_one = max(*busy_chunks, between) if len(stages) > 1 else first
        prefill_seconds = first + (math.ceil(prompt / chunk) - 1) * next_one
        node_seconds = [computed(i, 1, 1, nodes) for nodes in stages for i in nodes]
        slowest = max(range(len(machines)), key=lambda i: node_seconds[i])
        return Prediction(
            machines=tuple(machines),
            layout=layout,
            shares=tuple(shares),
            decode=1 / (compute + transfer),
            decode_many=MANY / cycle,
            prefill=prompt / prefill_seconds,
            compute_seconds=compute,
            transfer_seconds=transfer,
            node_seconds=tuple(node_seconds),
            sent_bytes=self._sent(plan, stages),
            memory_bytes=tuple(
                self._needed(node, on_disk=seconds > 0)
                for node, seconds in zip(plan.nodes, reading, strict=True)
            ),
            slowest=machines[slowest].name,
            limit="disk"
            if reading[slowest] >= node_seconds[slowest] and compute >= transfer
            else self._limit(works[slowest], machines, slowest, compute, transfer),
        )

    def _needed(self, node: NodePlan, *, on_disk: bool) -> int:
        """Bytes of memory that the node needs at least."""
        choices = self._choices
        sizes = choices.kv_type, choices.page_size, choices.context
        return needed_bytes(node, self._spec, *sizes, on_disk=on_disk)

    def _disk_seconds(self, node: NodePlan, machine: Machine) -> float:
        """Seconds in which a step's weights are read from disk; 0 where they are in memory."""
        if self._choices.weights_on != "disk" or not machine.disk_bandwidth:
            return 0.0
        need = self._needed(node, on_disk=False)
        if need <= machine.memory_bytes:
            return 0.0
        one = need - node.weight_bytes
        cache = disk_cache_bytes(one, machine.memory_bytes, self._choices.sequences)
        found = node if node.disk_layers else to_disk(node, machine.memory_bytes - cache)
        return disk_bytes(found) / machine.disk_bandwidth if found is not None else 0.0

    def _hops(self, machines: Sequence[Machine], firsts: Sequence[int], rows: float) -> float:
        """Seconds in which activations of `rows` rows go from stage to stage, one after another."""
        payload = payload_bytes(self._spec.hidden_size, rows, self._choices.sync_type)
        return sum(
            hop_seconds(machines[a].link, machines[b].link, payload) for a, b in pairwise(firsts)
        )

    def _round_trip(self, machines: Sequence[Machine], stages: int) -> float:
        """Seconds in which the root sends a step to its workers and their answers come back."""
        if len(machines) < 2:
            return 0.0
        root = machines[0].link
        return (_CALL_SECONDS if stages == 1 else _STAGE_CALL_SECONDS) + max(
            hop_seconds(root, worker.link, _ANSWER_BYTES)
            + hop_seconds(worker.link, root, _ANSWER_BYTES)
            for worker in machines[1:]
        )

    def _sent(self, plan: Plan, stages: Sequence[range]) -> float:
        payload = payload_bytes(self._spec.hidden_size, 1, self._choices.sync_type)
        most = 0.0
        for number, nodes in enumerate(stages):
            layers = size(plan.nodes[nodes[0]].layers)
            each = _SYNCS * layers * sync_sent_bytes(len(nodes), payload, self._choices.lane)
            most = max(most, each + (payload if number < len(stages) - 1 else 0.0))
        return most

    def _limit(
        self,
        work: Work,
        machines: Sequence[Machine],
        slowest: int,
        compute: float,
        transfer: float,
    ) -> str:
        if transfer > compute:
            payload = payload_bytes(self._spec.hidden_size, 1, self._choices.sync_type)
            links = [machine.link for machine in machines]
            wait = max(link.latency_seconds for link in links)
            send = max(payload / link.send_bandwidth for link in links) * (len(links) - 1)
            return "latency" if wait >= send else "bandwidth"
        machine = machines[slowest]
        fixed = work.layers * machine.layer_seconds + machine.submit_seconds
        return "layers" if fixed > work.read(1) / machine.read_bandwidth else "reading"


def speed_shares(machines: Sequence[Machine]) -> tuple[float, ...]:
    """Shares in proportion to the speed of reading, two digits, the smallest 1."""
    least = min(machine.read_bandwidth for machine in machines)
    return tuple(float(f"{machine.read_bandwidth / least:.2g}") for machine in machines)


def layouts(nodes: int, most_ranks: int, most_stages: int) -> list[Layout]:
    """Every layout of so many nodes whose stages have as many ranks each."""
    return [
        Layout((nodes // stages,) * stages)
        for stages in range(1, nodes + 1)
        if nodes % stages == 0 and nodes // stages <= most_ranks and stages <= most_stages
    ]


def option_text(layout: Layout, shares: Sequence[float]) -> str:
    """The options of `hearth root` for a layout."""
    stages, nodes = len(layout.ranks), layout.nodes
    if stages == 1:
        text = "--parallel tensor" if nodes > 1 else "alone"
    elif stages == nodes:
        text = "--parallel pipeline"
    else:
        text = f"--parallel {stages}x{nodes // stages}"
    if len(set(shares)) > 1:
        text += " --shares " + ",".join(f"{share:g}" for share in shares)
    return text
