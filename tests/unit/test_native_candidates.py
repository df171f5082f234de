"""Candidates instead of whole rows: exactly the same token."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hearth import _native


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


def test_best_is_sorted_and_ties_go_to_the_lower_id() -> None:
    row = np.array([[1.0, 3.0, np.nan, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    values, ids = _native.best(row, 3, 10)
    np.testing.assert_array_equal(ids, [[11, 13, 14], [10, 11, 12]])
    np.testing.assert_array_equal(values, [[3.0, 3.0, 2.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("count", [0, 6])
def test_more_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} candidates of 5 logits"):
        _native.best(np.zeros((1, 5), np.float32), count, 0)
