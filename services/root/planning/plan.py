"""Who holds what: cuts a model over nodes, in proportion to their shares. Pure: no I/O.

Tensor parallel: every node has all layers and a share of each. Attention is cut by KV head with its
query heads, the feed-forward by columns of its inner width, the vocabulary by rows. A cut of a
quantized row falls on a block of 32; a tensor that cannot be cut so stays f16, which `notes` say.
The embedding is the root's (rank 0).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hearth import _native
from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.converter.spec import ModelSpec

Span = tuple[int, int]
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Slice:
    """One node's cut of one tensor: rows and columns [begin, end) of the whole, in type `kind`."""

    # Name of the slice in the shard, and of the model's tensor: the head of a tied model is cut
    # from the tensor "embedding".
    name: str
    tensor: str
    kind: str
    rows: Span
    columns: Span

    @property
    def size_bytes(self) -> int:
        rows, columns = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        return rows * _native.row_bytes(self.kind, columns)

    def identity(self, fingerprint: bytes) -> bytes:
        """32 bytes; equal for equal content, without reading any (DESIGN: cheap identity)."""
        text = f"1|{self.tensor}|{self.kind}|{self.rows}|{self.columns}"
        return hashlib.blake2b(fingerprint + text.encode(), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What one rank holds."""

    rank: int
    heads: Span
    kv_heads: Span
    ffn: Span
    vocab: Span
    embedding: bool
    # The head is the first rows of the embedding, which this node has anyway.
    head_from_embedding: bool
    slices: tuple[Slice, ...]

    @property
    def weight_bytes(self) -> int:
        return sum(part.size_bytes for part in self.slices)

    def kv_page_bytes(self, spec: ModelSpec, kv_type: str, page_size: int) -> int:
        """Bytes of K and V of one page, all layers."""
        heads = self.kv_heads[1] - self.kv_heads[0]
        return spec.layers * heads * _native.kv_head_bytes(kv_type, spec.head_size, page_size)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every rank holds, root first; `notes` are for people."""

    nodes: tuple[NodePlan, ...]
    notes: tuple[str, ...]


def divide(units: int, shares: Sequence[float]) -> list[Span]:
    """Cuts [0, units) into len(shares) contiguous spans in proportion to `shares`, each at least 1.

    Largest remainders first (Hamilton's method). ValueError when there are fewer units than shares.
    """
    if units < len(shares):
        raise ValueError(f"{units} units cannot be cut into {len(shares)} parts")
    total = math.fsum(shares)
    # One for each, the rest in proportion to what is still wanted.
    wanted = [max(0.0, share / total * units - 1) for share in shares]
    spare = units - len(shares)
    scale = spare / math.fsum(wanted) if math.fsum(wanted) > 0 else 0.0
    exact = [value * scale for value in wanted]
    sizes = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (sizes[i] - exact[i], i))
    for i in range(spare - sum(sizes)):
        sizes[by_remainder[i % len(shares)]] += 1
    spans, begin = [], 0
    for size in sizes:
        spans.append((begin, begin + size + 1))
        begin += size + 1
    return spans


def check_shares(nodes: int, shares: Sequence[float] | None) -> list[float]:
    """Shares for `nodes` nodes, equal where None. Raises HearthError INVALID_ARGUMENT."""
    if shares is None:
        return [1.0] * nodes
    if len(shares) != nodes:
        raise _invalid(
            f"{len(shares)} shares ({','.join(f'{share:g}' for share in shares)}) for {nodes} "
            f"nodes: give one share for each node, root first"
        )
    for share in shares:
        if not (math.isfinite(share) and 0 < share <= 1e6):
            raise _invalid(f"a share is {share:g}; it must be above 0, at most 1000000")
    return list(shares)


def most_nodes(spec: ModelSpec) -> int:
    """Nodes that the model can be divided over."""
    return min(spec.kv_heads, spec.ffn_size, spec.vocab_size)


def make_plan(
    spec: ModelSpec,
    tensor_type: Callable[[str], str],
    nodes: int,
    shares: Sequence[float] | None = None,
) -> Plan:
    """Cuts the model over `nodes` ranks. `tensor_type` is the type that a whole tensor would have.

    Raises HearthError INVALID_ARGUMENT, with the counts that can be, when it cannot be cut.
    """
    most = most_nodes(spec)
    if not 1 <= nodes <= most:
        raise _invalid(
            f"{spec.name} cannot be divided over {nodes} nodes: its {spec.kv_heads} KV heads allow "
            f"1 to {most}"
        )
    weight = check_shares(nodes, shares)
    kv_heads = divide(spec.kv_heads, weight)
    group = spec.heads // spec.kv_heads
    heads = [(begin * group, end * group) for begin, end in kv_heads]
    ffn = _cut_units(spec.ffn_size, _ffn_shares(spec, weight, kv_heads))
    vocab = _cut_units(spec.vocab_size, weight)
    notes: list[str] = []
    kinds = _cut_kinds(spec, tensor_type, heads, ffn, notes)
    plans = []
    for rank in range(nodes):
        tied_here = spec.tied and rank == 0
        cut = {
            "wq": _scaled(heads[rank], spec.head_size),
            "wk": _scaled(kv_heads[rank], spec.head_size),
            "wv": _scaled(kv_heads[rank], spec.head_size),
            "wo": _scaled(heads[rank], spec.head_size),
            "w1": ffn[rank],
            "w3": ffn[rank],
            "w2": ffn[rank],
        }
        plans.append(
            NodePlan(
                rank=rank,
                heads=heads[rank],
                kv_heads=kv_heads[rank],
                ffn=ffn[rank],
                vocab=vocab[rank],
                embedding=rank == 0,
                head_from_embedding=tied_here,
                slices=tuple(_slices(spec, kinds, cut, vocab[rank], rank == 0, tied_here)),
            )
        )
    return Plan(tuple(plans), tuple(notes))


