"""Forms of GGUF files that differ from those of llama.cpp's current converter, by family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf_families
import numpy as np
import numpy.typing as npt
import pytest
from converter_builders import gguf_bytes

from hearth.converter import ModelError, open_model
from hearth.converter.blocks import AttentionSpec
from hearth.converter.families.rope import RopeScaling, make_rope
from hearth.converter.spec import ModelSpec

Arrays = dict[str, npt.NDArray[np.float32]]
Read = tuple[ModelSpec, dict[str, bytes]]
WITH_QKV = (
    "llama", "llama, biases", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "glm4",
    "smollm3", "granite",
)  # fmt: skip
WITH_EXPERTS = ("mixtral", "qwen3moe", "deepseek2, lite", "qwen35moe", "qwen3next")


def drawn(name: str) -> tuple[dict[str, Any], Arrays]:
    """Metadata and random tensors of one of gguf_families.CASES."""
    case = gguf_families.CASES[name]
    random = np.random.default_rng(7)
    shapes = gguf_families.shapes(case)
    tensors = {
        each: np.abs(random.standard_normal(shape)).astype("<f4") for each, shape in shapes.items()
    }
    return gguf_families.metadata(case), tensors


def read(path: Path, metadata: Mapping[str, Any], tensors: Arrays) -> Read:
    """The shape of a GGUF file, and the bytes of its tensors as Hearth reads them."""
    stored = {name: (0, each.shape, each.tobytes()) for name, each in tensors.items()}
    path.write_bytes(gguf_bytes(dict(metadata), stored))
    with open_model(str(path)) as model:
        return model.spec, {
            name: model.read(name, "f32").tobytes() for name in model.spec.tensor_names()
        }


def changed(name: str, **changes: Any) -> tuple[dict[str, Any], Arrays]:
    """As `drawn`, with metadata under the architecture's name changed; None takes a key away."""
    metadata, tensors = drawn(name)
    architecture = metadata["general.architecture"]
    for key, value in changes.items():
        metadata[f"{architecture}.{key.replace('__', '.')}"] = value
    return {key: value for key, value in metadata.items() if value is not None}, tensors


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_gate_and_up_of_experts_in_one_tensor(tmp_path: Path, name: str) -> None:
    metadata, tensors = drawn(name)
    expected = read(tmp_path / "apart.gguf", metadata, tensors)
    for gate in [each for each in tensors if "ffn_gate_exps" in each]:
        up = tensors.pop(gate.replace("gate", "up"))
        both = np.concatenate([tensors.pop(gate), up], axis=1)
        tensors[gate.replace("gate", "gate_up")] = both
    assert read(tmp_path / "fused.gguf", metadata, tensors) == expected


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_experts_in_a_tensor_each(tmp_path: Path, name: str) -> None:
    """As in Mixtral's files of 2023: blk.0.ffn_gate.3.weight."""
    metadata, tensors = drawn(name)
    expected = read(tmp_path / "together.gguf", metadata, tensors)
    for together in [each for each in tensors if "_exps.weight" in each]:
        for expert, values in enumerate(tensors.pop(together)):
            tensors[together.replace("_exps", f".{expert}")] = values
    assert read(tmp_path / "each.gguf", metadata, tensors) == expected
    some = next(each for each in tensors if each.endswith("ffn_up.1.weight"))
    tensors.pop(some)
    with pytest.raises(ModelError, match=f"tensor {some} is missing".replace(".", r"\.")):
        read(tmp_path / "fewer.gguf", metadata, tensors)


@pytest.mark.parametrize("name", WITH_QKV)
def test_queries_keys_and_values_in_one_tensor(tmp_path: Path, name: str) -> None:
    """As some writers of files lay them, and llama.cpp reads them in these families."""
    metadata, tensors = drawn(name)
    expected = read(tmp_path / "apart.gguf", metadata, tensors)
    for query in [each for each in tensors if ".attn_q." in each]:
        parts = [tensors.pop(query.replace("_q.", f"_{part}.")) for part in "qkv"]
        tensors[query.replace("_q.", "_qkv.")] = np.concatenate(parts)
    assert read(tmp_path / "fused.gguf", metadata, tensors) == expected


