"""The planner: cuts cover everything exactly once, follow the shares, and fall on blocks."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from converter_builders import is_norm, llama_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.converter.blocks import ExpertsSpec, FeedForwardSpec
from hearth.converter.spec import ModelSpec
from hearth.converter.weights import FORMATS, effective_type
from hearth.root.cluster.wire import shard_config
from hearth.root.planning.blueprint import draw
from hearth.root.planning.cut import divide, divide_heads, divide_on_blocks
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.layout import Layout, layout_of
from hearth.root.planning.memory import Room, room_for
from hearth.root.planning.plan import Plan
from hearth.root.planning.planner import make_plan
from hearth.root.scheduling.batch import Limits
from hearth.root.settings import ClusterSettings
from hearth.worker.shard import NodeShard


def spec_of(**changes: object) -> ModelSpec:
    numbers: dict[str, object] = {
        "name": "test",
        "hidden_size": 64,
        "layers": 2,
        "heads": 8,
        "kv_heads": 4,
        "head_size": 8,
        "ffn_size": 172,
        "vocab_size": 512,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_factors": None,
        "context_size": 512,
        "tied": False,
    }
    return llama_spec(**(numbers | changes))  # type: ignore[arg-type]


@given(st.data())
def test_divide_covers_all_and_gives_everyone_something(data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9))
    units = data.draw(st.integers(len(shares), 5000))
    spans = divide(units, shares)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == units
    assert all(end > begin for begin, end in spans)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_heads_are_divided_with_the_kv_heads_that_they_read(
    kv_heads: int, group: int, data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, kv_heads * group))
    shares = data.draw(st.lists(st.floats(0.1, 10), min_size=parts, max_size=parts))
    queries, keys = divide_heads(kv_heads * group, kv_heads, shares)
    assert [begin for begin, _ in queries] == [0, *(end for _, end in queries[:-1])]
    assert queries[-1][1] == kv_heads * group
    for query, key in zip(queries, keys, strict=True):
        assert query[1] > query[0]
        assert key == (query[0] // group, (query[1] - 1) // group + 1)
        assert (query[1] - query[0]) % (key[1] - key[0]) == 0


@given(st.lists(st.floats(1, 4), min_size=1, max_size=6))
def test_divide_follows_the_shares(shares: list[float]) -> None:
    units = 10_000
    for share, (begin, end) in zip(shares, divide(units, shares), strict=True):
        # One unit for rounding, one for the unit that everyone is given.
        assert abs((end - begin) - units * share / math.fsum(shares)) <= 2


def test_divide_refuses_too_few_units() -> None:
    with pytest.raises(ValueError, match="2 units cannot be cut into 3 parts"):
        divide(2, [1, 1, 1])


@given(
    kv_heads=st.integers(1, 8),
    group=st.integers(1, 4),
    head_size=st.sampled_from([2, 8, 10, 32, 64]),
    ffn=st.integers(8, 700),
    vocab=st.integers(8, 700),
    tied=st.booleans(),
    kind=st.sampled_from(list(FORMATS)),
    data=st.data(),
)
def test_every_number_of_the_model_is_held_as_planned(
    kv_heads: int,
    group: int,
    head_size: int,
    ffn: int,
    vocab: int,
    tied: bool,
    kind: str,
    data: st.DataObject,
) -> None:
    spec = spec_of(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=head_size,
        ffn_size=ffn,
        vocab_size=vocab,
        tied=tied,
    )
    nodes = data.draw(st.integers(1, kv_heads))
    shares = data.draw(st.lists(st.floats(0.1, 10), min_size=nodes, max_size=nodes))

    def tensor_type(name: str) -> str:
        if is_norm(name):
            return "f32"
        return effective_type(kind, spec.tensor_shape(name)[1])

    plan = make_plan(spec, tensor_type, Layout.tensor(nodes), shares)
    assert len(plan.nodes) == nodes
    _check_cover(spec, plan)
    for node in plan.nodes:
        for part in node.slices:
            assert part.size_bytes > 0
            block = FORMATS[part.kind].columns
            assert part.columns[0] % block == part.columns[1] % block == 0
            whole = tensor_type(part.tensor)
            assert part.kind in (whole, "q8_0", "f16")
            note = f"{part.name.split('.')[-1]} becomes {part.kind} instead of {whole}"
            assert (part.kind == whole) == (not any(note in each for each in plan.notes))


@given(
    blocks=st.integers(1, 30),
    rest=st.sampled_from([0, 32, 100]),
    step=st.sampled_from([1, 8, 256]),
    shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
)
def test_cuts_fall_on_blocks_where_there_are_enough(
    blocks: int, rest: int, step: int, shares: list[float]
) -> None:
    units = blocks * 256 + rest
    spans = divide_on_blocks(units, shares, step)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == units
    assert all(begin % 32 == 0 for begin, _ in spans)
    if blocks >= len(shares):
        assert all(begin % step == 0 for begin, _ in spans)


@given(
    kv_heads=st.integers(1, 12),
    group=st.integers(1, 8),
    step=st.sampled_from([1, 2, 4, 8]),
    data=st.data(),
)
def test_heads_are_cut_on_blocks_where_there_are_enough(
    kv_heads: int, group: int, step: int, data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, kv_heads * group))
    shares = data.draw(st.lists(st.floats(0.1, 10), min_size=parts, max_size=parts))
    queries, keys = divide_heads(kv_heads * group, kv_heads, shares, step)
    assert queries[-1][1] == kv_heads * group
    assert all(end > begin for begin, end in queries)
    for query, key in zip(queries, keys, strict=True):
        assert key == (query[0] // group, (query[1] - 1) // group + 1)
    enough = kv_heads * group // math.lcm(step, group) >= parts
    if enough or (
        parts > kv_heads and group % step == 0 and group // step >= -(-parts // kv_heads)
    ):
        assert all(begin % step == 0 for begin, _ in queries)


SHAPES = {
    # hidden, heads, KV heads, head size, inner width
    "tinyllama-1.1b": (2048, 32, 4, 64, 5632),
    "llama-3.2-1b": (2048, 32, 8, 64, 8192),
    "llama-3-8b": (4096, 32, 8, 128, 14336),
    "qwen2.5-7b": (3584, 28, 4, 128, 18944),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shares", [[1, 1], [3, 1], [1, 1, 1], [1, 1, 1, 1], [5, 2, 2, 1]])
def test_usual_shapes_need_no_other_type(shape: str, shares: list[float]) -> None:
    """A cut on blocks of 256 is found if there is one. Qwen2.5 7B has 3.5 of them a KV head."""
    hidden, heads, kv_heads, head_size, ffn = SHAPES[shape]
    spec = spec_of(
        hidden_size=hidden, heads=heads, kv_heads=kv_heads, head_size=head_size, ffn_size=ffn
    )
    plan = make_plan(
        spec, lambda name: "f32" if is_norm(name) else "q4_k", Layout.tensor(len(shares)), shares
    )
    kinds = {
        (part.name.split(".")[-1], part.kind)
        for node in plan.nodes
        for part in node.slices
        if not is_norm(part.name)
    }
    wanted = {(part, "q4_k") for part in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")}
    if shape == "qwen2.5-7b" and len(shares) > 2:
        wanted = wanted - {("wo", "q4_k")} | {("wo", "q8_0")}
        (note,) = plan.notes
        assert note == (
            f"wo becomes q8_0 instead of q4_k: its 3584 columns cannot be cut for {len(shares)} "
            "nodes on blocks of 256"
        )
    else:
        assert not plan.notes
    assert kinds - {("embedding", "q4_k"), ("head", "q4_k")} == wanted


@pytest.mark.parametrize(
    ("inner", "nodes", "widths", "kind"),
    [
        (768, 2, [512, 256], "q4_k"),  # Qwen3-30B-A3B: three blocks
        (768, 3, [256, 256, 256], "q4_k"),
        (768, 4, [192, 192, 192, 192], "q8_0"),
        (1024, 4, [256, 256, 256, 256], "q4_k"),
        (100, 2, [64, 36], "f16"),  # no blocks fit its rows, whatever the cut
    ],
)
def test_every_expert_is_cut_on_blocks_or_becomes_q8_0(
    inner: int, nodes: int, widths: list[int], kind: str
) -> None:
    expert = ExpertsSpec(count=8, used=2, expert=FeedForwardSpec(inner))
    spec = spec_of(hidden_size=256, heads=8, kv_heads=8, head_size=32)
    block = replace(spec.kinds[0], feed_forward=None, experts=expert)
    spec = replace(spec, kinds=(block,))

    def tensor_type(name: str) -> str:
        tensor = spec.tensor(name)
        return "f32" if tensor.vector or tensor.exact else effective_type("q4_k", tensor.shape[1])

    plan = make_plan(spec, tensor_type, Layout.tensor(nodes))
    for node, width in zip(plan.nodes, widths, strict=True):
        (down,) = (part for part in node.slices if part.name == "layers.0.experts_w2")
        (up,) = (part for part in node.slices if part.name == "layers.0.experts_w1")
        assert (down.kind, down.columns[1] - down.columns[0]) == (kind, width)
        assert (up.kind, up.rows[1] - up.rows[0]) == ("q4_k", width)
        assert down.shape == (8 * 256, width)
    assert any("experts_w2 becomes q8_0" in note for note in plan.notes) == (kind == "q8_0")


def test_memory_follows_the_types_of_a_mix() -> None:
    """A shard's bytes are its elements by the bits of their types, whatever the cut."""
    spec = spec_of(hidden_size=512, heads=8, kv_heads=4, head_size=64, ffn_size=1024, layers=8)

    def tensor_type(name: str) -> str:
        return "f32" if is_norm(name) else "q6_k" if name.endswith(("w2", "wv", "head")) else "q4_k"

    plan = make_plan(spec, tensor_type, Layout.tensor(2), [3, 1])
    for node in plan.nodes:
        assert node.weight_bytes == sum(
            math.prod(end - begin for begin, end in (part.rows, part.columns))
            * FORMATS[part.kind].bits
            / 8
            for part in node.slices
        )
    (note,) = plan.notes if plan.notes else ("",)
    assert not note


