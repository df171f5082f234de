"""Cost model: work of a node's part of a model, and the seconds that a machine takes for it. Pure.

A step of one row reads every weight once, so memory bounds it. With more rows the products take
longer than the reading at some point. On top comes fixed work of every layer. A sync takes latency
and the bytes of its payload.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hearth.common.types import BLOCK
from hearth.converter.spec import ModelSpec
from hearth.converter.tensors import Place, UnitKind
from hearth.root.planning.cut import size
from hearth.root.planning.machines import Link, Machine
from hearth.root.planning.plan import NodePlan

# Rows up to which the kernels for few rows compute.
_FEW_ROWS = 8
# Bytes of a frame's header and of its acknowledgement, about.
_FRAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class Work:
    """Cost of a node's part of the model, on any machine."""

    # Bytes of weights that every row needs, and multiply-adds of one row.
    bytes: int
    products: int
    # The same of experts, all of them; and the part of them that one row uses.
    expert_bytes: int
    expert_products: int
    used: float
    layers: int
    # Of `products`, those of the head, which only rows need whose tokens are sampled.
    head_products: int = 0

    def read(self, rows: float) -> float:
        """Bytes of weights that a step of so many rows reads."""
        # Experts that at least one of the rows uses, if each row chooses by chance.
        touched = 1.0 - math.pow(1 - self.used, rows)
        return self.bytes + self.expert_bytes * touched

    def multiplied(self, rows: float, sampled: float | None = None) -> float:
        """Multiply-adds of a step of so many rows; attention's own are not counted.

        sampled: rows with logits; None for all.
        """
        without = 0.0 if sampled is None else (rows - sampled) * self.head_products
        return rows * (self.products + self.expert_products * self.used) - without


def work_of(node: NodePlan, spec: ModelSpec) -> Work:
    """The work of one node of a plan."""
    experts = [kind.experts for kind in spec.kinds if kind.experts is not None]
    used = max((each.used / each.count for each in experts), default=0.0)
    tensors = {tensor.name: tensor for tensor in spec.tensors}
    plain, expert = [0, 0], [0, 0]
    head = 0
    for part in node.slices:
        rows, columns = part.shape
        if part.name == "embedding":
            if not node.head_from_embedding:
                continue  # a row of it is read, no product
            share = size(node.vocab) / rows
            plain[0] += int(part.size_bytes * share)
            plain[1] += int(rows * columns * share)
            head += int(rows * columns * share)
            continue
        cut = tensors[part.name].cut
        total = expert if cut is not None and cut.unit.kind is UnitKind.EXPERT else plain
        total[0] += part.size_bytes
        total[1] += 0 if part.vector else rows * columns
        if tensors[part.name].place is Place.OUTPUT and not part.vector:
            head += rows * columns
    return Work(plain[0], plain[1], expert[0], expert[1], used, size(node.layers), head)


def compute_seconds(
    work: Work,
    machine: Machine,
    rows: float,
    cached_bytes: float = 0,
    together: int = 1,
    sampled: float | None = None,
) -> float:
    """Seconds of a step of so many rows.

    cached_bytes: KV cache that all rows read together. together: nodes of its host, itself
    included, that compute at the same time. sampled: see Work.multiplied.
    """
    bandwidth, slower = machine.read_bandwidth, 1.0
    if machine.host and together > 1:
        bandwidth = min(bandwidth, machine.host_bandwidth / together)
        slower = max(1.0, together / machine.host_nodes)
    reading = (work.read(rows) + cached_bytes) / bandwidth
    rate = machine.few_rows_rate if rows <= _FEW_ROWS else machine.prefill_rate
    products = work.multiplied(rows, sampled) / rate if rows > 1 else 0.0
    return slower * (work.layers * machine.layer_seconds + max(reading, products))


def payload_bytes(width: int, rows: float, sync_type: str) -> float:
    """Bytes of `rows` rows of `width` activations on the wire."""
    each = {"f32": 4.0, "f16": 2.0, "q80": (BLOCK + 4) / BLOCK}[sync_type]
    return rows * width * each


def sync_seconds(links: Sequence[Link], payload: float, lane: str) -> float:
    """Seconds of one sync over the ranks with these links, the root's (or the first's) first.

    mesh: every rank sends its part to every other, or a part of the sum to each and then the sums,
    as is faster. grpc: all parts go to the root, and the sum back.
    """
    ranks = len(links)
    if ranks < 2:
        return 0.0
    latency = 2 * max(link.latency_seconds for link in links)
    if lane == "grpc":
        first = links[0]
        each = payload + _FRAME_BYTES
        slowest = max(_byte_seconds(link) for link in links[1:])
        back = (ranks - 1) / first.send_bandwidth + (ranks - 1) / first.receive_bandwidth
        return latency + each * max(back, 2 * slowest)
    # A radio carries the messages of all ranks one after another.
    crowd = ranks if any(link.shared for link in links) else 1
    slowest = crowd * max(1 / min(link.send_bandwidth, link.receive_bandwidth) for link in links)
    direct = latency / 2 + (ranks - 1) * (payload + _FRAME_BYTES) * slowest
    scattered = latency + 2 * (ranks - 1) * (payload / ranks + _FRAME_BYTES) * slowest
    return min(direct, scattered)


def hop_seconds(sender: Link, receiver: Link, payload: float) -> float:
    """Seconds of one message from a node to another."""
    latency = max(sender.latency_seconds, receiver.latency_seconds)
    bandwidth = min(sender.send_bandwidth, receiver.receive_bandwidth)
    times = 2 if sender.shared and receiver.shared else 1
    return latency + times * (payload + _FRAME_BYTES) / bandwidth


def sync_sent_bytes(ranks: int, payload: float, lane: str) -> float:
    """Bytes that the busiest rank sends for one sync."""
    if ranks < 2:
        return 0.0
    if lane == "grpc":
        return (ranks - 1) * (payload + _FRAME_BYTES)
    return min(ranks - 1, 2 * (ranks - 1) / ranks) * payload + (ranks - 1) * _FRAME_BYTES


def calibrate(work: Work, one: float, two: float) -> tuple[float, float]:
    """(read_bandwidth, layer_seconds) of a machine by the compute time on 1 and on 2 of them.

    work: of the whole model on one node. Compute is a + b / n: a is the layers' fixed work, b the
    reading of the weights. Raises ValueError for times that no such machine has.
    """
    reading = 2 * (one - two)
    fixed = one - reading
    if not (math.isfinite(reading) and reading > 0 and fixed >= 0):
        raise ValueError(
            f"{one:g} s on one machine and {two:g} s on two: two must take less, but at least half"
        )
    return work.read(1) / reading, fixed / work.layers


def _byte_seconds(link: Link) -> float:
    return max(1 / link.send_bandwidth, 1 / link.receive_bandwidth) * (2 if link.shared else 1)