@pytest.mark.parametrize("name", gguf_families.CASES)
def test_layers_that_guess_further_tokens(tmp_path: Path, name: str) -> None:
    """They are behind the model's, counted by block_count, and left out."""
    metadata, tensors = drawn(name)
    expected = read(tmp_path / "without.gguf", metadata, tensors)
    layers = gguf_families.CASES[name].sizes.layers
    architecture = metadata["general.architecture"]
    metadata |= {
        f"{architecture}.block_count": layers + 2,
        f"{architecture}.nextn_predict_layers": 2,
    }
    for layer in (layers, layers + 1):
        tensors[f"blk.{layer}.nextn.eh_proj.weight"] = np.zeros((64, 128), dtype="<f4")
        tensors[f"blk.{layer}.attn_q.weight"] = tensors["token_embd.weight"]
    assert read(tmp_path / "with.gguf", metadata, tensors) == expected
    tensors[f"blk.{layers + 2}.attn_q.weight"] = tensors["token_embd.weight"]
    with pytest.raises(ModelError, match=rf"blk\.{layers + 2}\.attn_q\.weight does not belong"):
        read(tmp_path / "more.gguf", metadata, tensors)


@pytest.mark.parametrize("count", [[-1], 2, 3, 1 << 31])
def test_further_layers_are_fewer_than_all(tmp_path: Path, count: Any) -> None:
    shown = count[0] if isinstance(count, list) else count
    with pytest.raises(ModelError, match=f"nextn_predict_layers is {shown} of 2 layers"):
        read(tmp_path / "m.gguf", *changed("llama", nextn_predict_layers=count))


def test_products_of_the_first_qwen3_next_files(tmp_path: Path) -> None:
    """ssm_in: of each key head queries, keys, values and gates."""
    metadata, tensors = drawn("qwen3next")
    expected = read(tmp_path / "apart.gguf", metadata, tensors)
    key_heads, group, size = 2, 2, 16
    for name in [each for each in tensors if each.endswith("attn_qkv.weight")]:
        if name.replace("attn_qkv", "ssm_out") not in tensors:
            continue
        rows = tensors.pop(name)
        gates = tensors.pop(name.replace("attn_qkv", "attn_gate"))
        queries, keys, values = np.split(rows, [key_heads * size, 2 * key_heads * size])
        heads = [each.reshape(key_heads, size, -1) for each in (queries, keys)]
        heads += [each.reshape(key_heads, group * size, -1) for each in (values, gates)]
        joint = np.concatenate(heads, axis=1).reshape(-1, rows.shape[1])
        tensors[name.replace("attn_qkv", "ssm_in")] = np.ascontiguousarray(joint)
    assert read(tmp_path / "joint.gguf", metadata, tensors) == expected


def test_rotary_pairs_of_glm4_with_sections(tmp_path: Path) -> None:
    """The converter lays the halves of GLM-4V's rotary part apart: two sections are above 0."""
    metadata, tensors = drawn("glm4")
    expected = read(tmp_path / "paired.gguf", metadata, tensors)
    unused = {**metadata, "glm4.rope.dimension_sections": [0, 0, 0, 0]}
    assert read(tmp_path / "zeros.gguf", unused, tensors) == expected
    for name, each in tensors.items():
        if "attn_q." in name or "attn_k." in name:
            heads = each.reshape(-1, 16, *each.shape[1:])
            order = [0, 2, 4, 6, 1, 3, 5, 7, *range(8, 16)]
            tensors[name] = np.ascontiguousarray(heads[:, order].reshape(each.shape))
    metadata["glm4.rope.dimension_sections"] = [2, 1, 1, 0]
    assert read(tmp_path / "apart.gguf", metadata, tensors) == expected


@pytest.mark.parametrize("value", [None, 0])
def test_a_router_with_a_bias_of_the_choice_is_by_sigmoid(
    tmp_path: Path, value: int | None
) -> None:
    name = "deepseek2, sigmoid, groups, yarn"
    spec, _ = read(tmp_path / "m.gguf", *changed(name, expert_gating_func=value))
    assert spec.kinds[1].experts is not None
    assert spec.kinds[1].experts.scores == "sigmoid"
    spec, _ = read(tmp_path / "lite.gguf", *changed("deepseek2, lite", expert_gating_func=value))
    assert spec.kinds[1].experts is not None
    assert spec.kinds[1].experts.scores == "softmax"