def _check_cover(spec: ModelSpec, plan: Plan) -> None:
    """Matrices of the layers and the head are cut without gap or overlap; the rest is whole."""
    for tensor in spec.tensor_names():
        rows, columns = spec.tensor_shape(tensor)
        held = [part for node in plan.nodes for part in node.slices if part.name == tensor]
        if is_norm(tensor):
            assert [(p.rows, p.columns) for p in held] == [((0, 1), (0, columns))] * len(plan.nodes)
        elif tensor == "embedding":
            assert [(p.rows, p.columns) for p in held] == [((0, rows), (0, columns))]
        else:
            along = 1 if tensor.endswith(("wo", "w2")) else 0
            spans = [(p.rows, p.columns)[along] for p in held]
            assert spans[0][0] == 0
            assert spans[-1][1] == (rows, columns)[along]
            assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    vocab = [node.vocab for node in plan.nodes]
    assert vocab[0][0] == 0
    assert vocab[-1][1] == spec.vocab_size
    if spec.tied:
        heads = [part for node in plan.nodes for part in node.slices if part.name == "head"]
        assert [part.rows for part in heads] == vocab[1:]
        assert plan.nodes[0].head_from_embedding


def dtype_of(name: str) -> str:
    return "f32" if is_norm(name) else "f16"


