"""Values that are not finite: each rank says where it saw them first; other rows are untouched."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from blocks import Block, Experts, Model, load, weights_of
from numpy.typing import NDArray
from test_native_shard import (  # type: ignore[import-not-found]
    SHAPES,
    Meeting,
    ThreadLane,
    make_shard,
    random_weights,
)

from hearth import _native
from hearth.root.cluster.finite import sources

SHAPE = SHAPES[2]
SYNCS = 2 * SHAPE.layers
Weights = dict[str, NDArray[np.float32]]
BAD = [np.nan, np.inf, -np.inf]
# Two sequences of two and three tokens.
TOKENS, SEQUENCES = [1, 2, 5, 6, 7], [(2, 0, [0]), (3, 0, [1])]


def outputs(
    ranks: list[Weights], x: NDArray[np.float32], rows: list[int]
) -> list[_native.StepOutput]:
    """One step of SEQUENCES; each rank has its own weights."""
    shards = [make_shard(SHAPE, w, ranks=len(ranks), rank=n) for n, w in enumerate(ranks)]
    meeting = Meeting(len(shards))
    made: list[_native.StepOutput | None] = [None] * len(shards)

    def work(rank: int) -> None:
        lane = ThreadLane(meeting, rank) if len(shards) > 1 else None
        made[rank] = shards[rank].step(x, SEQUENCES, rows, lane)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [output for output in made if output is not None]


def embedded(weights: Weights) -> NDArray[np.float32]:
    return weights["embedding"][TOKENS].copy()


def damaged(weights: Weights, name: str, bad: float, at: tuple[int, int] = (0, 0)) -> Weights:
    values = weights[name].copy()
    values[at] = bad
    return weights | {name: values}


def seen(made: list[_native.StepOutput]) -> dict[int, int | None]:
    return sources([dict(output.not_finite) for output in made])


@pytest.mark.parametrize("ranks", [1, 2])
def test_sound_values_are_finite(ranks: int) -> None:
    weights = random_weights(SHAPE)
    made = outputs([weights] * ranks, embedded(weights), [1, 4])
    assert [output.not_finite for output in made] == [[]] * ranks


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_row_of_the_input(ranks: int, bad: float) -> None:
    """All ranks see it at the first sync; the rows of the other sequence have the same bits."""
    weights = random_weights(SHAPE)
    x = embedded(weights)
    sound = outputs([weights] * ranks, x, [1, 4])
    x[0, 3] = bad
    made = outputs([weights] * ranks, x, [1, 4])
    for output in made:
        # The row after it attends to it.
        assert dict(output.not_finite).keys() == {0, 1}
        assert dict(output.not_finite)[0] == 0
    assert seen(made) == {0: None, 1: None}
    for output, good in zip(made, sound, strict=True):
        np.testing.assert_array_equal(output.logits[1], good.logits[1])
        assert not np.isfinite(output.logits[0]).any()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("name", "sync"), [("layers.0.wo", 0), ("layers.0.w2", 1), ("layers.1.wo", 2), ("head", None)]
)
def test_one_rank_s_weights(name: str, sync: int | None, rank: int, bad: float) -> None:
    """As of a machine with bad memory: that rank sees it before the others."""
    weights = random_weights(SHAPE)
    ranks = [weights, weights]
    rows, columns = weights[name].shape
    # A place that this rank holds.
    at = (rank * (rows - 1), 0) if name == "head" else (0, rank * (columns - 1))
    ranks[rank] = damaged(weights, name, bad, at)
    made = outputs(ranks, embedded(weights), [1, 4])
    found = seen(made)
    assert set(found.values()) == {rank}
    if sync is None:
        assert found.keys() == {1, 4}  # only these have logits
        assert dict(made[rank].not_finite)[4] == SYNCS + 1
        assert made[1 - rank].not_finite == []
    else:
        assert found.keys() == {0, 1, 2, 3, 4}
        assert dict(made[rank].not_finite)[4] == sync
        assert dict(made[1 - rank].not_finite)[4] == sync + 1


def test_what_all_ranks_have() -> None:
    weights = damaged(random_weights(SHAPE), "layers.1.attn_norm", np.nan)
    made = outputs([weights, weights], embedded(weights), [4])
    assert set(seen(made).values()) == {None}
    alone = damaged(random_weights(SHAPE), "layers.1.w2", np.nan)
    assert set(seen(outputs([alone], embedded(alone), [4])).values()) == {None}


def test_pages_of_a_sequence_that_ended_so_harm_no_other() -> None:
    weights = random_weights(SHAPE)
    shard, fresh = make_shard(SHAPE, weights), make_shard(SHAPE, weights)
    x = embedded(weights)
    shard.step(np.full((8, SHAPE.hidden), np.nan, np.float32), [(8, 0, [0, 1])], [7], None)
    for begin in range(3):
        rows = x[begin : begin + 1]
        again = shard.step(rows, [(1, begin, [1])], [0], None)
        assert again.not_finite == []
        np.testing.assert_array_equal(
            again.logits, fresh.step(rows, [(1, begin, [1])], [0], None).logits
        )


def test_rows_of_logits() -> None:
    values = np.zeros((4, 1000), np.float32)
    values[1, 999], values[3, 17] = np.nan, -np.inf
    assert _native.not_finite_rows(values) == [1, 3]
    assert _native.not_finite_rows(np.zeros((0, 5), np.float32)) == []
    with pytest.raises(ValueError, match="takes"):
        _native.not_finite_rows(np.zeros(5, np.float32))


# -- experts --

ROUTERS = {
    "softmax": Experts(),
    "softmax, not normalized": Experts(normalize=False),
    "softmax, one": Experts(used=1),
    "sigmoid": Experts(scores="sigmoid"),
    "sigmoid, in groups": Experts(
        scores="sigmoid", choice_bias=True, groups=4, used_groups=2, used=3
    ),
}


def routed(
    experts: Experts, weights: Weights, x: NDArray[np.float32], threads: int = 2
) -> _native.StepOutput:
    """A step of two sequences of one row each, whose logits are wanted."""
    shard = Model([Block(units=0, experts=experts)]).shard(threads)
    load(shard, weights)
    return shard.step(x, [(1, 0, [0]), (1, 0, [1])], [0, 1], None)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("part", ["router", "router_bias", "choice_bias"])
@pytest.mark.parametrize("name", ROUTERS)
def test_a_score_that_is_not_finite_is_noticed(name: str, part: str, bad: float) -> None:
    """The other experts are sound: by them alone the row would be finite, and another text."""
    experts = replace(ROUTERS[name], router_bias=True, choice_bias=True)
    model = Model([Block(units=0, experts=experts)])
    weights = weights_of(model.shard(), seed=1)
    x = np.random.default_rng(2).normal(size=(2, model.hidden)).astype(np.float32)
    assert routed(experts, weights, x).not_finite == []
    for expert in (0, 3, experts.count - 1):
        at = (expert, 0) if part == "router" else (0, expert)
        made = routed(experts, damaged(weights, f"layers.0.{part}", bad, at), x)
        assert made.not_finite == [(0, 1), (1, 1)]  # at the sync after the experts
        assert not np.isfinite(made.logits).any()


@pytest.mark.parametrize("name", ROUTERS)
def test_a_score_that_is_not_finite_is_of_its_row(name: str) -> None:
    """A product that overflows in one row alone. The other row has the same bits as without it."""
    experts = ROUTERS[name]
    model = Model([Block(units=0, experts=experts)])
    weights = weights_of(model.shard(), seed=1)
    weights["layers.0.router"][3, 0] = 2e38
    x = np.random.default_rng(2).normal(size=(2, model.hidden)).astype(np.float32)
    x[:, 0] = 0
    sound = routed(experts, weights, x)
    assert sound.not_finite == []
    for sign in (-1, 1):
        x[1, 0] = sign * 1000
        made = routed(experts, weights, x)
        assert [row for row, _ in made.not_finite] == [1]
        np.testing.assert_array_equal(made.logits[0], sound.logits[0])
        assert not np.isfinite(made.logits[1]).any()
