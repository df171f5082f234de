"""Candidates instead of whole rows: exactly the same token."""

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hearth import _native
from hearth.common.candidates import OF_NUCLEUS, Candidates, Draw, find
from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.logits import JoinedLogits, logits
from hearth.root.engine.params import Sampling
from hearth.v1 import worker_pb2

if TYPE_CHECKING:
    from hearth.root.cluster.links import WorkerLink


def candidates(
    row: NDArray[np.float32], cuts: list[int], count: int
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Candidates of ranks that hold the cuts of a row, side by side."""
    values, ids = [], []
    edges = [0, *cuts, len(row)]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            part = _native.best(row[None, begin:end], min(count, end - begin), begin)
            values.append(part[0][0])
            ids.append(part[1][0])
    return np.concatenate(values), np.concatenate(ids)


# Few different values, so that ties are common; and numbers that spoil comparisons.
numbers = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-8, 8, width=32), st.just(float("-inf"))
)


@given(
    row=st.lists(numbers, min_size=2, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.integers(1, 8),
    top_p=st.sampled_from([1.0, 0.7]),
    min_p=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_the_same_token_as_from_the_whole_row(
    row: list[float],
    cuts: list[int],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> None:
    whole = np.array(row, np.float32)
    if np.isneginf(whole).all():
        return
    inside = sorted(cut for cut in cuts if cut < len(row))
    samplers = [_native.Sampler(temperature, top_k, top_p, min_p, 1.0, seed) for _ in range(2)]
    count = 1 if temperature == 0 else top_k
    part, ids = candidates(whole, inside, count)
    for _ in range(5):
        assert samplers[0].sample(whole) == samplers[1].sample(part, ids)


def by_ranks(
    rows: NDArray[np.float32], cuts: list[int], wanted: Candidates
) -> tuple[NDArray[np.float32], NDArray[np.uint32], JoinedLogits]:
    """Candidates of ranks that hold the cuts of rows, joined."""
    edges = [pair for pair in itertools.pairwise([0, *cuts, rows.shape[1]]) if pair[0] < pair[1]]
    joined = JoinedLogits(len(rows), edges, wanted.count)
    for begin, end in edges:
        joined.add(find(np.ascontiguousarray(rows[:, begin:end]), wanted, begin))
    assert joined.ids is not None
    return joined.values, joined.ids, joined


@given(
    data=st.data(),
    size=st.sampled_from([2, 30, 300, 1500]),
    spread=st.sampled_from([0.0, 0.5, 3.0]),
    temperature=st.sampled_from([0.1, 0.8, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.3]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, (1 << 64) - 1),
    greedy=st.booleans(),
)
def test_draws_of_ranks_are_those_of_whole_rows(
    data: st.DataObject,
    size: int,
    spread: float,
    temperature: float,
    top_p: float,
    min_p: float,
    seed: int,
    greedy: bool,
) -> None:
    """Drafts' rows too, with some tokens that are not allowed, beside another sequence's row."""
    random = np.random.default_rng(seed)
    rows = (random.normal(size=(4, size)) * spread).astype(np.float32)
    bits = np.packbits(random.random((4, size)) < 0.7, axis=1, bitorder="little")
    bits[:, 0] |= 1
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    sampling = Sampling(temperature, top_p=top_p, min_p=min_p)
    whole = _native.Sampler(temperature, 0, top_p, min_p, 1.0, seed)
    parts = _native.Sampler(temperature, 0, top_p, min_p, 1.0, seed)
    draws = {i: Draw(*parts.draw(i), sampling.nucleus) for i in range(3)}
    wanted = Candidates(sampling.candidates, {1: bits[1], 2: bits[2]}, draws)
    values, ids, joined = by_ranks(rows, cuts, wanted)
    for i in range(3):
        row = rows[i] if i == 0 else _native.masked(rows[i], bits[i], -np.inf)
        assert parts.sample(values[i], ids[i], joined.tails.get(i)) == whole.sample(row)
    if greedy:
        assert int(ids[3][values[3].argmax()]) == int(rows[3].argmax())


def test_what_ranks_send_is_small() -> None:
    """Of 65,536 tokens: one, a few, or a few kilobytes."""
    rows = np.random.default_rng(3).normal(size=(1, 1 << 16)).astype(np.float32)
    sizes = []
    for sampling in (Sampling(1.0), Sampling(1.0, min_p=0.05), Sampling(1.0, top_p=0.95)):
        draw = Draw(1.0, 7, 0, sampling.nucleus)
        wanted = Candidates(sampling.candidates, draws={0: draw})
        part = find(rows, wanted, 0)
        assert part.ids is not None
        sizes.append(
            part.logits.nbytes + part.ids.nbytes + sum(c.nbytes for c in part.counts.values())
        )
    assert sizes == [8, 512, 5332]


@pytest.mark.parametrize(
    ("counts", "problem"),
    [(b"", "0 bytes of counts"), (b"\xff" * 4 * 693, "counts of more than 40 logits")],
    ids=["none", "many"],
)
def test_counts_of_a_worker_are_checked(counts: bytes, problem: str) -> None:
    wanted = Candidates(OF_NUCLEUS, draws={0: Draw(1.0, 0, 0, nucleus=True)})
    ids = np.arange(40, dtype=np.uint32).tobytes()
    result = worker_pb2.StepResult(logits=bytes(160), candidate_ids=ids, logit_counts=counts)
    link = cast("WorkerLink", SimpleNamespace(address="far:1", name="far:1"))
    with pytest.raises(HearthError, match=problem) as failed:
        logits(result, link, 1, (0, 40), wanted)
    assert failed.value.reason == Reason.WORKER_UNFIT


def test_a_draw_has_its_number() -> None:
    sampler = _native.Sampler(0.5, seed=9)
    assert sampler.draw() == (0.5, 9, 0)
    sampler.sample(np.zeros(4, np.float32))
    assert (sampler.draw(), sampler.draw(2)) == ((0.5, 9, 1), (0.5, 9, 3))


def test_counts_of_another_shape() -> None:
    sampler = _native.Sampler(1.0, top_p=0.9)
    row, ids = np.zeros(2, np.float32), np.arange(2, dtype=np.uint32)
    for counts in (np.zeros((1, 5), np.uint32), np.zeros((2, _native.LOGIT_STEPS), np.uint32)):
        with pytest.raises(ValueError, match=r"\[ranks, 693\]"):
            sampler.sample(row, ids, (np.zeros(1, np.float32), counts))


def test_best_is_sorted_and_ties_go_to_the_lower_id() -> None:
    row = np.array([[1.0, 3.0, np.nan, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    values, ids = _native.best(row, 3, 10)
    np.testing.assert_array_equal(ids, [[11, 13, 14], [10, 11, 12]])
    np.testing.assert_array_equal(values, [[3.0, 3.0, 2.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("count", [0, 6])
def test_more_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} candidates of 5 logits"):
        _native.best(np.zeros((1, 5), np.float32), count, 0)