@st.composite
def staged(draw: st.DrawFn, shared: bool = True) -> tuple[ModelSpec, Layout, list[float]]:
    """A small model, stages of ranks that it can be cut into, and a share for each node.

    shared: several ranks of a stage may have the same KV head.
    """
    kv_heads = draw(st.integers(1, 4))
    spec = spec_of(
        layers=draw(st.integers(1, 7)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_size=draw(st.sampled_from([2, 8, 32])),
        ffn_size=draw(st.integers(12, 150)),
        vocab_size=draw(st.integers(12, 150)),
        tied=draw(st.booleans()),
    )
    most = spec.heads if shared else kv_heads
    ranks = draw(st.lists(st.integers(1, most), min_size=1, max_size=min(4, spec.layers)))
    layers = None
    if draw(st.booleans()):
        spans = divide(spec.layers, draw(st.permutations(range(1, len(ranks) + 1))))
        layers = tuple(end - begin for begin, end in spans)
    shares = draw(st.lists(st.floats(0.1, 10), min_size=sum(ranks), max_size=sum(ranks)))
    return spec, Layout(tuple(ranks), layers), shares


@given(staged())
def test_stages_hold_every_number_of_the_model(case: tuple[ModelSpec, Layout, list[float]]) -> None:
    spec, layout, shares = case
    plan = make_plan(spec, dtype_of, layout, shares)
    _check_stages(spec, layout, plan)
    held: dict[str, NDArray[np.int64]] = {
        name: np.zeros(spec.tensor_shape(name), np.int64) for name in spec.tensor_names()
    }
    head = np.zeros((spec.vocab_size, spec.hidden_size), np.int64)
    for node in plan.nodes:
        for part in node.slices:
            into = head if part.name == "head" else held[part.name]
            into[slice(*part.rows), slice(*part.columns)] += 1
            assert part.tensor == ("embedding" if spec.tied and part.name == "head" else part.name)
        if node.head_from_embedding:
            head[slice(*node.vocab)] += 1
    if not spec.tied:
        assert not held["head"].any()
        del held["head"]
    assert (head == 1).all()
    for name, count in held.items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else spec.layers - 1
        stage = next(s for s in plan.stages if s.layers[0] <= layer < s.layers[1])
        if name.endswith((".wk", ".wv")) and len(stage.ranks) > spec.kv_heads:
            # On every rank that has query heads of it, and so on all ranks together.
            per_head = count[:: spec.kinds[0].mixer.cached_sizes[0], 0]
            assert (per_head >= 1).all()
            assert per_head.sum() == len(stage.ranks)
            assert (
                count == np.repeat(per_head, spec.kinds[0].mixer.cached_sizes[0])[:, None]
            ).all()
        else:
            # A norm's weights are on every rank of its stage, all others once.
            assert (count == (len(stage.ranks) if is_norm(name) else 1)).all(), name


def _check_stages(spec: ModelSpec, layout: Layout, plan: Plan) -> None:
    """Layers tile the model, placements number the nodes, and only the last stage has a head."""
    assert tuple(len(stage.ranks) for stage in plan.stages) == layout.ranks
    spans = [stage.layers for stage in plan.stages]
    assert spans[0][0] == 0
    assert spans[-1][1] == spec.layers
    assert all(a[1] == b[0] and b[0] < b[1] for a, b in itertools.pairwise(spans))
    if layout.layers is not None:
        assert tuple(end - begin for begin, end in spans) == layout.layers
    for number, stage in enumerate(plan.stages):
        for rank, node in enumerate(stage.ranks):
            place = node.place
            assert (place.stage, place.stages) == (number, len(plan.stages))
            assert (place.rank, place.ranks) == (rank, len(stage.ranks))
            assert node.layers == stage.layers
            assert node.embedding == (node is plan.nodes[0])
            assert (node.vocab[1] > node.vocab[0]) == (number == len(plan.stages) - 1)
            assert node.head_from_embedding == (
                spec.tied and node is plan.nodes[0] and len(plan.stages) == 1
            )


@given(staged(shared=False), st.sampled_from(["f32", "f16"]))
def test_memory_of_stages_adds_up(
    case: tuple[ModelSpec, Layout, list[float]], kv_type: str
) -> None:
    spec, layout, shares = case
    plan = make_plan(spec, lambda _: "f32", layout, shares)
    norms = sum(
        (len(stage.ranks) - 1) * (2 * (stage.layers[1] - stage.layers[0])) for stage in plan.stages
    )
    norms += len(plan.stages[-1].ranks) - 1
    numbers = spec.parameters + norms * spec.hidden_size
    if spec.tied:  # the head's rows that are not on the node with the embedding
        own = plan.nodes[0].vocab[1] if plan.nodes[0].head_from_embedding else 0
        numbers += (spec.vocab_size - own) * spec.hidden_size
    assert sum(node.weight_bytes for node in plan.nodes) == 4 * numbers
    page = sum(node.kv_page_bytes(spec, kv_type, 16) for node in plan.nodes)
    size = 4 if kv_type == "f32" else 2
    assert page == 2 * spec.layers * spec.kv_heads * spec.kinds[0].mixer.cached_sizes[0] * 16 * size


@settings(max_examples=25)
@given(staged())
def test_the_core_expects_what_is_planned(case: tuple[ModelSpec, Layout, list[float]]) -> None:
    spec, layout, shares = case
    plan = make_plan(spec, dtype_of, layout, shares)
    limits = Limits(context_size=32, max_pages=2, page_size=16, max_step_tokens=4, max_running=4)
    for node in plan.nodes:
        shard = NodeShard(shard_config(spec, node, ClusterSettings(), limits))
        assert shard.expected() == {
            part.name: (part.rows[1] - part.rows[0], part.columns[1] - part.columns[0])
            for part in node.slices
        }
        shard.close()


def test_layers_follow_the_shares_of_a_stage() -> None:
    plan = make_plan(spec_of(layers=8), dtype_of, Layout((2, 1)), [1, 2, 1])
    assert [stage.layers for stage in plan.stages] == [(0, 6), (6, 8)]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout((1, 1, 1)), "into 3 stages: its 2 layers allow 1 to 2"),
        (Layout(()), "into 0 stages"),
        (Layout((1, 9)), "over a stage of 9 nodes: its 8 query heads allow 1 to 8"),
        (Layout((1, 0)), "over a stage of 0 nodes"),
        (Layout((1, 1), (2, 1)), "stages of 2,1 layers add up to 3; test has 2 layers"),
        (Layout((1, 1), (2, 0)), "every stage needs at least one"),
        (Layout((1, 1), (2,)), "layers for 1 stages, the layout has 2"),
    ],
)
def test_layouts_that_cannot_be_cut(layout: Layout, message: str) -> None:
    with pytest.raises(HearthError, match=message):
        make_plan(spec_of(), dtype_of, layout)


