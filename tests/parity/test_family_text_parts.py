"""Models that also read images or sound: their text part against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import family_parity
import pytest
from converter_builders import rename_tensors
from family_parity import Case

from hearth.converter import open_model
from hearth.converter.families.text_parts import whole_kinds

pytestmark = pytest.mark.parity

# Of the parts that read images and sound, as small as they can be.
_SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "depth": 1, "num_heads": 2, "embed_dim": 16, "patch_size": 8,
    "image_size": 16, "out_hidden_size": 64, "head_dim": 8, "d_model": 16, "encoder_layers": 1,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "mlp_dim": 16, "projection_dim": 16,
    "text_hidden_size": 64, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0],
    "num_mel_bins": 8, "max_source_positions": 16,
}  # fmt: skip
_TOKENS = (
    "image_token_id", "video_token_id", "image_token_index", "video_token_index",
    "audio_token_id", "audio_token_index", "vision_start_token_id", "vision_end_token_id",
)  # fmt: skip
_AXES: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e5}
_GLM: dict[str, Any] = {
    "hidden_size": 128,
    "head_dim": 16,
    "rope_parameters": _AXES | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5},
}
_QWEN2: dict[str, Any] = {"head_dim": 8, "rope_parameters": _AXES | {"mrope_section": [2, 1, 1]}}
_QWEN3: dict[str, Any] = {"rope_parameters": _AXES | {"mrope_section": [4, 2, 2]}}
_EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2}
# Settings of the text part beside the common ones, by the kind of the whole.
TEXT: dict[str, dict[str, Any]] = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3 | _EXPERTS | {"moe_intermediate_size": 40},
    "glm4v": _GLM,
    "glm46v": _GLM,
}
# (kind, the text part's, other settings of it)
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava of mistral": ("llava", "mistral", {"sliding_window": 7}),
    "llava of qwen2, tied": ("llava", "qwen2", {"tie_word_embeddings": True, "head_dim": 8}),
    # transformers leaves logits_scaling out beneath llava_next; Granite and vLLM divide by it.
    "llava_next of granite": (
        "llava_next",
        "granite",
        {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "logits_scaling": 1.0},
    ),
    "internvl of llama": ("internvl", "llama", {}),
    "qwen3_vl_moe, square experts": (
        "qwen3_vl_moe",
        "qwen3_vl_moe_text",
        _QWEN3 | _EXPERTS | {"moe_intermediate_size": 32},
    ),
}
AUTO = {
    "voxtral": "AutoModelForMultimodalLM",
    "qwen2_audio": "AutoModelForMultimodalLM",
    "audioflamingo3": "AutoModelForSeq2SeqLM",
}
# Not in transformers.
KINDS = [kind for kind in whole_kinds() if kind != "internvl_chat"]
SEVERAL = ("qwen2_vl", "qwen3_vl_moe", "llava")


def small(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a part with its sizes made small."""
    found = dict(values)
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] = small(value)
        elif value is not None and key in _SMALL:
            each = _SMALL[key]
            several = isinstance(value, list | tuple) and not isinstance(each, list)
            found[key] = [each] * len(value) if several else each
    return found


def case_of(kind: str, text_kind: str | None, more: dict[str, Any]) -> Case:
    transformers = pytest.importorskip("transformers", reason="make test PARITY=1 installs it")
    usual = transformers.AutoConfig.for_model(kind).to_dict()
    text_kind = text_kind or usual["text_config"]["model_type"]
    text = family_parity.COMMON | {"model_type": text_kind} | more
    config: dict[str, Any] = {"text_config": text}
    for key, value in usual.items():
        if key != "text_config" and key.endswith("_config") and isinstance(value, dict):
            config[key] = small(value)
    config |= {key: 127 for key in _TOKENS if key in usual}
    nodes = (1, 2) if kind in SEVERAL else (1,)
    return Case(kind, config, nodes, auto=AUTO.get(kind, "AutoModelForImageTextToText"))


@pytest.mark.parametrize("kind", KINDS)
def test_logits(kind: str, addresses: list[str], tmp_path: Path) -> None:
    case = case_of(kind, None, TEXT.get(kind, {}))
    family_parity.check(case, tmp_path / "model", addresses, len(kind))
    with open_model(str(tmp_path / "model")) as model:
        assert model.notes == ["model: it also reads images or sound; Hearth runs its text part"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_text_parts(name: str, addresses: list[str], tmp_path: Path) -> None:
    case = case_of(*OTHERS[name])
    family_parity.check(case, tmp_path / "model", addresses, len(name))


def test_files_of_before(tmp_path: Path) -> None:
    """Qwen2-VL as it was published: the settings and the tensors of the text are outside."""
    case = case_of("qwen2_vl", None, _QWEN2)
    expected = family_parity.make_reference(case, tmp_path / "model", 5)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    text = config.pop("text_config")
    text.pop("model_type")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | text))
    rename_tensors(
        tmp_path / "model" / "model.safetensors",
        {"model.language_model.": "model.", "model.visual.": "visual."},
    )
    found = family_parity.hearth_logits(expected.path, expected.texts, [], "mesh")
    for rows, wanted in zip(found, expected.logits, strict=True):
        assert abs(rows - wanted).max() < family_parity.LARGEST_DIFFERENCE


def test_internvl_chat(tmp_path: Path) -> None:
    """InternVL's own files: llm_config, and mlp1 behind the model of images."""
    case = case_of("internvl", "llama", {})
    expected = family_parity.make_reference(case, tmp_path / "model", 6)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    text = config["text_config"] | {"tie_word_embeddings": config["tie_word_embeddings"]}
    own = {"model_type": "internvl_chat", "llm_config": text}
    (tmp_path / "model" / "config.json").write_text(json.dumps(own))
    rename_tensors(
        tmp_path / "model" / "model.safetensors",
        {
            "lm_head.": "language_model.lm_head.",
            "language_model.model.": "language_model.model.",
            "language_model.lm_head.": "language_model.lm_head.",
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_model.",
            "vision_tower.": "vision_model.",
            "model.multi_modal_projector.": "mlp1.",
            "multi_modal_projector.": "mlp1.",
        },
    )
    found = family_parity.hearth_logits(expected.path, expected.texts, [], "mesh")
    for rows, wanted in zip(found, expected.logits, strict=True):
        assert abs(rows - wanted).max() < family_parity.LARGEST_DIFFERENCE
