"""Layers whose weights lie on disk, where memory is too small for all of them. Pure.

The core reads the layers on disk one after another, ahead of the step that needs them. DISK_SEATS
of them are in memory at a time. All else stays there: the other layers, embedding, head, vectors.
"""

from collections import Counter
from dataclasses import replace

from hearth.common.types import DISK_SEATS
from hearth.root.planning.plan import NodePlan


def layer_bytes(node: NodePlan) -> dict[int, int]:
    """Bytes of the matrices of each layer of the node."""
    sizes: Counter[int] = Counter()
    for part in node.slices:
        kind, _, rest = part.name.partition(".")
        if kind == "layers" and not part.vector:
            sizes[int(rest.partition(".")[0])] += part.size_bytes
    return dict(sizes)


def disk_bytes(node: NodePlan) -> int:
    """Bytes of weights that a step of the node reads from disk."""
    sizes = layer_bytes(node)
    return sum(sizes[layer] for layer in node.disk_layers)


def held_bytes(node: NodePlan) -> int:
    """Bytes of memory that the node's weights take."""
    if not node.disk_layers:
        return node.weight_bytes
    sizes = layer_bytes(node)
    largest = max(sizes[layer] for layer in node.disk_layers)
    return node.weight_bytes - disk_bytes(node) + DISK_SEATS * largest


def least_held_bytes(node: NodePlan) -> int:
    """The same with every layer on disk; of fewer than that many layers nothing is gained."""
    return min(node.weight_bytes, held_bytes(_with_layers(node, len(layer_bytes(node)))))


def to_disk(node: NodePlan, memory_bytes: int) -> NodePlan | None:
    """The node with as few layers on disk as leave its weights in so much memory; None for none.

    They are spread evenly: while layers in memory are computed, the next one is read.
    """
    for count in range(len(layer_bytes(node)) + 1):
        found = _with_layers(node, count)
        if held_bytes(found) <= memory_bytes:
            return found
    return None


def _with_layers(node: NodePlan, count: int) -> NodePlan:
    layers = sorted(layer_bytes(node))
    chosen = [layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count)]
    return replace(node, disk_layers=tuple(chosen))
