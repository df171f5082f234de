"""The planner: cuts cover everything exactly once, follow the shares, and fall on blocks."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError
from hearth.converter.spec import ModelSpec, is_norm
from hearth.root.planning.plan import Plan, divide, make_plan, pages_for


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
    return ModelSpec(**(numbers | changes))  # type: ignore[arg-type]


@given(st.data())
def test_divide_covers_all_and_gives_everyone_something(data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9))
    units = data.draw(st.integers(len(shares), 5000))
    spans = divide(units, shares)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == units
    assert all(end > begin for begin, end in spans)


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
    kind=st.sampled_from(["f32", "f16", "q80", "q40"]),
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
        whole = kind.startswith("q") and spec.tensor_shape(name)[1] % 32
        return "f16" if whole else kind

    plan = make_plan(spec, tensor_type, nodes, shares)
    assert len(plan.nodes) == nodes
    _check_cover(spec, plan)
    for node in plan.nodes:
        for part in node.slices:
            assert part.size_bytes > 0
            if part.kind.startswith("q"):
                assert part.columns[0] % 32 == 0
                assert part.columns[1] % 32 == 0


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


def test_unequal_heads_are_made_up_for_by_the_feed_forward() -> None:
    spec = spec_of(hidden_size=2048, layers=22, heads=32, head_size=64, ffn_size=5632)
    plan = make_plan(spec, lambda name: "f32" if is_norm(name) else "q40", 3)
    layers = [
        sum(part.size_bytes for part in node.slices if part.name.startswith("layers."))
        for node in plan.nodes
    ]
    assert max(layers) / min(layers) < 1.03


def test_what_stays_f16_is_said() -> None:
    spec = spec_of(head_size=8, ffn_size=64)
    plan = make_plan(spec, lambda name: "f32" if is_norm(name) else "q40", 4)
    kinds = {part.name: part.kind for part in plan.nodes[0].slices}
    # Two query heads of 8 are 16 columns, half a block; 64 columns are two blocks for four nodes.
    assert kinds["layers.0.wo"] == "f16"
    assert kinds["layers.0.w2"] == "f16"
    assert kinds["layers.0.w1"] == "q40"
    assert any("wo stays f16" in note for note in plan.notes)
    assert any("w2 stays f16" in note for note in plan.notes)


@pytest.mark.parametrize("nodes", [0, 5])
def test_a_count_that_cannot_be_cut_names_those_that_can(nodes: int) -> None:
    with pytest.raises(HearthError, match=f"over {nodes} nodes: its 4 KV heads allow 1 to 4"):
        make_plan(spec_of(), lambda _: "f32", nodes)


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, math.nan]])
def test_shares_that_cannot_be(shares: list[float]) -> None:
    with pytest.raises(HearthError, match="share"):
        make_plan(spec_of(), lambda _: "f32", 2, shares)


def test_memory_bounds_the_pages() -> None:
    spec = spec_of()
    plan = make_plan(spec, lambda _: "f32", 2)
    per_page = plan.nodes[1].kv_page_bytes(spec, "f16", 16)
    assert per_page == 2 * 2 * 2 * 8 * 2 * 16  # K and V, layers, heads, head_size, bytes, positions
    room = plan.nodes[1].weight_bytes + 40 * per_page
    much = ("root", 1 << 40)
    assert pages_for(spec, plan, "f16", 16, 512, 4, [much, much]) == 128
    assert pages_for(spec, plan, "f16", 16, 512, 4, [much, ("pi", room)]) == 40
    with pytest.raises(HearthError, match=r"pi has .* of memory for its shard of test"):
        pages_for(spec, plan, "f16", 16, 512, 4, [much, ("pi", room - 9 * per_page)])


def test_identity_tells_cuts_and_models_apart() -> None:
    one = make_plan(spec_of(), lambda _: "f32", 2)
    other = make_plan(spec_of(), lambda _: "f32", 2, [3, 1])
    seen = {part.identity(b"a" * 16) for part in one.nodes[1].slices}
    assert len(seen) == len(one.nodes[1].slices)
    wq = next(part for part in one.nodes[1].slices if part.name == "layers.0.wq")
    cut_otherwise = next(part for part in other.nodes[1].slices if part.name == "layers.0.wq")
    assert wq.identity(b"a" * 16) != cut_otherwise.identity(b"a" * 16)
    assert wq.identity(b"a" * 16) != wq.identity(b"b" * 16)