@pytest.mark.parametrize(
    ("parallel", "stages", "message"),
    [
        ("auto", (3, 3), "stages of 3,3 layers add up to 6; demo has 5 layers"),
        ("auto", (1, 1, 1, 1, 1, 1), "into 6 stages: its 5 layers allow 1 to 5"),
        ("8x1", None, "into 8 stages: its 5 layers allow 1 to 5"),
        ("1x9", None, "over 9 nodes"),
    ],
)
def test_layouts_that_cannot_be_are_refused_before_workers_are_found(
    parallel: str, stages: tuple[int, ...] | None, message: str
) -> None:
    given = ClusterSettings(parallel=parallel, stages=stages)
    with open_model("demo") as model, pytest.raises(HearthError, match=message):
        draw(model, given)


def test_a_layout_for_workers_that_are_found_later() -> None:
    with open_model("demo") as model:
        assert draw(model, ClusterSettings(parallel="2x2")).plan(()).nodes


def test_notes_of_several_stages_name_the_stage() -> None:
    spec = spec_of(head_size=8, ffn_size=64)
    plan = make_plan(spec, lambda name: "f32" if is_norm(name) else "q4_0", Layout((1, 4)))
    assert [note.partition(" becomes")[0] for note in plan.notes] == ["stage 1: wo", "stage 1: w2"]
    kinds = {part.name: part.kind for node in plan.nodes for part in node.slices}
    assert (kinds["layers.0.wo"], kinds["layers.1.wo"]) == ("q4_0", "f16")


