"""Qwen3-Next and Qwen3.5 against transformers, from Hugging Face directories and from GGUF.

transformers sums its delta rule over chunks, Hearth token by token, both in float32. From the same
model in float64, transformers was off by up to 1.5e-4, and Hearth on one node by up to 1.3e-4.
These are the largest of three seeds of each case, in logits of up to 8.
On two nodes the largest case was off by 2.4e-4.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import family_parity
import numpy as np
import numpy.typing as npt
import pytest
from converter_builders import GGUF_TYPES, gguf_bytes, spm_metadata
from family_parity import Case

from hearth import _native
from hearth.converter import open_model

pytestmark = pytest.mark.parity

F32 = npt.NDArray[np.float32]
LINEAR = {
    "num_hidden_layers": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
}
ODD = {
    "hidden_size": 45,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 24,
    "intermediate_size": 77,
    "moe_intermediate_size": 44,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 7,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 9,
    "tie_word_embeddings": True,
}


def _fill(name: str, parameter: Any) -> bool:
    """Norms are stored less one, and states must last neither for ever nor for no time."""
    if name.endswith("A_log"):
        parameter.uniform_(-3, 1)
        return True
    if name.endswith("norm.weight") and "linear_attn" not in name:
        parameter.normal_(0, 0.3)
        return True
    return False


def _case(model_type: str, config: dict[str, Any], **more: Any) -> Case:
    return Case(model_type, LINEAR | config, fill=_fill, **more)


CASES = {
    "next": _case("qwen3_next", EXPERTS),
    "next, odd sizes, tied, some layers dense": _case(
        "qwen3_next",
        EXPERTS | ODD | {"mlp_only_layers": [1], "attention_bias": True, "norm_topk_prob": False},
        shares=(2, 3, 1),
    ),
    "3.5": _case("qwen3_5_text", {}),
    "3.5, odd sizes, tied": _case(
        "qwen3_5_text",
        ODD
        | {"attention_bias": True}
        | {"layer_types": ["full_attention", "linear_attention", *["linear_attention"] * 2]},
        shares=(1, 1, 3),
        dtype="bfloat16",
    ),
    # Its last three settings are Qwen3-Next's alone.
    "3.5 moe": _case(
        "qwen3_5_moe_text",
        EXPERTS | {"norm_topk_prob": False, "mlp_only_layers": [1], "decoder_sparse_step": 2},
    ),
    "3.5 moe, odd sizes, tied": _case("qwen3_5_moe_text", EXPERTS | ODD, shard_size="60KB"),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))


# -- GGUF: tensors as llama.cpp's converter names and orders them --


def _turned(values: F32, config: Any, axis: int, size: int) -> F32:
    """Value heads of `size` along an axis: first one of each key head, then another of each."""
    keys, group = config.linear_num_key_heads, 2
    apart = np.moveaxis(values, axis, 0).reshape(keys, group, size, -1)
    shape = np.moveaxis(values, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(apart.swapaxes(0, 1).reshape(shape), 0, axis))


def _gguf_tensors(weights: dict[str, F32], config: Any, is_next: bool) -> dict[str, F32]:
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "self_attn.q_norm.weight": "attn_q_norm.weight",
        "self_attn.k_norm.weight": "attn_k_norm.weight",
        "linear_attn.A_log": "ssm_a",
        "linear_attn.dt_bias": "ssm_dt.bias",
        "linear_attn.conv1d.weight": "ssm_conv1d.weight",
        "linear_attn.norm.weight": "ssm_norm.weight",
        "linear_attn.out_proj.weight": "ssm_out.weight",
        "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
        "linear_attn.in_proj_z.weight": "attn_gate.weight",
        "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
        "linear_attn.in_proj_b.weight": "ssm_beta.weight",
        "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
        "mlp.gate.weight": "ffn_gate_inp.weight",
        "mlp.experts.down_proj": "ffn_down_exps.weight",
        "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
        "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
        "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
        "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    }
    found = {}
    for name, values in weights.items():
        part, prefix = name, ""
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        if part.endswith("norm.weight") and part != "linear_attn.norm.weight":
            values = values + 1
        if part == "linear_attn.A_log":
            values = -np.exp(values)
        if part == "linear_attn.conv1d.weight":
            values = values[:, 0]
        if part == "mlp.shared_expert_gate.weight":
            values = values[0]
        if part == "mlp.experts.gate_up_proj":
            gate, up = np.split(values, 2, axis=1)
            found[prefix + "ffn_gate_exps.weight"] = gate
            found[prefix + "ffn_up_exps.weight"] = up
            continue
        if part == "linear_attn.in_proj_qkvz.weight":
            of_head = values.reshape(keys, -1, values.shape[-1])
            group = heads // keys * value
            q, k, v, z = np.split(of_head, [key, 2 * key, 2 * key + group], axis=1)
            flat = [each.reshape(-1, values.shape[-1]) for each in (q, k, v, z)]
            found[prefix + "attn_qkv.weight"] = np.concatenate(flat[:3])
            found[prefix + "attn_gate.weight"] = flat[3]
            continue
        if not is_next and part.startswith("linear_attn."):
            last = part.removeprefix("linear_attn.")
            if last in ("in_proj_qkv.weight", "conv1d.weight"):
                fixed, turned = np.split(values, [2 * keys * key])
                values = np.concatenate([fixed, _turned(turned, config, 0, value)])
            elif last == "in_proj_z.weight":
                values = _turned(values, config, 0, value)
            elif last == "out_proj.weight":
                values = _turned(values, config, 1, value)
            elif last != "norm.weight":
                values = _turned(values, config, 0, 1)
        found[prefix + names[part]] = values
    return found


def _metadata(config: Any, name: str) -> dict[str, Any]:
    experts = {}
    if "num_experts" in config.to_dict():
        experts = {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        }
    else:
        experts = {"feed_forward_length": config.intermediate_size}
    numbers = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        # One more, which guesses a further token.
        "block_count": config.num_hidden_layers + 1,
        "nextn_predict_layers": 1,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim // 4,
        "rope.freq_base": 10000.0,
        "full_attention_interval": 4,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
        **experts,
    }
    return {"general.architecture": name, "general.name": name} | {
        f"{name}.{key}": value for key, value in numbers.items()
    }


@pytest.mark.parametrize("outputs", ["f32", "q8_0"])
@pytest.mark.parametrize(
    ("name", "architecture"), [("next", "qwen3next"), ("3.5", "qwen35"), ("3.5 moe", "qwen35moe")]
)
def test_logits_of_gguf(
    name: str, architecture: str, outputs: str, addresses: list[str], tmp_path: Path
) -> None:
    """outputs: the type of the delta rule's outputs, whose value heads are half a block of q8_0."""
    case = replace(CASES[name], config=CASES[name].config | {"vocab_size": 300})
    expected = family_parity.make_reference(case, tmp_path / "model", 5)
    model, config = expected.model, expected.model.config
    is_next = architecture == "qwen3next"
    if outputs != "f32":
        _round_outputs(model, config, outputs, is_next)
    weights = {n: t.detach().numpy() for n, t in model.named_parameters()}
    tensors = {}
    for each, values in _gguf_tensors(weights, config, is_next).items():
        kind = outputs if each.endswith("ssm_out.weight") else "f32"
        data = _native.quantize(values.reshape(-1, values.shape[-1]), kind)
        tensors[each] = (GGUF_TYPES[kind], values.shape, data.tobytes())
        if each.startswith("blk.0."):  # the layer behind the model's is not read
            tensors[each.replace("blk.0.", "blk.4.")] = tensors[each]
    tensors["blk.4.nextn.eh_proj.weight"] = tensors["blk.0.attn_norm.weight"]
    path = tmp_path / "model.gguf"
    metadata = _metadata(config, architecture) | spm_metadata(300)
    path.write_bytes(gguf_bytes(metadata, tensors))
    logits = _logits(model, expected.texts)
    for nodes in (1, 2):
        found = family_parity.hearth_logits(path, expected.texts, addresses[: nodes - 1], "mesh")
        for rows, wanted in zip(found, logits, strict=True):
            difference = np.abs(rows - wanted).max()
            assert difference < family_parity.LARGEST_DIFFERENCE, f"{nodes} nodes"


