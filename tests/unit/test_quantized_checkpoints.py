"""Quantized checkpoints of Hugging Face: FP8, GPTQ, AWQ, compressed-tensors.

Codes are packed here bit by bit, as the formats define them, and compared with
scale * (code - zero).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from converter_builders import hf_config, hf_name, is_norm, random_tensors, tiny_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hearth.converter import ModelError, open_model
from hearth.converter.quantized import Groups, Integers, Layout, fp8_values
from hearth.converter.readers.safetensors_file import SafetensorsWriter

SPEC = tiny_spec(hidden_size=128, heads=4, kv_heads=2, head_size=32, ffn_size=192)
TENSORS = random_tensors(SPEC)
Pieces = dict[str, tuple[str, npt.NDArray[Any]]]
# Makes the pieces of a matrix of [rows, columns]; returns them and the values that they stand for.
Packer = Callable[[np.random.Generator, int, int], tuple[Pieces, npt.NDArray[np.float32]]]
GROUP = 64


def words(codes: npt.NDArray[np.int64], bits: int, order: tuple[int, ...] | None = None) -> Any:
    """Codes packed along the last axis into int32, the code at `order[i]` of a word at i * bits."""
    per = 32 // bits
    places = order or tuple(range(per))
    grouped = codes.reshape(*codes.shape[:-1], -1, per)
    packed = np.zeros(grouped.shape[:-1], np.uint64)
    for i, place in enumerate(places):
        packed |= grouped[..., place].astype(np.uint64) << np.uint64(i * bits)
    return packed.astype(np.uint32).view(np.int32)


def integers(random: np.random.Generator, rows: int, columns: int, bits: int, spread: bool) -> Any:
    """Codes, scales, zero points and the group of each column; spread: as by activation order."""
    codes = random.integers(0, 1 << bits, (rows, columns))
    groups = np.arange(columns) // GROUP
    if spread:
        groups = random.permutation(groups)
    scales = (random.random((rows, columns // GROUP)) * 0.02 + 0.001).astype(np.float16)
    zeros = random.integers(1, 1 << bits, scales.shape)
    values = scales[:, groups].astype(np.float32) * (codes - zeros[:, groups])
    return codes, scales, zeros, groups, values.astype(np.float32)


def gptq(bits: int, spread: bool = False, second: bool = False) -> tuple[Packer, dict[str, Any]]:
    def pack(random: np.random.Generator, rows: int, columns: int) -> Any:
        codes, scales, zeros, groups, values = integers(random, rows, columns, bits, spread)
        pieces = {
            "qweight": ("I32", words(codes, bits).T),
            "qzeros": ("I32", words(zeros.T - (0 if second else 1), bits)),
            "scales": ("F16", scales.T),
            "g_idx": ("I32", groups.astype(np.int32)),
        }
        return pieces, values

    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": spread}
    return pack, config | ({"checkpoint_format": "gptq_v2"} if second else {})


def awq() -> tuple[Packer, dict[str, Any]]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(random: np.random.Generator, rows: int, columns: int) -> Any:
        codes, scales, zeros, _, values = integers(random, rows, columns, 4, False)
        pieces = {
            "qweight": ("I32", words(codes.T, 4, order)),
            "qzeros": ("I32", words(zeros.T, 4, order)),
            "scales": ("F16", scales.T),
        }
        return pieces, values

    return pack, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}


def compressed(bits: int, zero_points: bool) -> tuple[Packer, dict[str, Any]]:
    def pack(random: np.random.Generator, rows: int, columns: int) -> Any:
        codes, scales, zeros, _, values = integers(random, rows, columns, bits, False)
        pieces = {
            "weight_packed": ("I32", words(codes, bits)),
            "weight_scale": ("F16", scales),
            "weight_shape": ("I64", np.array([rows, columns], np.int64)),
        }
        if zero_points:
            pieces["weight_zero_point"] = ("I32", words(zeros.T, bits).T)
        else:
            values = np.repeat(scales.astype(np.float32), GROUP, axis=1) * (
                codes - (1 << (bits - 1))
            )
        return pieces, values.astype(np.float32)

    weights = {"num_bits": bits, "type": "int", "group_size": GROUP, "symmetric": not zero_points}
    return pack, {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
    }


def fp8(scaling: str) -> tuple[Packer, dict[str, Any]]:
    def pack(random: np.random.Generator, rows: int, columns: int) -> Any:
        codes = random.integers(0, 256, (rows, columns)).astype(np.uint8)
        codes[codes & 127 == 127] = 0  # not a number
        shape = {
            "block": (-(-rows // 64), -(-columns // 48)),
            "row": (rows, 1),
            "one": (),
        }[scaling]
        scales = np.asarray(random.random(shape) * 0.01 + 0.001, np.float32)
        whole = scales
        if scaling == "block":
            whole = np.repeat(np.repeat(scales, 64, axis=0), 48, axis=1)[:rows, :columns]
        name = "weight_scale_inv" if scaling == "block" else "weight_scale"
        pieces = {"weight": ("F8_E4M3", codes), name: ("F32", scales)}
        pieces["input_scale"] = ("F32", np.ones((), np.float32))
        return pieces, (fp8_values()[codes] * whole).astype(np.float32)

    if scaling == "block":
        return pack, {"quant_method": "fp8", "weight_block_size": [64, 48]}
    return pack, {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    }


def int8(scaling: str, zero_points: bool) -> tuple[Packer, dict[str, Any]]:
    """compressed-tensors' int-quantized: (code - zero) * scale."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Any:
        codes = random.integers(-128, 128, (rows, columns)).astype(np.int8)
        shape = {"row": (rows, 1), "one": (1,)}[scaling]
        scales = np.asarray(random.random(shape) * 0.01 + 0.001, np.float32)
        zeros = random.integers(-128, 128, shape).astype(np.int8) if zero_points else 0
        pieces = {"weight": ("I8", codes), "weight_scale": ("F32", scales)}
        if zero_points:
            pieces["weight_zero_point"] = ("I8", np.asarray(zeros))
        values = (codes.astype(np.float32) - np.asarray(zeros, np.float32)) * scales
        return pieces, values.astype(np.float32)

    weights = {"num_bits": 8, "type": "int", "symmetric": not zero_points}
    return pack, {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }


