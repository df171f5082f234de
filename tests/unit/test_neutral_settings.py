"""Settings that must be neutral: refused by name in every family that does not read them.

The effects were seen in transformers 5.24, with small random models: `is_causal: false` attends
both ways, a window or chunks shorten the KV cache of any model, a part of a head breaks the rope.
"""

from __future__ import annotations

from typing import Any

import pytest
from family_configs import CONFIGS

from hearth.converter import ModelError
from hearth.converter.hf_config import read_spec

FULL, WINDOW = "full_attention", "sliding_attention"
# Refused in all families, at the top and in text_config.
ALWAYS: list[tuple[str, Any]] = [
    ("is_causal", False),
    ("is_causal", None),  # transformers takes it for false
    ("is_causal", 0),
    ("is_causal", "true"),
    ("use_bidirectional_attention", True),
    ("use_bidirectional_attention", "all"),
    ("is_encoder_decoder", True),
    ("add_cross_attention", True),
    ("attention_chunk_size", 4),
    ("per_layer_config", {"0": {"sliding_window": 4}}),
]
# Families that read a setting, whose values other tests cover.
WITH_WINDOW = {
    "mistral", "ministral", "ministral3", "mistral3", "mixtral", "qwen2", "qwen3", "qwen3_moe",
    "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified",
    "gemma4_unified_text", "gpt_oss", "olmo3", "phi3", "smollm3",
}  # fmt: skip
WITH_KINDS = (WITH_WINDOW - {"mixtral", "qwen3_moe", "phi3"}) | {
    "granitemoehybrid", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
}  # fmt: skip
WITH_PART = {
    "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "glm", "glm4",
    "glm4_moe_lite", "phi3", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe",
    "qwen3_5_moe_text",
}  # fmt: skip


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The family's config with other settings, in text_config where it has one."""
    config = CONFIGS[name]
    if "text_config" in config:
        return config | {"text_config": config["text_config"] | changes}
    return config | changes


def refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_spec(config, "model")


@pytest.mark.parametrize(("key", "value"), ALWAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_refused_in_every_family(name: str, key: str, value: Any) -> None:
    refused(changed(name, {key: value}), key)


@pytest.mark.parametrize("key", ["is_causal", "is_encoder_decoder"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if "text_config" in CONFIGS[name]])
def test_refused_beside_a_text_config(name: str, key: str) -> None:
    refused(CONFIGS[name] | {key: key != "is_causal"}, key)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WITH_KINDS])
def test_kinds_of_layers(name: str) -> None:
    count: int = CONFIGS[name].get("num_hidden_layers") or CONFIGS[name].get("n_layer") or 0
    same = read_spec(CONFIGS[name], "model")[1]
    assert read_spec(changed(name, {"layer_types": [FULL] * count}), "model")[1] == same
    for kinds in (
        [WINDOW] + [FULL] * (count - 1),
        ["chunked_attention"] * count,
        ["linear_attention"] * count,
        "full_attention",
        [["full_attention"]],
    ):
        refused(changed(name, {"layer_types": kinds}), "layer_types is ")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WITH_WINDOW | WITH_KINDS])
def test_windows(name: str) -> None:
    own = CONFIGS[name]
    context: int = own.get("max_position_embeddings") or own.get("n_positions") or 0
    same = read_spec(CONFIGS[name], "model")[1]
    for neutral in (None, context, 10 * context):
        assert read_spec(changed(name, {"sliding_window": neutral}), "model")[1] == same
    for window in (1, context - 1, 0, -1, True, "4096", 1e9):
        refused(changed(name, {"sliding_window": window}), "sliding_window is .*no window")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WITH_PART])
def test_parts_of_heads(name: str) -> None:
    read_spec(changed(name, {"partial_rotary_factor": 1.0}), "model")
    words = "partial_rotary_factor is 0.5; .*whole heads"
    refused(changed(name, {"partial_rotary_factor": 0.5}), words)
    part = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    refused(changed(name, {"rope_parameters": part}), f"rope_parameters.{words}")
    kinds = {FULL: part, WINDOW: part}
    refused(changed(name, {"rope_parameters": kinds}), f"rope_parameters.{FULL}.{words}")


@pytest.mark.parametrize("name", CONFIGS)
def test_older_neutral_settings(name: str) -> None:
    """Settings of real files that change nothing."""
    neutral: dict[str, Any] = {
        "is_causal": True, "is_decoder": False, "is_encoder_decoder": False,
        "add_cross_attention": False, "pretraining_tp": 2, "use_bidirectional_attention": False,
        "chunk_size_feed_forward": 0, "attention_chunk_size": None, "per_layer_config": {},
    }  # fmt: skip
    if "gemma4" in name:
        neutral.pop("use_bidirectional_attention")
        neutral.pop("per_layer_config")
    same = read_spec(CONFIGS[name], "model")[1]
    assert read_spec(changed(name, neutral), "model")[1] == same
