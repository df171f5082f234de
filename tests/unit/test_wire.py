"""Sync and activation encodings: they come back, and a wrong length never gets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common import wire
from hearth.common.errors import HearthError
from hearth.v1 import common_pb2

F32, F16, Q80 = (
    common_pb2.SYNC_TYPE_F32,
    common_pb2.SYNC_TYPE_F16,
    common_pb2.SYNC_TYPE_Q80,
)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([F32, F16, Q80]),
)
def test_round_trip(rows: int, blocks: int, seed: int, kind: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, 32 * blocks), dtype=np.float32)
    data = wire.encode(x, kind)
    assert len(data) == wire.encoded_bytes(kind, rows, 32 * blocks)
    back = wire.decode(data, kind, rows, 32 * blocks)
    assert back.dtype == np.float32
    assert back.shape == x.shape
    if kind == F32:
        assert np.array_equal(back, x)
    else:
        # f16: 11 bits of each value; q80: half a step of 1/127 of the largest, and an f16 scale.
        limit = np.abs(x) * 2**-11 + 1e-7 if kind == F16 else np.abs(x).max() * (0.5 / 127 + 2**-10)
        assert np.all(np.abs(back - x) <= limit)


@given(st.binary(max_size=300), st.integers(1, 4), st.integers(1, 80), st.integers(0, 9))
def test_any_bytes_decode_in_full_or_are_refused(
    data: bytes, rows: int, columns: int, kind: int
) -> None:
    try:
        x = wire.decode(data, kind, rows, columns)
    except HearthError:
        return
    assert x.shape == (rows, columns)


def test_f16_saturates() -> None:
    x = np.array([[1e9, -1e9, np.nan]], dtype=np.float32)
    back = wire.decode(wire.encode(x, F16), F16, 1, 3)
    assert back[0, 0] == 65504
    assert back[0, 1] == -65504
    assert np.isnan(back[0, 2])


def test_q80_of_an_odd_width_says_what_to_use() -> None:
    with pytest.raises(HearthError, match="48: use f16"):
        wire.encode(np.zeros((1, 48), dtype=np.float32), Q80)


def test_views_are_encoded_as_what_they_show() -> None:
    x = np.arange(64, dtype=np.float32).reshape(8, 8)[::2, ::2]
    assert np.array_equal(wire.decode(wire.encode(x, F32), F32, 4, 4), x)
