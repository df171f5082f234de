"""Models that also read images or sound, whose text part is a model of one of the families.

Positions have several axes in some of them (mrope); in a text all are equal, and so the rotation is
the usual one.
"""

from collections.abc import Mapping
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.families.layers import with_defaults
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown

# Kinds of whole models, and the kind of a text part that does not name its own.
_WHOLE: Mapping[str, str] = {
    "audioflamingo3": "qwen2",
    "deepseek_vl": "llama",
    "glm46v": "glm4v_text",
    "glm4v": "glm4v_text",
    "got_ocr2": "qwen2",
    "idefics2": "mistral",
    "idefics3": "llama",
    "internvl": "qwen2",
    "internvl_chat": "qwen2",
    "janus": "llama",
    "lighton_ocr": "qwen3",
    "llava": "llama",
    "llava_next": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "ovis2": "qwen2",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_audio": "qwen2",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "smolvlm": "llama",
    "video_llama_3": "qwen2",
    "video_llava": "llama",
    "vipllava": "llama",
    "voxtral": "llama",
}
_OTHER_MODULES = (
    "aligner", "audio_projector", "audio_tower", "connector", "generation_aligner",
    "generation_embeddings", "generation_head", "image_newline", "image_tower", "mlp1",
    "multi_modal_projector", "projector", "video_tower", "vision_embed_tokens", "vision_encoder",
    "vision_model", "vision_projection", "vision_tower", "visual", "visual_embeddings_table",
    "vqmodel",
)  # fmt: skip
# Beginnings of names of tensors that a text part does not use.
OTHER_PARTS = tuple(
    f"{prefix}{name}" for name in _OTHER_MODULES for prefix in ("model.", "", "model.model.")
)
# Kinds of whole models whose head is the embedding unless the file says otherwise.
_TIED = (
    "deepseek_vl", "got_ocr2", "internvl", "janus", "lighton_ocr", "ovis2",
    "gemma3", "gemma4", "gemma4_unified", "mistral3",
)  # fmt: skip
# Kinds that must have a section for the text part: transformers has values of each for a file
# without one. First those of families, which do not name their text part otherwise.
_NEEDS_TEXT = (
    "gemma3", "gemma4", "gemma4_unified", "mistral3", "qwen3_5", "qwen3_5_moe",
    "got_ocr2", "idefics2", "idefics3", "lighton_ocr", "ovis2", "smolvlm",
)  # fmt: skip
# The last is InternVL's own spelling.
_SECTIONS = ("text_config", "llm_config")


def _sizes(hidden: int, inner: int, layers: int, heads: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
    }


_QWEN2_VL = {
    **_sizes(8192, 29568, 80, 64, 152064),
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_window_layers": 80,
}
# Of transformers for this kind alone, beneath the settings that its text part names.
_VOXTRAL = {
    **_sizes(3072, 8192, 30, 32, 131072),
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
}
_QWEN3_VL = {"max_position_embeddings": 128000, "rope_theta": 5e5}
# Kinds of text parts: the family's kind, and the values of transformers for settings that are left
# out, which files of such models often do.
_PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", _sizes(4096, 11008, 32, 32, 32000)),
    "mistral": ("mistral", _sizes(4096, 14336, 32, 32, 32000)),
    "ministral3": ("ministral3", {}),
    "qwen2": ("qwen2", _sizes(4096, 22016, 32, 32, 151936)),
    "qwen3": ("qwen3", _sizes(4096, 22016, 32, 32, 151936)),
    "qwen3_moe": ("qwen3_moe", {}),
    "granite": ("granite", _sizes(4096, 11008, 32, 32, 32000)),
    "gemma2": ("gemma2", {}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {}),
    "gpt_oss": ("gpt_oss", {}),
    "qwen2_vl_text": ("qwen2", _QWEN2_VL),
    "qwen2_5_vl_text": ("qwen2", _QWEN2_VL),
    "qwen3_vl_text": (
        "qwen3",
        {
            **_sizes(4096, 22016, 32, 32, 151936),
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            **_QWEN3_VL,
        },
    ),
    "qwen3_vl_moe_text": (
        "qwen3_moe",
        {
            **_sizes(2048, 5632, 24, 16, 151936),
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "num_local_experts": 60,
            "num_experts_per_tok": 4,
            **_QWEN3_VL,
        },
    ),
    "glm4v_text": (
        "glm4",
        {
            **_sizes(4096, 13696, 40, 32, 151552),
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 1.0,
            "head_dim": None,
        },
    ),
}
# Kinds whose text part may name a tying that is not theirs; in all others one of the two is enough.
_TIED_OUTSIDE = ("qwen3_vl", "qwen3_vl_moe")
# Settings that the family reads and these parts do not have; and what they always compute.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "qwen3_vl_text": {"use_sliding_window": False},
    "qwen3_vl_moe_text": {"use_sliding_window": False, "norm_topk_prob": True},
    "glm4v_text": {"attention_bias": True},
}


_NO_TEXT = "text_config is missing, which describes the part of the model that reads text"


def whole_kinds() -> tuple[str, ...]:
    """Values of model_type whose text part runs, of those that are not a family's own."""
    return tuple(_WHOLE)


def check_text_config(raw: Mapping[str, Any]) -> None:
    """Raise ModelError where a model of such a kind does not describe its text part."""
    if raw.get("model_type") in _NEEDS_TEXT and not isinstance(raw.get("text_config"), dict):
        raise ModelError(_NO_TEXT)


def tied_by_default(raw: Mapping[str, Any]) -> bool:
    """True if transformers ties the head of such a model where the file does not say otherwise."""
    if raw.get("model_type") not in _TIED:
        return False
    texts = [raw[key] for key in _SECTIONS if isinstance(raw.get(key), dict)]
    return any(each.get("tie_word_embeddings") is None for each in (raw, *texts[:1]))


def text_settings(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config.json of the text part of such a model; None for any other model.

    Raises ModelError for a text part that is not of a family that Hearth runs.
    """
    whole = raw.get("model_type")
    usual = _WHOLE.get(whole) if isinstance(whole, str) else None
    if usual is None:
        return None
    sections = [key for key in _SECTIONS if isinstance(raw.get(key), dict)]
    if not sections and whole in _NEEDS_TEXT:
        raise ModelError(_NO_TEXT)
    # Files of 2024 have the settings of the text beside those of the images.
    text = raw[sections[0]] if sections else {k: v for k, v in raw.items() if k != "model_type"}
    kind = text.get("model_type") or usual
    if not isinstance(kind, str) or kind not in _PARTS:
        raise ModelError(
            f"{sections[0] if sections else 'text_config'}.model_type is {shown(kind)}, which is "
            f"not supported as the text part of {shown(whole)}; Hearth runs {', '.join(_PARTS)}"
        )
    family, defaults = _PARTS[kind]
    defaults = {**defaults, **_VOXTRAL} if whole == "voxtral" and kind == "llama" else defaults
    tied = [Settings(each).boolean("tie_word_embeddings", False) for each in (raw, text)]
    if whole in _TIED_OUTSIDE and raw.get("tie_word_embeddings") is not None:
        tied = tied[:1]
    return {
        **with_defaults(Settings(text), defaults).values,
        **_FIXED.get(kind, {}),
        "model_type": family,
        "architectures": None,
        "tie_word_embeddings": any(tied),
    }