def _round_outputs(model: Any, config: Any, kind: str, is_next: bool) -> None:
    """Gives the delta rules' outputs the values that a file in `kind` has."""
    import torch

    size, keys = config.linear_value_head_dim, config.linear_num_key_heads
    for name, parameter in model.named_parameters():
        if not name.endswith("linear_attn.out_proj.weight"):
            continue
        values = parameter.detach().numpy()
        stored = values if is_next else _turned(values, config, 1, size)
        rounded = _native.dequantize(_native.quantize(stored, kind), kind, stored.shape[1])
        if not is_next:
            turns = rounded.reshape(len(rounded), -1, keys, size)
            rounded = turns.swapaxes(1, 2).reshape(values.shape)
        with torch.no_grad():
            parameter.copy_(torch.tensor(rounded))


def _logits(model: Any, texts: tuple[list[int], list[int]]) -> list[F32]:
    import torch

    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].numpy() for ids in texts]


def test_the_text_part_of_a_model_that_reads_images(addresses: list[str], tmp_path: Path) -> None:
    """Its three axes of positions are equal in a text."""
    pytest.importorskip("transformers", reason="make test PARITY=1 installs transformers")
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(3)
    text: dict[str, Any] = family_parity.COMMON | LINEAR | {"tie_word_embeddings": True}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    vision |= {"patch_size": 4, "out_hidden_size": 64, "num_position_embeddings": 16}
    for_model: Any = AutoConfig.for_model
    config = for_model("qwen3_5", text_config=text, vision_config=vision, tie_word_embeddings=True)
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not _fill(name, parameter) and parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(tmp_path / "model")
    random = np.random.default_rng(3)
    texts = tuple(random.integers(0, 128, count).tolist() for count in family_parity.TEXTS)
    found = family_parity.hearth_logits(
        tmp_path / "model", (texts[0], texts[1]), addresses[:1], "mesh"
    )
    with open_model(str(tmp_path / "model")) as read:
        assert read.notes == ["model: it also reads images or sound; Hearth runs its text part"]
    for rows, wanted in zip(found, _logits(model, (texts[0], texts[1])), strict=True):
        assert wanted.std() > 0.5
        assert np.abs(rows - wanted).max() < family_parity.LARGEST_DIFFERENCE
