"""Forms of stored tensors: turned matrices of any type, and rows in another order."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_families
import numpy as np
import numpy.typing as npt
import pytest
from converter_builders import encode, gguf_bytes
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import ModelError, open_model
from hearth.converter.families.base import Files, FileTensor, find
from hearth.converter.files import OpenFile
from hearth.converter.quantized import fp8_values
from hearth.converter.readers.random import random_spec
from hearth.converter.readers.safetensors_file import SafetensorsWriter
from hearth.converter.stored import (
    Order,
    PickedRows,
    Stacked,
    Stored,
    StoredTensor,
    Transposed,
    UnfitError,
)
from hearth.converter.weights import Bytes, row_bytes

HEADS, NOPE, ROPE, VALUE, RANK, HIDDEN = 3, 32, 8, 12, 256, 64
V2: dict[str, Any] = {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "intermediate_size": 96, "vocab_size": 128, "q_lora_rank": None, "kv_lora_rank": RANK,
    "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE,
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3,
    "moe_intermediate_size": 40, "first_k_dense_replace": 1, "topk_method": "greedy",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [20, 64]},
}  # fmt: skip


def turned(both: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """wk_b of a matrix of keys and values, [heads * (nope + value), rank]."""
    keys = both.reshape(HEADS, NOPE + VALUE, RANK)[:, :NOPE]
    return np.ascontiguousarray(keys.swapaxes(1, 2)).reshape(HEADS * RANK, NOPE)


def check_latents(path: Path, both: npt.NDArray[np.float32]) -> None:
    """wk_b and wv_b of the model's first layer are the parts of `both`."""
    with open_model(str(path)) as model:
        assert model.tensor_type("layers.0.wk_b") == "q8_0"
        keys = model.read("layers.0.wk_b", "f32").view("<f4")
        assert np.array_equal(keys, turned(both))
        cut = model.read("layers.0.wk_b", "f32", (100, 600), (4, 20)).view("<f4")
        assert np.array_equal(cut, turned(both)[100:600, 4:20])
        # Half a step of a block, the largest number / 127, and the error of its f16 scale.
        packed = model.read("layers.0.wk_b", "q8_0")
        unpacked = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        assert np.abs(unpacked - keys).max() <= np.abs(keys).max() / 127 * (0.5 + 127 * 2.0**-11)
        values = model.read("layers.0.wv_b", "f32").view("<f4")
        expected = both.reshape(HEADS, NOPE + VALUE, RANK)[:, NOPE:].reshape(-1, RANK)
        assert np.array_equal(values, expected)


