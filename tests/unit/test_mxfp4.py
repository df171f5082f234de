"""MXFP4 of Hugging Face checkpoints: blocks and scales apart become the core's blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter.families.mxfp4 import Mxfp4Blocks
from hearth.converter.files import OpenFile
from hearth.converter.stored import StoredBytes
from hearth.converter.weights import convert_rows

# OCP: Microscaling formats, 2023: a sign, two bits of exponent, one of mantissa.
MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])


@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 99), data=st.data())
def test_rows_have_the_values_of_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, rows: int, blocks: int, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, blocks, 32), dtype=np.uint8)
    scales = random.integers(100, 150, (rows, blocks), dtype=np.uint8)
    expected = VALUES[codes] * np.exp2(scales[..., None].astype(np.float32) - 127)
    nibbles = codes[..., 0::2] | codes[..., 1::2] << 4
    path = tmp_path_factory.getbasetemp() / "pieces.bin"
    path.write_bytes(nibbles.tobytes() + scales.tobytes())
    file = OpenFile(path)
    try:
        stored = Mxfp4Blocks(
            StoredBytes(file, 0, rows, 16 * blocks),
            StoredBytes(file, nibbles.size, rows, blocks),
        )
        assert (stored.rows, stored.columns) == (rows, 32 * blocks)
        assert sum(size for _, _, size in stored.places()) == 17 * rows * blocks
        begin = data.draw(st.integers(0, rows - 1))
        end = data.draw(st.integers(begin + 1, rows))
        read = stored.read_rows(begin, end)
        columns = (0, stored.columns)
        found, _ = convert_rows(read, "mxfp4", "f32", columns, "experts")
    finally:
        file.close()
    assert np.array_equal(found.view("<f4"), expected.reshape(rows, -1)[begin:end])
