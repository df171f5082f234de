"""A plan: the part of a model that each node holds. Values only; planner.py makes them.

Layers are divided over stages (pipeline parallel), and each layer over the ranks of its stage
(tensor parallel). Nodes are numbered stage by stage: node 0 is the root, node i is worker i.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from hearth import _native
from hearth.converter.blocks import AttentionSpec, GatedDeltaSpec
from hearth.converter.spec import ModelSpec
from hearth.converter.tensors import Unit, head_units, key_unit
from hearth.converter.weights import row_bytes
from hearth.root.planning.cut import Span, size


@dataclass(frozen=True, slots=True)
class Placement:
    """A node's place in a plan: its stage, and its rank within the stage."""

    stage: int
    stages: int
    rank: int
    ranks: int


# The placement of a node without a plan.
ALONE = Placement(stage=0, stages=1, rank=0, ranks=1)


@dataclass(frozen=True, slots=True)
class Slice:
    """One node's cut of one tensor: rows and columns [begin, end) of the whole, in type `kind`."""

    # Names of the slice in the shard and of the tensor in the model's files. They differ for a
    # tied model: its head is cut from the tensor "embedding".
    name: str
    tensor: str
    kind: str
    rows: Span
    columns: Span
    # Equal parts of the tensor, one below the other, of each of which these are the rows; of a
    # vector one behind the other, and the columns. part_size: rows (columns) of a part.
    parts: int = 1
    part_size: int = 0
    vector: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the slice itself."""
        rows, columns = size(self.rows), size(self.columns)
        return (rows, self.parts * columns) if self.vector else (self.parts * rows, columns)

    @property
    def size_bytes(self) -> int:
        """Bytes of the slice."""
        rows, columns = self.shape
        return rows * row_bytes(self.kind, columns)

    def pieces(self, first: int, last: int) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of the tensor that rows [first, last) of the slice are, in order."""
        if self.vector:
            for part in range(self.parts):
                begin = part * self.part_size
                yield self.rows, (begin + self.columns[0], begin + self.columns[1])
            return
        held = size(self.rows)
        while first < last:
            part, within = divmod(first, held)
            count = min(last - first, held - within)
            begin = part * self.part_size + self.rows[0] + within
            yield (begin, begin + count), self.columns
            first += count

    def identity(self, content: bytes) -> bytes:
        """Digest of 32 bytes, equal for equal bytes. content: the identity of the whole tensor.

        Disk caches are keyed by it: changing the text hashed here invalidates every cached slice.
        """
        text = f"2|{self.tensor}|{self.kind}|{self.rows}|{self.columns}"
        if self.parts > 1:
            text += f"|{self.parts}"
        return hashlib.blake2b(content + text.encode(), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node's part of the model."""

    place: Placement
    layers: Span
    # The node's span of each unit of its stage.
    units: Mapping[Unit, Span]
    # Rows of the head. Empty on all stages but the last.
    vocab: Span
    # True if the node holds the embedding.
    embedding: bool
    # True if the head is the first rows of the embedding on this node.
    head_from_embedding: bool
    slices: tuple[Slice, ...]
    # Layers whose weights lie on disk (streaming.py).
    disk_layers: tuple[int, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all slices."""
        return sum(part.size_bytes for part in self.slices)

    def kv_page_bytes(self, spec: ModelSpec, kv_type: str, page_size: int) -> int:
        """Bytes of K and V of one page, for the layers and KV heads of this node."""
        total = 0
        for kind in spec.kind_of_layer[self.layers[0] : self.layers[1]]:
            attention = spec.kinds[kind].mixer
            if isinstance(attention, GatedDeltaSpec):
                continue
            if isinstance(attention, AttentionSpec) and attention.kv_layer is not None:
                continue
            held = size(self.units[head_units(attention)[1]])
            total += held * _native.kv_head_bytes(kv_type, *attention.cached_sizes, page_size)
        return total

    def state_bytes(self, spec: ModelSpec) -> int:
        """Bytes of one sequence's state in the recurrent mixers of this node.

        With what lets it go back behind rejected drafts, whether drafts are used or not.
        """
        total = 0
        for kind in spec.kind_of_layer[self.layers[0] : self.layers[1]]:
            delta = spec.kinds[kind].mixer
            if isinstance(delta, GatedDeltaSpec):
                held = size(self.units[key_unit(delta)]) * delta.tile
                total += held * _native.gated_delta_bytes(
                    delta.group,
                    delta.key_size,
                    delta.value_size,
                    delta.width,
                    _native.MOST_UNDO,
                )
        return total


@dataclass(frozen=True, slots=True)
class Stage:
    """A range of layers, and the nodes that compute them together, in rank order."""

    layers: Span
    ranks: tuple[NodePlan, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages in order, with `notes` for the user."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...]

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        """All nodes, stage by stage: node 0 is the root, node i is worker i."""
        return tuple(chain.from_iterable(stage.ranks for stage in self.stages))