@pytest.mark.parametrize(
    ("parallel", "nodes", "layers", "ranks"),
    [
        ("auto", 3, None, (3,)),
        ("tensor", 3, None, (3,)),
        ("tensor", 3, (5,), (3,)),
        ("pipeline", 3, None, (1, 1, 1)),
        ("pipeline", 1, None, (1,)),
        ("auto", 3, (2, 2, 1), (1, 1, 1)),
        ("2x3", 6, None, (3, 3)),
        ("2x1+1x2", 4, (2, 2, 1), (1, 1, 2)),
    ],
)
def test_layouts_by_name(
    parallel: str, nodes: int, layers: tuple[int, ...] | None, ranks: tuple[int, ...]
) -> None:
    assert layout_of(parallel, nodes, layers) == Layout(ranks, layers)


@pytest.mark.parametrize(
    ("parallel", "nodes", "layers", "message"),
    [
        ("both", 2, None, "unknown --parallel 'both': use auto, tensor, pipeline"),
        ("2x2", 3, None, "--parallel 2x2 is for 4 nodes, and there are 3"),
        ("2x0", 1, None, "2x0 is not 1 to 4096 stages of at least one rank"),
        ("5000x1", 1, None, "5000x1 is not 1 to 4096 stages"),
        ("pipeline", 3, (2, 3), "--stages 2,3 is for 2 nodes, and there are 3"),
        ("2x2", 4, (1, 1, 3), "--stages 1,1,3 has 3 stages, --parallel 2x2 has 2"),
        ("tensor", 2, (2, 3), "--stages 2,3 with --parallel tensor, which is one stage"),
    ],
)
def test_layouts_that_contradict_themselves(
    parallel: str, nodes: int, layers: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(HearthError, match=re.escape(message)) as error:
        layout_of(parallel, nodes, layers)
    assert error.value.reason == Reason.INVALID_ARGUMENT


@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    nodes=st.integers(1, 20),
)
def test_a_layout_for_other_nodes_is_similar(ranks: list[int], nodes: int) -> None:
    """A worker is missing: as many stages as before, as far as there are nodes."""
    parallel = "+".join(f"1x{each}" for each in ranks)
    found = layout_of(parallel, nodes, exact=False)
    assert found.nodes == nodes
    assert len(found.ranks) == min(len(ranks), nodes)
    assert min(found.ranks) >= 1
    assert bool(found.notes) == (nodes != sum(ranks))
    if nodes == sum(ranks):
        assert found.ranks == tuple(ranks)


