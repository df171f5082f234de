"""Files of other programs, damaged: distributed-llama, nanoGPT, LitGPT, quantized checkpoints.

Each is read to its end or refused with a ModelError.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dllama_files
import numpy as np
import pytest
import torch_files
import yaml
from converter_builders import (
    gguf_bytes,
    hf_config,
    hf_name,
    random_tensors,
    spm_metadata,
    tiny_spec,
    write_hf,
)
from fuzzing import changed, damaged, fuzzed, integers, paths, read_whole
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import open_model
from hearth.converter.model import Model
from hearth.converter.readers.safetensors_file import SafetensorsWriter

SPEC = tiny_spec(hidden_size=32, heads=2, kv_heads=1, ffn_size=32, vocab_size=280, layers=1)
TENSORS = random_tensors(SPEC)
TOKENS = [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)), b" a", b"ab"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model of one layer."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    with open_model(str(write_hf(directory, SPEC, TENSORS))) as model:
        yield model


# -- distributed-llama -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dllama(tmp_path_factory: pytest.TempPathFactory, tiny: Model) -> Path:
    """A folder with a model of each header, and the tokenizer of both."""
    folder = tmp_path_factory.mktemp("dllama")
    dllama_files.write_model(folder / "new.m", tiny)
    dllama_files.write_model(folder / "former.m", tiny, former=True)
    tokenizer = dllama_files.tokenizer_bytes(TOKENS, [0.0] * len(TOKENS), 1, [2], "{{ messages }}")
    for name in ("new.t", "former.t"):
        (folder / name).write_bytes(tokenizer)
    return folder


def test_the_undamaged_dllama_files_are_read(dllama: Path) -> None:
    for name in ("new.m", "former.m"):
        assert read_whole(dllama / name)


@fuzzed(6, 20)
@given(data=st.data())
def test_dllama_models(dllama: Path, data: st.DataObject) -> None:
    """Numbers of the header changed, or bytes of it."""
    path = dllama / data.draw(st.sampled_from(["new.m", "former.m"]))
    whole = path.read_bytes()
    header = struct.unpack("<I", whole[4:8])[0] if path.name == "new.m" else 40
    content = bytearray(whole)
    if data.draw(st.booleans()):
        place = 4 * data.draw(st.integers(0, header // 4 - 1))
        number = data.draw(st.integers(0, 16) | integers) & 0xFFFFFFFF
        content[place : place + 4] = struct.pack("<I", number)
    else:
        content = bytearray(damaged(data.draw, whole, header))
    path.write_bytes(content)
    try:
        read_whole(path)
    finally:
        path.write_bytes(whole)


@fuzzed(4, 20)
@given(data=st.data())
def test_dllama_tokenizers(dllama: Path, data: st.DataObject) -> None:
    path = dllama / "new.t"
    whole = path.read_bytes()
    limit = data.draw(st.sampled_from([64, 200, len(whole)]))
    path.write_bytes(damaged(data.draw, whole, limit))
    try:
        read_whole(dllama / "new.m")
    finally:
        path.write_bytes(whole)


# -- checkpoints of torch --------------------------------------------------------------------------

HIDDEN = 16


def nano_gpt() -> dict[str, Any]:
    """A checkpoint of nanoGPT's: one layer, five characters."""
    shapes = {
        "wte.weight": (5, HIDDEN),
        "wpe.weight": (8, HIDDEN),
        "h.0.ln_1.weight": (HIDDEN,),
        "h.0.attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
        "h.0.attn.c_proj.weight": (HIDDEN, HIDDEN),
        "h.0.ln_2.weight": (HIDDEN,),
        "h.0.mlp.c_fc.weight": (4 * HIDDEN, HIDDEN),
        "h.0.mlp.c_proj.weight": (HIDDEN, 4 * HIDDEN),
        "ln_f.weight": (HIDDEN,),
    }
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": HIDDEN, "block_size": 8, "vocab_size": 5}
    return {
        "model": {f"transformer.{name}": np.ones(shape, "f4") for name, shape in shapes.items()},
        "model_args": sizes | {"bias": False, "dropout": 0.0},
    }


# Values that a pickle of torch_files can hold.
SETTINGS = (
    st.integers(-(1 << 31), (1 << 31) - 1)
    | st.integers(0, 64)
    | st.booleans()
    | st.none()
    | st.floats()
    | st.text("abc1", max_size=8)
)
META = {
    "vocab_size": 5,
    "itos": dict(enumerate("abcd ")),
    "stoi": {character: id for id, character in enumerate("abcd ")},
}


def write_nano_gpt(folder: Path) -> None:
    torch_files.write_checkpoint(folder / "ckpt.pt", nano_gpt())
    (folder / "meta.pkl").write_bytes(pickle.dumps(META))


def test_the_undamaged_checkpoint_is_read(tmp_path: Path) -> None:
    write_nano_gpt(tmp_path)
    assert read_whole(tmp_path, "a bad cab")