def test_growing_queries_of_latent_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"attention\.temperature_scale is 0\.1"):
        read(tmp_path / "m.gguf", *changed("deepseek2, lite", attention__temperature_scale=0.1))
    read(tmp_path / "m.gguf", *changed("deepseek2, lite", attention__temperature_scale=0.0))


def windows(spec: ModelSpec) -> list[int]:
    """The window of each layer."""
    found = []
    for kind in spec.kind_of_layer:
        mixer = spec.kinds[kind].mixer
        assert isinstance(mixer, AttentionSpec)
        found.append(mixer.window)
    return found


@pytest.mark.parametrize(
    ("name", "window", "expected"),
    [
        ("gemma2", None, [4096, 0, 4096]),
        ("gemma3, untied", None, [0, 0]),
        ("gemma3, untied", 0, [0, 0]),
        ("olmo2", None, [0, 0]),
        ("olmo2", 0, [0, 0]),
        ("olmo2", 7, [7, 7]),
    ],
)
def test_windows(tmp_path: Path, name: str, window: int | None, expected: list[int]) -> None:
    spec, _ = read(tmp_path / "m.gguf", *changed(name, attention__sliding_window=window))
    assert windows(spec) == expected


def test_gpt_oss_has_the_size_of_experts_by_either_key(tmp_path: Path) -> None:
    expected = read(tmp_path / "a.gguf", *drawn("gpt-oss"))
    assert read(tmp_path / "b.gguf", *changed("gpt-oss", feed_forward_length=None)) == expected
    other = changed("gpt-oss", feed_forward_length=64, expert_feed_forward_length=None)
    assert read(tmp_path / "c.gguf", *other) == expected


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma2", {"embedding_length": 1 << 31}, "hidden_size is"),
        ("mistral3", {"rope__scaling__yarn_log_multiplier": -1e4}, "the magnitude of yarn"),
        ("deepseek2, sigmoid, groups, yarn", {"rope__scaling__yarn_log_multiplier": -9.0}, "yarn"),
        ("qwen3next", {"ssm__time_step_rank": 1 << 31}, "heads is 2147483648"),
        (
            "gemma2",
            {"attention__head_count": [4, 2]},
            r"head_count is \[4, 2\]: it differs from layer",
        ),
        ("glm4", {"rope__dimension_sections": "2, 1"}, "a list is needed"),
    ],
)
def test_metadata_that_cannot_be(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        read(tmp_path / "m.gguf", *changed(name, **changes))


def test_ends_of_yarns_ramp_count_for_mistral3_alone(tmp_path: Path) -> None:
    """As in llama.cpp, whose other keys of YaRN no architecture here reads."""
    ends = {"rope__scaling__yarn_beta_fast": 0.3, "rope__scaling__yarn_beta_slow": 0.001}
    more = {"rope__scaling__yarn_ext_factor": 0.5, "rope__scaling__yarn_attn_factor": 3.0}
    for name in ("mistral3", "llama, tied, yarn", "deepseek2, sigmoid, groups, yarn"):
        plain = read(tmp_path / "a.gguf", *drawn(name))
        assert read(tmp_path / "b.gguf", *changed(name, **more)) == plain
        moved = read(tmp_path / "c.gguf", *changed(name, **ends))[0]
        assert (moved == plain[0]) == (name != "mistral3")
    spec, _ = read(tmp_path / "d.gguf", *changed("mistral3", **ends))
    metadata, _ = drawn("mistral3")
    size = len(spec.ropes[0].frequencies) * 2
    scaling = RopeScaling("yarn", 4.0, original_context=4, beta_fast=0.3, beta_slow=0.001)
    theta = metadata.get("mistral3.rope.freq_base", 10000.0)
    assert spec.ropes[0].frequencies == make_rope(size, theta, scaling).frequencies


def test_a_wrong_shape_is_refused_before_its_order_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of rows that metadata asks for may be a large array; the file has a few."""
    metadata, tensors = drawn("qwen35")
    name = "blk.0.attn_qkv.weight"
    tensors[name] = tensors[name][1:]
    monkeypatch.setattr("hearth.converter.families.qwen3_next.np", None)
    with pytest.raises(ModelError, match=f"tensor {name} has shape"):
        read(tmp_path / "m.gguf", metadata, tensors)
