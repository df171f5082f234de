"""The core's packed weight types against gguf, GGUF's reference in NumPy: values and quantizers."""

import numpy as np
import pytest

from hearth import _native
from hearth.converter.weights import FORMATS, PACKED

gguf = pytest.importorskip("gguf")

COLUMNS = 1024
BLOCKS = [name for name in PACKED if FORMATS[name].columns > 1]
# Those that gguf quantizes too; the others it only reads.
BOTH = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4", "bf16"]
# Root of the mean squared error of normal weights, in their standard deviations. Bits say what is
# possible (Max: Quantizing for minimum distortion, 1960, for one scale over all); the bounds are
# five parts in a hundred above what these quantizers reach.
ERRORS = {
    "q2_k": 0.29, "q3_k": 0.152, "q4_k": 0.0765, "q5_k": 0.0377, "q6_k": 0.0186,
    "iq4_nl": 0.08, "iq4_xs": 0.08,
}  # fmt: skip


def reference(data: np.ndarray, name: str) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[name.upper()]
    return np.asarray(gguf.quants.dequantize(data, kind))


def random_blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of any bytes, whose f16 numbers are finite."""
    form = FORMATS[name]
    data = rng.integers(0, 256, (24, COLUMNS // form.columns, form.size), dtype=np.uint8)
    for at in form.halves:
        scales = rng.choice([0.0, -0.0, 6e-8, 1e-4, -0.02, 1.0, 300.0, -65504.0], data.shape[:2])
        data[:, :, at : at + 2] = scales.astype("<f2")[..., None].view(np.uint8)
    if name == "mxfp4":
        data[:, :, 0] = np.minimum(data[:, :, 0], 250)  # finite values
    return data.reshape(24, -1)


@pytest.mark.parametrize("name", BLOCKS)
def test_values_of_any_block_are_those_of_gguf(name: str) -> None:
    data = random_blocks(name, np.random.default_rng(3))
    expected = reference(data, name)
    values, largest = _native.convert(data, name, "f32", 0, COLUMNS)
    assert np.array_equal(values.view("<f4"), expected)
    assert np.array_equal(_native.dequantize(data, name, COLUMNS), expected)
    assert largest == np.abs(expected).max()
    assert np.isfinite(_native.largest_scale(data, name))


def test_an_exponent_of_255_is_not_a_number() -> None:
    data = np.zeros((1, 17), np.uint8)
    data[0, 0] = 255
    assert np.isnan(_native.dequantize(data, "mxfp4", 32)).all()
    assert np.isnan(_native.largest_scale(data, "mxfp4"))


@pytest.mark.parametrize("name", BOTH)
def test_quantizers_are_as_near_as_those_of_gguf(name: str) -> None:
    x = np.random.default_rng(4).standard_normal((16, COLUMNS), np.float32) * np.float32(0.03)
    theirs = reference(gguf.quants.quantize(x, gguf.GGMLQuantizationType[name.upper()]), name)
    ours = _native.dequantize(_native.quantize(x, name), name, COLUMNS)
    assert np.square(ours - x).mean() <= 1.001 * np.square(theirs - x).mean()


@pytest.mark.parametrize("name", ERRORS)
def test_quantizers_of_large_blocks_reach_their_bits(name: str) -> None:
    x = np.random.default_rng(5).standard_normal((16, COLUMNS), np.float32) * np.float32(0.03)
    values = _native.dequantize(_native.quantize(x, name), name, COLUMNS)
    assert np.sqrt(np.square(values - x).mean()) / 0.03 < ERRORS[name]
    # Quantized twice, it has about the same error again, and not more.
    again = _native.dequantize(_native.quantize(values, name), name, COLUMNS)
    assert np.square(again - values).mean() <= np.square(values - x).mean()


@pytest.mark.parametrize("name", [name for name in BLOCKS if FORMATS[name].halves])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_found(name: str, bad: float) -> None:
    form = FORMATS[name]
    for at in form.halves:
        data = random_blocks(name, np.random.default_rng(6)).reshape(24, -1, form.size)
        data[7, 1, at : at + 2] = np.array([bad], "<f2").view(np.uint8)
        largest = _native.largest_scale(data.reshape(24, -1), name)
        assert np.isnan(largest) if np.isnan(bad) else np.isinf(largest)
