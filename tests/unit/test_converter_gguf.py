"""GGUF as people have it: every type of llama.cpp's quantizer, models in parts, rope keys.

The types are held to the reference of ggml's own `gguf` package, on bytes of every value.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from converter_builders import (
    encode,
    gguf_bytes,
    gguf_metadata,
    gguf_name,
    gguf_tensors,
    interleave,
    is_norm,
    random_tensors,
    rotary,
    spm_metadata,
    tiny_spec,
    write_gguf,
    write_hf,
)
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth import _native
from hearth.converter import ModelError, open_model
from hearth.converter.convert import convert
from hearth.converter.readers.gguf_file import READABLE, TENSOR_TYPES
from hearth.converter.readers.gguf_parts import part_names
from hearth.converter.weights import FORMATS, PACKED, convert_rows

# Every matrix has rows of whole blocks of 256.
SPEC = tiny_spec(hidden_size=256, heads=4, kv_heads=2, head_size=64, ffn_size=512, vocab_size=300)
TENSORS = random_tensors(SPEC)
REFERENCE = {name: Kind[name] for name in READABLE}
CONVERTED = sorted(READABLE[name] for name in READABLE if READABLE[name] not in (*PACKED, "bf16"))
KINDS = {READABLE[name]: kind for name, kind in REFERENCE.items()}


def sizes(kind: str) -> tuple[int, int]:
    """(numbers, bytes) of a block, as the reference has them."""
    numbers, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    return int(numbers), int(size)


def any_rows(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Bytes of every value, but no scale that is infinite or not a number."""
    numbers, size = sizes(kind)
    data = np.random.default_rng(seed).integers(0, 256, (rows, columns // numbers, size), np.uint8)
    reference = reference_of(kind, data.reshape(rows, -1)).reshape(rows, -1, numbers)
    data[~np.isfinite(reference).all(axis=2)] = 0
    return data.reshape(rows, -1)


# Where each block has its halves: scales and minima.
HALVES = {
    "f32": [], "f16": [0], "bf16": [0], "q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0],
    "q5_1": [0, 2], "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
    "iq4_nl": [0], "iq4_xs": [0], "mxfp4": [], "iq1_s": [0], "iq1_m": [], "iq2_xxs": [0],
    "iq2_xs": [0], "iq2_s": [0], "iq3_xxs": [0], "iq3_s": [0], "tq1_0": [52], "tq2_0": [64],
    "nvfp4": [],
}  # fmt: skip


def usual_rows(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Bytes of any value, but scales as weights have them."""
    numbers, size = sizes(kind)
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows, columns // numbers, size), np.uint8)
    if kind == "f32":
        data = random.standard_normal((rows, columns, 1), np.float32).view(np.uint8)
    if kind == "nvfp4":
        data[..., :4] = 40 + data[..., :4] % 16  # scales of 4 bits of exponent and 3 more
    if kind == "iq1_m":  # its scale is in the high 4 bits of four numbers of 16
        data[..., 48:56] = 0
        data[..., 1 + 48 : 56 : 2] |= np.array([0x10, 0x20, 0x80, 0x20], np.uint8)
    if kind == "mxfp4":
        data[..., 0] = 118 + data[..., 0] % 8
    for place in HALVES[kind]:
        scales = (random.random(data.shape[:2]) * 0.1 + 0.001).astype(np.float32)
        data[..., place : place + 2] = encode(scales, "bf16" if kind == "bf16" else "f16").reshape(
            *scales.shape, 2
        )
    return data.reshape(rows, -1)


def reference_of(kind: str, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(data, KINDS[kind]), dtype=np.float32)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_types_are_those_of_the_reference(kind: str) -> None:
    data = any_rows(kind, 64, 2048)
    got, largest = convert_rows(data, kind, "f32", (0, 2048), "t")
    expected = reference_of(kind, data)
    assert np.array_equal(got.view("<f4"), expected)
    if kind != "f32":
        assert largest == np.abs(expected).max()


@settings(max_examples=200)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)), target=st.sampled_from(PACKED))
def test_a_cut_is_that_place_of_the_whole_row(data: st.DataObject, kind: str, target: str) -> None:
    unit = FORMATS[target].columns
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, 512 // unit)] * 2)))
    stored = usual_rows(kind, 3, 512, data.draw(st.integers(0, 9)))
    if kind == target and begin * unit % FORMATS[kind].columns + end * unit % FORMATS[kind].columns:
        return  # a stored block is not divided
    cut, _ = convert_rows(stored, kind, target, (begin * unit, end * unit), "t")
    whole = _native.dequantize(convert_rows(stored, kind, target, (0, 512), "t")[0], target, 512)
    expected = whole[:, begin * unit : end * unit]
    assert np.array_equal(_native.dequantize(cut, target, (end - begin) * unit), expected)


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_converted_tensor_is_within_half_a_step_of_q80(kind: str) -> None:
    stored = usual_rows(kind, 64, 1024)
    exact = reference_of(kind, stored).reshape(64, -1, 32)
    data, _ = convert_rows(stored, kind, "q8_0", (0, 1024), "t")
    got = _native.dequantize(data, "q8_0", 1024).reshape(64, -1, 32)
    step = np.abs(exact).max(axis=2, keepdims=True) / 127
    # Half a step, and the rounding of the step itself to f16: 127 times 2^-11 of it.
    assert (np.abs(got - exact) <= step * 0.563 + 2**-20).all()


@pytest.mark.parametrize(
    ("size", "begin", "end"), [(7, 0, 0), (210, 0, 257), (210, 2, 1), (420, 0, 513)]
)
def test_rows_that_are_not_whole_blocks_are_refused(size: int, begin: int, end: int) -> None:
    with pytest.raises(ValueError, match=r"210 bytes|columns"):
        _native.convert(np.zeros((2, size), np.uint8), "q6_k", "f32", begin, end)


def test_every_readable_type_has_its_number() -> None:
    numbers = {name: number for number, name in TENSOR_TYPES.items()}
    assert all(numbers[name] == kind.value for name, kind in REFERENCE.items())


def write_mixed(path: Path, kind: str, head: str) -> dict[str, np.ndarray]:
    """A file with matrices of `kind` and a head of another; what its tensors say, f32."""
    stored: dict[str, tuple[int, tuple[int, ...], bytes]] = gguf_tensors(SPEC, TENSORS, "f32")
    expected: dict[str, np.ndarray] = {}
    for seed, name in enumerate(SPEC.tensor_names()):
        if is_norm(name):
            expected[name] = TENSORS[name]
            continue
        each = head if name in ("head", "embedding") else kind
        rows, columns = SPEC.tensor_shape(name)
        data = usual_rows(each, rows, columns, seed)
        file_name = next(n for n, v in stored.items() if n == gguf_name(name))
        stored[file_name] = (KINDS[each].value, (rows, columns), data.tobytes())
        values = reference_of(each, data)
        if name.endswith((".wq", ".wk")):
            # The file's rows are rotary pairs side by side; the inverse of `interleave`.
            order = interleave(np.arange(rows)[:, None], SPEC.kinds[0].mixer.cached_sizes[0])[:, 0]
            values = values[np.argsort(order)]
        expected[name] = values
    path.write_bytes(gguf_bytes(gguf_metadata(SPEC) | spm_metadata(), stored))
    return expected


@pytest.mark.parametrize(
    ("kind", "head"), [("q4_0", "q6_k"), ("q4_k", "q6_k"), ("q5_1", "q8_0"), ("iq4_xs", "q5_k")]
)
def test_files_of_mixed_types_load(tmp_path: Path, kind: str, head: str) -> None:
    path = tmp_path / "m.gguf"
    expected = write_mixed(path, kind, head)
    model = open_model(str(path))
    assert not model.notes
    assert model.tensor_type("layers.0.wq") == kind
    assert model.tensor_type("head") == head
    assert np.array_equal(
        model.read("layers.0.w1", kind),
        usual_rows(kind, 512, 256, SPEC.tensor_names().index("layers.0.w1")),
    )
    for name, values in expected.items():
        assert np.array_equal(model.read(name, "f32").view("<f4"), values), name
        cut = model.read(name, "f32", (0, 1), (0, 64)).view("<f4")
        assert np.array_equal(cut, values[:1, :64])


def test_converted_types_are_converted_once(tmp_path: Path) -> None:
    """`hearth convert` of such a file gives what loading it gives."""
    write_mixed(tmp_path / "m.gguf", "iq3_s", "nvfp4")
    model = open_model(str(tmp_path / "m.gguf"))
    (line,) = model.notes
    assert line.startswith(f"{model.spec.name}: tensors in IQ3_S are converted to q5_k, ")
    assert "NVFP4 are converted to q8_0 while loading (" in line
    made = open_model(str(convert(str(tmp_path / "m.gguf"), tmp_path / "made", "q8_0")))
    model = open_model(str(tmp_path / "m.gguf"), "q8_0")
    for name in SPEC.tensor_names():
        kind = model.tensor_type(name)
        assert made.stored_type(name) == kind
        assert np.array_equal(made.read(name, kind), model.read(name, kind)), name


@pytest.mark.parametrize("scale", [[0.25], 2.0, [1.0, 2.0]])
def test_nvfp4_is_multiplied_by_the_scale_beside_it(tmp_path: Path, scale: Any) -> None:
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    rows, columns = SPEC.tensor_shape("layers.1.w3")
    data = usual_rows("nvfp4", rows, columns)
    values = np.asarray(scale, np.float32).reshape(-1)
    stored["blk.1.ffn_up.weight"] = (KINDS["nvfp4"].value, (rows, columns), data.tobytes())
    stored["blk.1.ffn_up.scale"] = (0, (values.size,), values.tobytes())
    stored["blk.1.ffn_up.input_scale"] = (0, (1,), np.ones(1, np.float32).tobytes())
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gguf_metadata(SPEC) | spm_metadata(), stored))
    if values.size > 1:
        with pytest.raises(ModelError, match=r"ffn_up.scale is f32 \[2\]; it must be one f32"):
            open_model(str(path))
        return
    model = open_model(str(path))
    assert model.tensor_type("layers.1.w3") == "q8_0"
    got = model.read("layers.1.w3", "f32").view("<f4")
    assert np.array_equal(got, reference_of("nvfp4", data) * values[0])


# Numbers that are not finite.


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q6_k"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_names_its_tensor(
    tmp_path: Path, kind: str, value: float
) -> None:
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    rows, columns = SPEC.tensor_shape("layers.1.w3")
    if kind == "q6_k":
        data = usual_rows(kind, rows, columns)
        data[5, 208:210] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    elif kind in ("q8_0", "q4_0"):
        data = encode(TENSORS["layers.1.w3"], kind).copy()
        data[5, :2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    else:
        values = TENSORS["layers.1.w3"].copy()
        values[5, 7] = value
        data = encode(values, kind)
    stored["blk.1.ffn_up.weight"] = (KINDS[kind].value, (rows, columns), data.tobytes())
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gguf_metadata(SPEC) | spm_metadata(), stored))
    model = open_model(str(path))
    loaded = model.tensor_type("layers.1.w3")
    model.read("layers.1.w3", loaded, (0, 5))
    for wanted in {loaded, "f32", "q4_0"}:
        with pytest.raises(ModelError, match=r"layers\.1\.w3 holds numbers that are inf"):
            model.read("layers.1.w3", wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_without_a_finite_embedding_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tied: bool
) -> None:
    """Sequences without it are right; not so where its row is a row of the head as well."""
    spec = tiny_spec(tied=tied)
    tensors = random_tensors(spec)
    tensors["embedding"][77] = np.nan
    model = open_model(str(write_hf(tmp_path / "m", spec, tensors)))
    if tied:
        with pytest.raises(ModelError, match="embedding holds numbers"):
            model.read("embedding", "f32")
        return
    for _ in range(2):
        assert np.isnan(model.read("embedding", "f32").view("<f4")[77]).all()
    assert caplog.text.count("embedding holds numbers that are infinite or not numbers") == 1
    with pytest.raises(ModelError, match="embedding holds numbers"):
        model.read("embedding", "q8_0")  # which has no NaN


def test_numbers_too_large_for_a_blocks_scale_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(tiny_spec())
    tensors["layers.0.wq"][3, 5] = 1e7
    model = open_model(str(write_hf(tmp_path / "m", tiny_spec(), tensors)))
    with pytest.raises(ModelError, match=r"layers\.0\.wq holds 1e\+07, above q8_0's .* 8\.3"):
        model.read("layers.0.wq", "q8_0")


# Models in parts.


def write_parts(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    """A model in parts; changes: metadata of the second one."""
    stored = list(gguf_tensors(SPEC, TENSORS, "f32").items())
    paths = []
    for number in range(count):
        values: dict[str, Any] = {} if number else gguf_metadata(SPEC) | spm_metadata()
        values |= {"split.no": number, "split.count": count, "split.tensors.count": len(stored)}
        if number == 1:
            values |= {key.replace("_", "."): value for key, value in changes.items()}
        path = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
        path.write_bytes(gguf_bytes(values, dict(stored[number::count])))
        paths.append(path)
    return paths


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_part_opens_the_model(tmp_path: Path, number: int) -> None:
    model = open_model(str(write_parts(tmp_path)[number]))
    assert model.spec == SPEC
    for name, values in TENSORS.items():
        assert np.array_equal(model.read(name, "f32").view("<f4"), values), name
    assert model.tokenizer().vocab_size == 300
    assert model.identify() and model.check_unchanged()


def test_a_folder_of_parts_is_one_model(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "mmproj-m-f16.gguf").write_bytes(b"GGUF")
    assert open_model(str(tmp_path)).spec == SPEC


def test_parts_that_are_absent_are_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[0].unlink()
    paths[2].unlink()
    with pytest.raises(
        ModelError,
        match=r"00002-of-00003\.gguf is one of 3 parts .* 2 are not beside it: "
        r"m-00001-of-00003\.gguf, m-00003-of-00003\.gguf",
    ):
        open_model(str(paths[1]))


def test_a_part_under_another_name_says_which_it_is(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    renamed = paths[1].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"part 2 of 3 .* must end in -00002-of-00003\.gguf"):
        open_model(str(renamed))
    renamed.rename(paths[1])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(ModelError, match=r"is part 2 of 3 by its metadata, but part 3 of 3"):
        open_model(str(paths[0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split_count": 4}, "part 2 of 4 by its metadata"),
        ({"split_no": "one"}, "split.no is 'one'; a whole number is needed"),
        ({"split_count": 1 << 31}, "by its metadata"),
    ],
)
def test_parts_that_do_not_belong_together(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        open_model(str(write_parts(tmp_path, **changes)[0]))


def test_parts_with_a_tensor_twice_or_too_few(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    names = list(stored)
    values = {"split.no": 2, "split.count": 3}
    paths[2].write_bytes(gguf_bytes(values, {names[0]: stored[names[0]]}))
    with pytest.raises(ModelError, match=rf"tensor {names[0]} is in .*00001.* and in .*00003"):
        open_model(str(paths[0]))
    paths[2].write_bytes(gguf_bytes(values, {names[2]: stored[names[2]]}))
    with pytest.raises(ModelError, match=rf"the 3 parts hold .* and the first says {len(names)}"):
        open_model(str(paths[0]))


@given(st.text(max_size=30), st.integers(0, 99999), st.integers(0, 99999))
def test_names_of_parts(prefix: str, number: int, count: int) -> None:
    name = f"{prefix}-{number:05}-of-{count:05}.gguf"
    names = part_names(name)
    assert name in names
    assert len(names) == (count if prefix and 1 <= number <= count <= 4096 else 1)


def test_all_models_of_a_folder_are_listed(tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / f"m{number:02}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"16 GGUF models; name one: m00\.gguf, .*m15\.gguf$"):
        open_model(str(tmp_path))
    for number in range(16, 40):
        (tmp_path / f"m{number:02}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 40 GGUF models; .*m23\.gguf, \.\.\. \(16 more\)$"):
        open_model(str(tmp_path))


# Metadata, read as llama.cpp reads it.


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 2.0}, 2.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scale_linear": 2.0}, 2.0),
        ({"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0}, 4.0),
        ({"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 2.0}, 1.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, 1.0),
        ({"llama.rope.scaling.type": "linear"}, 1.0),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 1.0}, 1.0),
        ({"llama.rope.scaling.attn_factor": 1.0}, 1.0),
    ],
)
def test_rope_keys(tmp_path: Path, values: dict[str, Any], factor: float) -> None:
    path = tmp_path / "m.gguf"
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    path.write_bytes(gguf_bytes(gguf_metadata(SPEC) | spm_metadata() | values, stored))
    frequencies = rotary(open_model(str(path)).spec)
    assert np.allclose(frequencies, rotary(SPEC) / factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"llama.rope.scaling.type": "ntk", "llama.rope.scaling.factor": 4.0}, "'ntk'"),
        ({"llama.rope.scaling.type": "longrope"}, "rope_factors_long.weight is missing"),
        ({"llama.rope.scaling.type": 1}, "rope.scaling.type is 1; a text is needed"),
        ({"llama.rope.scaling.attn_factor": -1.5}, "magnitude is -1.5"),
        ({"llama.attention.causal": False}, "causal is False; .*not encoders"),
        ({"general.type": "adapter"}, "adapter data, not a model"),
        ({"split.count": 2}, "part 1 of 2 of a model, so its name must end"),
    ],
)
def test_settings_that_would_compute_something_else(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    path = tmp_path / "m.gguf"
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    path.write_bytes(gguf_bytes(gguf_metadata(SPEC) | spm_metadata() | values, stored))
    with pytest.raises(ModelError, match=words):
        open_model(str(path))


def test_a_row_that_blocks_of_256_do_not_fit_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_spec(), random_tensors(tiny_spec()))
    content = bytearray(path.read_bytes())
    name = b"blk.0.attn_q.weight"
    kind = content.index(name) + len(name) + 4 + 2 * 8
    struct.pack_into("<I", content, kind, Kind.Q4_K.value)
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"attn_q\.weight: a row of 64 columns .* blocks of 256"):
        open_model(str(path))