def _slices(
    spec: ModelSpec,
    kinds: Callable[[str], str],
    cut: dict[str, Span],
    vocab: Span,
    embedding: bool,
    head_from_embedding: bool,
) -> list[Slice]:
    """A node's slices, in the order of a forward pass."""
    parts: list[Slice] = []
    for tensor in spec.tensor_names():
        rows, columns = spec.tensor_shape(tensor)
        part = tensor.rpartition(".")[2]
        if tensor == "embedding" and not embedding:
            continue
        if tensor == "head":
            span: tuple[Span, Span] = (vocab, (0, columns))
        elif part in ("wo", "w2"):
            span = ((0, rows), cut[part])
        elif part in cut:
            span = (cut[part], (0, columns))
        else:
            span = ((0, rows), (0, columns))
        parts.append(Slice(tensor, tensor, kinds(tensor), *span))
    if spec.tied and not head_from_embedding:
        parts.append(Slice("head", "embedding", kinds("embedding"), vocab, (0, spec.hidden_size)))
    return parts


def _cut_kinds(
    spec: ModelSpec,
    tensor_type: Callable[[str], str],
    heads: Sequence[Span],
    ffn: Sequence[Span],
    notes: list[str],
) -> Callable[[str], str]:
    """The type of each tensor's slices: f16 in place of q80 or q40 where cuts miss the blocks."""
    wo_fits = all(begin * spec.head_size % BLOCK == 0 for begin, _ in heads)
    w2_fits = all(begin % BLOCK == 0 for begin, _ in ffn)

    def kind(tensor: str) -> str:
        whole = tensor_type(tensor)
        part = tensor.rpartition(".")[2]
        fits = wo_fits if part == "wo" else w2_fits if part == "w2" else True
        return "f16" if whole.startswith("q") and not fits else whole

    for part, fits, width in (
        ("wo", wo_fits, heads[-1][1] * spec.head_size),
        ("w2", w2_fits, spec.ffn_size),
    ):
        whole = tensor_type(f"layers.0.{part}")
        if whole.startswith("q") and not fits:
            notes.append(
                f"{part} stays f16 in place of {whole}: its {width} columns cannot be cut for "
                f"{len(heads)} nodes on blocks of {BLOCK}"
            )
    return kind


def _cut_units(size: int, shares: Sequence[float]) -> list[Span]:
    """Cuts [0, size) on multiples of 32 where there are enough of them, else anywhere."""
    unit = BLOCK if size // BLOCK >= len(shares) else 1
    spans = [(begin * unit, end * unit) for begin, end in divide(size // unit, shares)]
    # What is left of a size that is no multiple of 32 goes to the last.
    spans[-1] = (spans[-1][0], size)
    return spans


def _ffn_shares(spec: ModelSpec, shares: Sequence[float], kv_heads: Sequence[Span]) -> list[float]:
    """Shares of the feed-forward that make up for heads that cannot be cut finely.

    With 4 KV heads on 3 nodes one node has half of the attention; it gets less of the feed-forward,
    so that each layer's weights as a whole follow the shares.
    """
    per_kv_head = (2 * spec.heads // spec.kv_heads + 2) * spec.head_size
    attention = spec.kv_heads * per_kv_head
    feed_forward = 3 * spec.ffn_size
    total = math.fsum(shares)
    wanted = [
        share / total * (attention + feed_forward) - (end - begin) * per_kv_head
        for share, (begin, end) in zip(shares, kv_heads, strict=True)
    ]
    return [max(value, 1e-3 * feed_forward) for value in wanted]


def _scaled(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor


def pages_for(
    spec: ModelSpec,
    plan: Plan,
    kv_type: str,
    page_size: int,
    context: int,
    sequences: int,
    rooms: Sequence[tuple[str, int]],
) -> int:
    """Pages of KV cache: for `sequences` of `context` positions, fewer where memory is short.

    rooms: each rank's name and the bytes it can give to weights and KV cache, root first. Raises
    HearthError OUT_OF_MEMORY, with the numbers, when one has no room for a single sequence.
    """
    least = -(-context // page_size)
    pages = least * sequences
    for node, (name, room) in zip(plan.nodes, rooms, strict=True):
        per_page = node.kv_page_bytes(spec, kv_type, page_size)
        left = room - node.weight_bytes
        if left < least * per_page:
            raise HearthError(
                Reason.OUT_OF_MEMORY,
                f"{name} has {format_size(room)} of memory for its shard of {spec.name}, which "
                f"needs {format_size(node.weight_bytes)} for weights and "
                f"{format_size(least * per_page)} for {context} positions of KV cache: use more "
                "nodes, smaller --weights, a smaller --context or other --shares",
                {"rank": node.rank, "roomBytes": room, "weightBytes": node.weight_bytes},
            )
        pages = min(pages, left // per_page)
    return pages


def _invalid(message: str) -> HearthError:
    return HearthError(Reason.INVALID_ARGUMENT, message)
