"""Bits of allowed tokens, over all ranks' rows of the vocabulary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth._native import masked
from hearth.common.allowed import LOWEST, among, decode, only


@given(seed=st.integers(0, 1 << 32), vocab=st.integers(1, 200), data=st.data())
def test_the_tokens_of_a_rank_are_limited(seed: int, vocab: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, vocab - 1))
    end = data.draw(st.integers(begin, vocab))
    random = np.random.default_rng(seed)
    flags = random.random(vocab) < random.random()
    mask = decode(np.packbits(flags, bitorder="little").tobytes(), vocab)
    whole = random.normal(size=(3, end - begin)).astype(np.float32)
    logits = whole.copy()
    limited = only(logits, {1: mask}, begin)
    assert np.array_equal(logits, whole)
    assert np.array_equal(limited[[0, 2]], whole[[0, 2]])
    expected = np.where(flags[begin:end], whole[1], np.float32(LOWEST))
    assert np.array_equal(limited[1], expected)
    ids = random.integers(vocab, size=9).astype(np.uint32)
    assert np.array_equal(among(ids, mask), flags[ids])


@pytest.mark.parametrize(("count", "first"), [(17, 0), (1, 16), (8, 9), (1, 1 << 62)])
def test_too_few_bits_are_an_error(count: int, first: int) -> None:
    with pytest.raises(ValueError, match=f"{count} logits from token {first} on.* of 16 tokens"):
        masked(np.zeros(count, np.float32), np.zeros(2, np.uint8), 0.0, first)


def test_a_wrong_number_of_bytes_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 bytes of allowed tokens, expected 2 for 16 tokens"):
        decode(bytes(3), 16)