@fuzzed(8, 25)
@given(data=st.data())
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Numbers and names of the settings changed; the archive, its pickle or its letters damaged."""
    folder = tmp_path_factory.getbasetemp() / "checkpoint"
    folder.mkdir(exist_ok=True)
    write_nano_gpt(folder)
    what = data.draw(st.sampled_from(["settings", "archive", "letters"]))
    if what == "settings":
        value = nano_gpt()
        sizes = value["model_args"]
        for key in data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3)):
            sizes[key] = data.draw(SETTINGS)
        torch_files.write_checkpoint(folder / "ckpt.pt", value)
    elif what == "archive":
        whole = (folder / "ckpt.pt").read_bytes()
        limit = data.draw(st.sampled_from([200, 1500, len(whole)]))
        (folder / "ckpt.pt").write_bytes(damaged(data.draw, whole, limit))
    else:
        (folder / "meta.pkl").write_bytes(damaged(data.draw, pickle.dumps(META)))
    read_whole(folder, "a bad cab")


LIT: dict[str, Any] = {
    "name": "tiny", "n_layer": 1, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "head_size": 8,
    "intermediate_size": 48, "vocab_size": 280, "padded_vocab_size": 280, "block_size": 64,
    "norm_class_name": "RMSNorm", "norm_eps": 1e-5, "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False, "bias": False, "rotary_percentage": 1.0, "rope_base": 10000,
    "rope_adjustments": None, "n_expert": 0,
}  # fmt: skip
LIT_SHAPES = {
    "transformer.wte.weight": (280, 32),
    "lm_head.weight": (280, 32),
    "transformer.ln_f.weight": (32,),
    "transformer.h.0.attn.qkv.weight": (64, 32),
    "transformer.h.0.attn.proj.weight": (32, 32),
    "transformer.h.0.mlp.fc_1.weight": (48, 32),
    "transformer.h.0.mlp.fc_2.weight": (48, 32),
    "transformer.h.0.mlp.proj.weight": (32, 48),
    "transformer.h.0.norm_1.weight": (32,),
    "transformer.h.0.norm_2.weight": (32,),
}


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lit")
    state = {name: np.ones(shape, "f4") for name, shape in LIT_SHAPES.items()}
    torch_files.write_checkpoint(folder / "lit_model.pth", state)
    (folder / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(280), {}))
    return folder


def test_the_undamaged_litgpt_directory_is_read(lit: Path) -> None:
    (lit / "model_config.yaml").write_text(yaml.dump(LIT))
    assert read_whole(lit)


@fuzzed(6, 20)
@given(data=st.data())
def test_litgpt(lit: Path, data: st.DataObject) -> None:
    text = yaml.dump(changed(data.draw, LIT, paths(LIT))).encode("utf-8", "surrogatepass")
    if data.draw(st.integers(0, 2)) == 0:
        text = damaged(data.draw, text)
    (lit / "model_config.yaml").write_bytes(text)
    read_whole(lit)


# -- quantized checkpoints -------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "compressed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True},
                "targets": ["Linear"],
            }
        },
    },
}


def packed(method: str, rows: int, columns: int) -> dict[str, tuple[str, Any]]:
    """The pieces of a matrix, all of whose codes are zero."""
    groups = columns // 32
    if method == "compressed":
        return {
            "weight_packed": ("I32", np.zeros((rows, columns // 8), np.int32)),
            "weight_scale": ("F16", np.ones((rows, groups), np.float16)),
            "weight_shape": ("I64", np.array([rows, columns], np.int64)),
        }
    shape = (columns // 8, rows) if method == "gptq" else (columns, rows // 8)
    pieces: dict[str, tuple[str, Any]] = {
        "qweight": ("I32", np.zeros(shape, np.int32)),
        "qzeros": ("I32", np.zeros((groups, rows // 8), np.int32)),
        "scales": ("F16", np.ones((groups, rows), np.float16)),
    }
    if method == "gptq":
        pieces["g_idx"] = ("I32", (np.arange(columns) // 32).astype(np.int32))
    return pieces


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each method."""
    base = tmp_path_factory.mktemp("quantized")
    for method, config in METHODS.items():
        folder = base / method
        folder.mkdir()
        tensors: dict[str, tuple[str, Any]] = {}
        for name, values in TENSORS.items():
            stored = hf_name(name)
            if values.shape[0] == 1 or not name.startswith("layers."):
                whole = values.reshape(-1) if values.shape[0] == 1 else values
                tensors[stored] = ("F32", whole.astype("<f4"))
                continue
            for part, piece in packed(method, *values.shape).items():
                tensors[f"{stored.removesuffix('.weight')}.{part}"] = piece
        layout = [(name, kind, values.shape) for name, (kind, values) in tensors.items()]
        with SafetensorsWriter(folder / "model.safetensors", layout, {}) as writer:
            for _, values in tensors.values():
                writer.write(memoryview(values.tobytes()))
        raw = hf_config(SPEC) | {"quantization_config": config}
        (folder / "config.json").write_text(json.dumps(raw))
        (folder / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(280), {}))
    return {method: base / method for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_the_undamaged_quantized_directories_are_read(
    quantized: dict[str, Path], method: str
) -> None:
    assert read_whole(quantized[method])


@fuzzed(8, 30)
@given(data=st.data())
def test_quantized_directories(quantized: dict[str, Path], data: st.DataObject) -> None:
    """The settings of the method changed, or the header of the pieces."""
    folder = quantized[data.draw(st.sampled_from(sorted(quantized)))]
    config, weights = folder / "config.json", folder / "model.safetensors"
    before = config.read_bytes(), weights.read_bytes()
    if data.draw(st.booleans()):
        raw = json.loads(before[0])
        places = [("quantization_config", *path) for path in paths(raw["quantization_config"])]
        content = json.dumps(changed(data.draw, raw, places))
        config.write_bytes(content.encode("utf-8", "surrogatepass"))
    else:
        size = int.from_bytes(before[1][:8], "little")
        header = json.loads(before[1][8 : 8 + size])
        made = json.dumps(changed(data.draw, header, paths(header)))
        new = made.encode("utf-8", "surrogatepass")
        weights.write_bytes(len(new).to_bytes(8, "little") + new + before[1][8 + size :])
    try:
        read_whole(folder)
    finally:
        config.write_bytes(before[0])
        weights.write_bytes(before[1])