def test_unequal_heads_are_made_up_for_by_the_feed_forward() -> None:
    spec = spec_of(hidden_size=2048, layers=22, heads=32, head_size=64, ffn_size=5632)
    plan = make_plan(spec, lambda name: "f32" if is_norm(name) else "q4_0", Layout.tensor(3))
    layers = [
        sum(part.size_bytes for part in node.slices if part.name.startswith("layers."))
        for node in plan.nodes
    ]
    assert max(layers) / min(layers) < 1.03


def test_what_becomes_f16_is_said() -> None:
    spec = spec_of(head_size=8, ffn_size=64)
    plan = make_plan(spec, lambda name: "f32" if is_norm(name) else "q4_0", Layout.tensor(4))
    kinds = {part.name: part.kind for part in plan.nodes[0].slices}
    # Two query heads of 8 are 16 columns, half a block; 64 columns are two blocks for four nodes.
    assert kinds["layers.0.wo"] == "f16"
    assert kinds["layers.0.w2"] == "f16"
    assert kinds["layers.0.w1"] == "q4_0"
    assert any("wo becomes f16" in note for note in plan.notes)
    assert any("w2 becomes f16" in note for note in plan.notes)


@pytest.mark.parametrize("nodes", [0, 9])
def test_a_count_that_cannot_be_cut_names_those_that_can(nodes: int) -> None:
    with pytest.raises(HearthError, match=f"over {nodes} nodes: its 8 query heads allow 1 to 8"):
        make_plan(spec_of(), lambda _: "f32", Layout.tensor(nodes))


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, math.nan]])
def test_shares_that_cannot_be(shares: list[float]) -> None:
    with pytest.raises(HearthError, match="share"):
        make_plan(spec_of(), lambda _: "f32", Layout.tensor(2), shares)


def test_memory_bounds_the_pages() -> None:
    spec = spec_of()
    plan = make_plan(spec, lambda _: "f32", Layout.tensor(2))
    per_page = plan.nodes[1].kv_page_bytes(spec, "f16", 16)
    assert per_page == 2 * 2 * 2 * 8 * 2 * 16  # K and V, layers, heads, head_size, bytes, positions
    room = plan.nodes[1].weight_bytes + 40 * per_page
    much = NodeFacts("root", 1 << 40)
    assert room_for(spec, plan, "f16", 16, 512, 4, 16, [much, much]) == Room(128, 16)
    found = room_for(spec, plan, "f16", 16, 512, 4, 16, [much, NodeFacts("pi", room)])
    assert found == Room(40, 16)
    with pytest.raises(HearthError, match=r"pi has .* of memory for its shard of test") as error:
        short = NodeFacts("pi", room - 9 * per_page)
        room_for(spec, plan, "f16", 16, 512, 4, 16, [much, short])
    assert error.value.metadata.items() >= {"node": "1", "stage": "0", "rank": "1"}.items()


def test_identity_tells_cuts_and_models_apart() -> None:
    one = make_plan(spec_of(), lambda _: "f32", Layout.tensor(2))
    other = make_plan(spec_of(), lambda _: "f32", Layout.tensor(2), [3, 1])
    seen = {part.identity(b"a" * 16) for part in one.nodes[1].slices}
    assert len(seen) == len(one.nodes[1].slices)
    wq = next(part for part in one.nodes[1].slices if part.name == "layers.0.wq")
    cut_otherwise = next(part for part in other.nodes[1].slices if part.name == "layers.0.wq")
    assert wq.identity(b"a" * 16) != cut_otherwise.identity(b"a" * 16)
    assert wq.identity(b"a" * 16) != wq.identity(b"b" * 16)