def test_latents_in_fp8(tmp_path: Path) -> None:
    """As DeepSeek-V3 is published: kv_b_proj in FP8, with scales of blocks."""
    random = np.random.default_rng(5)
    at = "model.layers.0."
    floats = {
        "model.embed_tokens.weight": (128, HIDDEN), "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (128, HIDDEN), f"{at}input_layernorm.weight": (HIDDEN,),
        f"{at}post_attention_layernorm.weight": (HIDDEN,),
        f"{at}self_attn.q_proj.weight": (HEADS * (NOPE + ROPE), HIDDEN),
        f"{at}self_attn.kv_a_proj_with_mqa.weight": (RANK + ROPE, HIDDEN),
        f"{at}self_attn.kv_a_layernorm.weight": (RANK,),
        f"{at}self_attn.o_proj.weight": (HIDDEN, HEADS * VALUE),
        f"{at}mlp.gate_proj.weight": (96, HIDDEN), f"{at}mlp.up_proj.weight": (96, HIDDEN),
        f"{at}mlp.down_proj.weight": (HIDDEN, 96),
    }  # fmt: skip
    pieces: dict[str, tuple[str, npt.NDArray[Any]]] = {
        name: ("F32", random.standard_normal(shape).astype(np.float32))
        for name, shape in floats.items()
    }
    rows = HEADS * (NOPE + VALUE)
    codes = random.integers(0, 120, (rows, RANK)).astype(np.uint8)
    scales = random.random((-(-rows // 20), RANK // 64)).astype(np.float32)
    pieces[f"{at}self_attn.kv_b_proj.weight"] = ("F8_E4M3", codes)
    pieces[f"{at}self_attn.kv_b_proj.weight_scale_inv"] = ("F32", scales)
    (tmp_path / "config.json").write_text(json.dumps(V2))
    layout = [(name, dtype, data.shape) for name, (dtype, data) in pieces.items()]
    with SafetensorsWriter(tmp_path / "model.safetensors", layout, {}) as writer:
        for _, data in pieces.values():
            writer.write(data.reshape(-1).view(np.uint8).data)
    whole = np.repeat(np.repeat(scales, 20, axis=0)[:rows], 64, axis=1)
    check_latents(tmp_path, fp8_values()[codes] * whole)


@pytest.mark.parametrize("kind", ["q4_k", "q8_0", "iq4_xs", "q2_k"])
def test_joint_latents_of_a_quantized_gguf(tmp_path: Path, kind: str) -> None:
    """As files of 2024 have them: keys and values of a head in one quantized tensor."""
    sizes = gguf_families.Sizes(hidden=HIDDEN, layers=1, heads=HEADS, ffn=96)
    case = gguf_families.Case(
        "deepseek2",
        sizes,
        {
            "attention.head_count_kv": HEADS, "attention.kv_lora_rank": RANK,
            "attention.key_length": NOPE + ROPE, "attention.value_length": VALUE,
            "rope.dimension_count": ROPE, "leading_dense_block_count": 1, "expert_count": 8,
            "expert_used_count": 3, "expert_feed_forward_length": 32, "expert_shared_count": 1,
        },
        gguf_families.joined(
            gguf_families.latent(0, RANK, NOPE, ROPE, VALUE),
            gguf_families.joint_latent(RANK, NOPE, VALUE),
        ),
    )  # fmt: skip
    random = np.random.default_rng(6)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    both = np.empty(0, np.float32)
    for name, shape in gguf_families.shapes(case).items():
        values = random.standard_normal(shape).astype(np.float32)
        number, data = 0, values.view(np.uint8)
        if name.endswith("attn_kv_b.weight"):
            type_of = gguf.GGMLQuantizationType[kind.upper()]
            number, data = int(type_of), np.ascontiguousarray(encode(values, kind))
            both = gguf.quants.dequantize(data, type_of)
        tensors[name] = (number, shape, data.tobytes())
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gguf_families.metadata(case), tensors))
    check_latents(path, both)


class Counting(Stored):
    """A matrix in memory; counts the bytes that are read of it, and the most at once."""

    def __init__(self, values: npt.NDArray[Any], kind: str) -> None:
        self.kind, (self.rows, self.columns) = kind, values.shape
        self._data = values.view(np.uint8).reshape(self.rows, -1)
        self.read = self.most = 0
        self._lock = threading.Lock()

    def places(self) -> list[Any]:
        return []

    def form(self) -> list[str | int]:
        return []

    def read_rows(self, begin: int, end: int) -> Bytes:
        found = self._data[begin:end]
        with self._lock:
            self.read += found.nbytes
            self.most = max(self.most, found.nbytes)
        return found


def test_a_turned_matrix_is_read_once_for_each_band() -> None:
    rows, columns = 2880, 7000
    values = np.arange(rows * columns, dtype=np.uint32).astype(np.uint16).reshape(rows, columns)
    inner = Counting(values, "bf16")
    matrix = Transposed(inner)
    for begin in range(0, columns, 364):
        found = matrix.read_rows(begin, min(begin + 364, columns))
        assert np.array_equal(found.view(np.uint16), values[:, begin : begin + 364].T)
    # 40 MB in bands of 32 MiB.
    assert inner.read == 2 * values.nbytes
    assert inner.most <= 2 << 20


def test_threads_read_turned_matrices() -> None:
    random = np.random.default_rng(7)
    all_values = [random.standard_normal((300, 400)).astype(np.float32) for _ in range(6)]
    matrices = [Transposed(Counting(values, "f32")) for values in all_values]
    wrong: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            which, begin = int(random.integers(6)), int(random.integers(400))
            end = int(random.integers(begin, 401))
            found = matrices[which].read_rows(begin, end).view(np.float32)
            if not np.array_equal(found, all_values[which][:, begin:end].T):
                wrong.append((which, begin))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(
    st.lists(st.integers(0, 1 << 40), max_size=40)
    | st.builds(lambda a, n, s: list(range(a, a + n * s, s)), *[st.integers(1, 50)] * 3),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_an_order_is_its_indices(indices: list[int], begin: int, end: int) -> None:
    order = Order(np.array(indices, dtype=np.int64))
    assert len(order) == len(indices)
    assert order.indices().tolist() == indices
    assert order.indices(begin, end).tolist() == indices[begin:end]


def test_orders_of_models_take_few_bytes() -> None:
    stride = np.arange(128 * 2880) * 2 + 1
    assert Order(stride).size_bytes == 16
    heads = (np.arange(64)[:, None] * 192 + np.arange(128)).reshape(-1)
    assert Order(heads).size_bytes <= 64 * 32 < heads.nbytes / 30
    inner = Counting(np.arange(2 * 500, dtype=np.float32).reshape(500, 2), "f32")
    picked = PickedRows(inner, np.arange(100) * 5 + 3)
    assert picked.read_rows(10, 12).view(np.float32).tolist() == [[106, 107], [116, 117]]


def test_parts_that_differ_name_the_file_and_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4096))
    file = OpenFile(path)
    names = ("f32", "f16")
    entries = {kind: FileTensor(file, 0, kind, (4, 8)) for kind in names}
    files = Files(entries, str(path), "", names)
    spec = random_spec("tinyllama-1.1b")
    tensor = replace(spec.tensor("layers.3.wq"), shape=(8, 8))

    def recipe(files: Files, *_: object) -> Stored:
        return Stacked([files.matrix(kind, 4, 8) for kind in names])

    with pytest.raises(ModelError, match=r"weights: tensor layers\.3\.wq: parts of one tensor"):
        find(files, spec, tensor, recipe)
    one = StoredTensor(file, 0, "f32", 4, 8)
    with pytest.raises(UnfitError):
        Stacked([one, StoredTensor(file, 0, "f32", 4, 4)])
    assert one.row_bytes == row_bytes("f32", 8)
    file.close()