FORMS = {
    "gptq": gptq(4),
    "gptq-v2": gptq(4, second=True),
    "gptq-act-order": gptq(4, spread=True),
    "gptq-8": gptq(8),
    "gptq-2": gptq(2),
    "awq": awq(),
    "compressed-4": compressed(4, False),
    "compressed-4-zeros": compressed(4, True),
    "compressed-8": compressed(8, False),
    "fp8-block": fp8("block"),
    "fp8-row": fp8("row"),
    "fp8-one": fp8("one"),
    "int8-row": int8("row", False),
    "int8-row-zeros": int8("row", True),
    "int8-one-zeros": int8("one", True),
}
# Read number for number; the others become q8_0.
EXACT = {"gptq", "gptq-v2", "gptq-2", "awq", "compressed-4", "compressed-4-zeros"}


def checkpoint(
    directory: Path, form: str, change: Callable[[Pieces], object] = lambda pieces: None,
    **settings: Any,
) -> dict[str, npt.NDArray[np.float32]]:  # fmt: skip
    """Write a model; the values of its matrices. change: of the pieces, settings: of the config."""
    pack, config = FORMS[form]
    random = np.random.default_rng(3)
    pieces: Pieces = {}
    expected = {}
    for name, values in TENSORS.items():
        stored = hf_name(name)
        if is_norm(name) or name in ("embedding", "head"):
            pieces[stored] = ("F32", values[0] if is_norm(name) else values)
            continue
        parts, expected[name] = pack(random, *values.shape)
        pieces |= {f"{stored.removesuffix('weight')}{part}": each for part, each in parts.items()}
    change(pieces)
    directory.mkdir(exist_ok=True)
    config = hf_config(SPEC) | {"quantization_config": config | settings}
    (directory / "config.json").write_text(json.dumps(config))
    path = directory / "model.safetensors"
    path.unlink(missing_ok=True)
    layout = [(name, dtype, data.shape) for name, (dtype, data) in pieces.items()]
    with SafetensorsWriter(path, layout, {}) as writer:
        for _, data in pieces.values():
            writer.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return expected


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_has_the_values_of_its_codes(tmp_path: Path, form: str) -> None:
    expected = checkpoint(tmp_path / "m", form)
    model = open_model(str(tmp_path / "m"))
    target = "q4_1" if form in EXACT else "q8_0"
    method = FORMS[form][1]["quant_method"]
    line = f"{model.spec.name}: tensors in {method} are converted to {target} while loading"
    assert model.notes == [line]
    assert open_model(str(tmp_path / "m"), "q5_0").notes == [line.replace(target, "q5_0")]
    for name, values in expected.items():
        assert model.tensor_type(name) == target
        got = model.read(name, "f32").view("<f4")
        # A minimum of q4_1 is an f16; what is unpacked is an f32.
        bound = 2.0**-11 * 16 * 0.021 if form in EXACT else 1e-6
        assert np.abs(got - values).max() <= bound, name
        rows, columns = values.shape
        cut = model.read(name, "f32", (3, rows - 5), (32, columns - 32)).view("<f4")
        assert np.array_equal(cut, got[3 : rows - 5, 32 : columns - 32])
        assert model.read(name, target).shape[0] == rows


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(sorted(FORMS)))
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, data: st.DataObject, form: str) -> None:
    """A piece is missing, of another type or of another shape: always an error, never a guess."""

    def change(pieces: Pieces) -> None:
        stem = hf_name("layers.0.wq").removesuffix("weight")
        optional = ("g_idx", "input_scale", "weight_zero_point")
        names = [n for n in pieces if n.startswith(stem) and not n.endswith(optional)]
        name = data.draw(st.sampled_from(names))
        dtype, values = pieces[name]
        kind = data.draw(st.sampled_from(["missing", "type", "longer", "shorter"]))
        if kind == "missing":
            del pieces[name]
        elif kind == "type":
            pieces[name] = ("BOOL", np.ascontiguousarray(values).view(np.uint8))
        elif kind == "longer" or not values.size > 1:
            more = np.repeat(values.reshape(-1, *values.shape[-1:]), 2, axis=0)
            pieces[name] = (dtype, more)
        else:
            pieces[name] = (dtype, values[: len(values) // 2])

    checkpoint(tmp_path / "m", form, change)
    with pytest.raises(ModelError, match=r"q_proj"):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize("form", ["gptq", "awq", "compressed-4", "gptq-8", "fp8-row"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_names_its_tensor(
    tmp_path: Path, form: str, value: float
) -> None:
    def change(pieces: Pieces) -> None:
        name = next(n for n in pieces if "layers.1.mlp.up_proj" in n and "scale" in n)
        pieces[name][1].reshape(-1)[7:8] = value
        dtype, values = pieces[name]
        changed = np.ascontiguousarray(values).copy()
        changed.reshape(-1)[7] = value
        pieces[name] = (dtype, changed)

    checkpoint(tmp_path / "m", form, change)
    model = open_model(str(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"layers\.1\.w3 holds numbers that are infinite"):
        model.read("layers.1.w3", model.tensor_type("layers.1.w3"))


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ("gptq", {"quant_method": "bitsandbytes"}, "'bitsandbytes'; Hearth reads fp8, gptq, awq"),
        ("gptq", {"quant_method": "aqlm"}, "'aqlm'"),
        ("gptq", {"quant_method": None}, "is of None"),
        ("gptq", {"bits": 3}, "bits is 3; Hearth reads 2 or 4 or 8"),
        ("gptq", {"bits": "4"}, "bits is '4', not a whole number"),
        ("awq", {"version": "gemv"}, "version is 'gemv'"),
        ("compressed-4", {"config_groups": {"a": {"weights": {"num_bits": 3}}}}, "num_bits is 3"),
        ("compressed-4", {"config_groups": {"a": {"weights": {"type": "float"}}}}, "'float'"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, form: str, settings: dict[str, Any], message: str
) -> None:
    checkpoint(tmp_path / "m", form, **settings)
    with pytest.raises(ModelError, match=message):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize("form", ["compressed-4-zeros", "int8-row-zeros", "int8-one-zeros"])
@pytest.mark.parametrize("shorter", [False, True])
def test_zero_points_must_be_there_and_fit(tmp_path: Path, form: str, shorter: bool) -> None:
    def change(pieces: Pieces) -> None:
        name = next(n for n in pieces if "layers.0.self_attn.k_proj" in n and "zero_point" in n)
        dtype, values = pieces.pop(name)
        if shorter:
            pieces[name] = (dtype, np.concatenate([values, values]))

    checkpoint(tmp_path / "m", form, change)
    with pytest.raises(ModelError, match=r"k_proj\.weight_zero_point (has shape|is missing)"):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize("method", ["gptq", "fp8", "mxfp4", "bitsandbytes"])
def test_a_method_without_settings_is_refused(tmp_path: Path, method: str) -> None:
    checkpoint(tmp_path / "m", "gptq")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": method}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"quantization_config is .*'{method}'"):
        open_model(str(tmp_path / "m"))


@given(st.integers(1, 6), st.integers(1, 80), st.integers(0, 2))
def test_groups_are_of_their_columns(count: int, width: int, change: int) -> None:
    columns = count * width
    wanted = np.arange(columns) // width
    groups = Groups(columns, width)
    if change:
        wanted = np.random.default_rng(change).permutation(wanted)
        groups = Groups(columns, width, wanted.astype(np.int32))
    assert np.array_equal(groups.of_columns(), wanted)
    assert np.array_equal(groups.of_columns(32), wanted[::32])
    blocks = columns % 32 == 0 and all(len(set(each)) == 1 for each in wanted.reshape(-1, 32))
    assert groups.in_blocks(32) == blocks


@pytest.mark.parametrize("form", ["gptq", "gptq-act-order", "awq", "compressed-4"])
def test_only_groups_in_another_order_are_kept(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one number for each column of each matrix."""
    made: list[Groups] = []
    plain = Integers.__init__

    def init(self: Integers, layout: Layout, method: str) -> None:
        made.append(layout.groups)
        plain(self, layout, method)

    monkeypatch.setattr(Integers, "__init__", init)
    checkpoint(tmp_path / "m", form)
    open_model(str(tmp_path / "m")).close()
    assert made
    for groups in made:
        assert (groups.listed is not None) == (form == "gptq-act-order")


def test_fp8_numbers() -> None:
    """By OCP's table of E4M3: the smallest subnormal, one, the largest, no infinity."""
    values = fp8_values()
    known = {0: 0.0, 1: 2.0**-9, 7: 7 * 2.0**-9, 8: 2.0**-6, 0x38: 1.0, 0x3C: 1.5, 0x7E: 448.0}
    for code, value in known.items():
        assert (values[code], values[code + 128]) == (value, -value)
    assert np.flatnonzero(np.isnan(values)).tolist() == [0x7F, 0xFF]


# The form of the tensors, what config.json says of it instead, and where else it says it.
SPELLINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "fbgemm_fp8": (
        "fp8-row",
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        "config.json",
    ),
    "modelopt": ("fp8-one", {"quant_method": "modelopt", "quant_algo": "FP8"}, "config.json"),
    "modelopt, beside": (
        "fp8-one",
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
        "hf_quant_config.json",
    ),
    "auto-round": (
        "gptq",
        {
            "quant_method": "auto-round",
            "bits": 4,
            "packing_format": "auto_round:auto_gptq",
            "extra_config": {"lm_head": {"bits": 16}, "model.layers.0.mlp": {"bits": 4}},
        },
        "config.json",
    ),
    "auto-round, awq": (
        "awq",
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"},
        "config.json",
    ),
    "AutoGPTQ": (
        "gptq",
        {"bits": 4, "group_size": GROUP, "desc_act": False},
        "quantize_config.json",
    ),
    "AutoGPTQ, 8 bits": ("gptq-8", {"bits": 8, "group_size": GROUP}, "quantize_config.json"),
    "AutoAWQ": (
        "awq",
        {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"},
        "quant_config.json",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_of_a_method(tmp_path: Path, name: str) -> None:
    form, settings, place = SPELLINGS[name]
    expected = checkpoint(tmp_path / "m", form)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config")
    if place == "config.json":
        config["quantization_config"] = settings
    else:
        (tmp_path / "m" / place).write_text(json.dumps(settings))
    path.write_text(json.dumps(config))
    with open_model(str(tmp_path / "m")) as model:
        assert len(model.notes) == 1
        for tensor, values in expected.items():
            got = model.read(tensor, "f32").view("<f4")
            assert np.abs(got - values).max() <= 2.0**-11 * 16 * 0.021, tensor


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"'modelopt' \(quant_algo 'NVFP4'\)"),
        ({"quant_method": "modelopt"}, "'modelopt'; Hearth reads fp8"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:exllamav2"},
            r"'auto-round' \(packing_format 'auto_round:exllamav2'\)",
        ),
        ({"quant_method": "auto-round", "packing_format": ["gptq"]}, "'auto-round'"),
        (
            {"quant_method": "gptq", "bits": 4, "extra_config": {"lm_head": {"bits": 8}}},
            "extra_config: bits of 'lm_head' is 8, of the other layers 4",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"group_size": 32}}},
            r"dynamic: group_size of '\+:\.\*' is 32, of the other layers None",
        ),
        ({"quant_method": ["gptq"]}, r"is of \['gptq'\]"),
    ],
)
def test_other_forms_of_a_method_are_named(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    checkpoint(tmp_path / "m", "gptq")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": settings}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        open_model(str(tmp_path / "m"))


def test_a_damaged_file_of_settings(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", "gptq")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config")
    path.write_text(json.dumps(config))
    (tmp_path / "m" / "quantize_config.json").write_text("[4]")
    with pytest.raises(ModelError, match=r"quantize_config\.json holds a JSON list"):
        open_model(str(tmp_path / "m"))
