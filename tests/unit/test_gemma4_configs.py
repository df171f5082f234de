"""Configurations of Gemma 4: their shapes, the plans made of them, and what is refused."""

from typing import Any

import pytest

from hearth.common.errors import HearthError
from hearth.converter.blocks import AttentionSpec
from hearth.converter.errors import ModelError
from hearth.converter.families import family_of_config, family_of_gguf
from hearth.converter.families.base import GgufFacts
from hearth.converter.families.settings import GgufSettings, Settings
from hearth.converter.spec import ModelSpec
from hearth.root.planning.layout import Layout
from hearth.root.planning.planner import make_plan

WINDOW, FULL = "sliding_attention", "full_attention"
# As google/gemma-4-E2B's, with fewer layers and smaller sizes.
SMALL: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "intermediate_size": 96,
    "hidden_size_per_layer_input": 8,
    "layer_types": [WINDOW, WINDOW, WINDOW, WINDOW, FULL] * 2,
    "num_kv_shared_layers": 5,
    "use_double_wide_mlp": True,
    "vocab_size": 300,
    "vocab_size_per_layer_input": 300,
}
EXPERTS: dict[str, Any] = SMALL | {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 40,
}
GGUF: dict[str, Any] = {
    "block_count": 4,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": [2, 2, 1, 1],
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": [True, True, False, False],
    "rope.freq_base": 1e6,
}


def read(config: dict[str, Any]) -> ModelSpec:
    settings = Settings(config)
    family = family_of_config(settings)
    assert family.config is not None
    return family.config(settings, "model")


def read_gguf(metadata: dict[str, Any], factors: tuple[float, ...] = ()) -> ModelSpec:
    family = family_of_gguf("gemma4")
    assert family.gguf is not None
    values = {f"gemma4.{key}": value for key, value in metadata.items()}
    ropes = {"rope_freqs": factors} if factors else {}
    facts = GgufFacts(300, ropes, lambda name: name.endswith("attn_v.weight"))
    return family.gguf(GgufSettings(values, "gemma4."), "model", facts)


def mixers(spec: ModelSpec) -> list[AttentionSpec]:
    found = [spec.kinds[kind].mixer for kind in spec.kind_of_layer]
    assert all(isinstance(each, AttentionSpec) for each in found)
    return [each for each in found if isinstance(each, AttentionSpec)]


def test_the_last_layers_read_the_keys_of_the_last_before_them() -> None:
    """Of the same kind: layer 3 is the last with a window before the shared ones, 4 without."""
    spec = read(SMALL)
    assert [each.kv_layer for each in mixers(spec)] == [None] * 5 + [3, 3, 3, 3, 4]
    assert [each.window for each in mixers(spec)] == [512, 512, 512, 512, 0] * 2
    sizes = [spec.kinds[kind].feed_forward for kind in spec.kind_of_layer]
    assert [each.size for each in sizes if each is not None] == [96] * 5 + [192] * 5
    assert spec.kept_together == (3, 10)
    held = {name for name in spec.tensor_names() if name.startswith("layers.9.")}
    assert "layers.9.wq" in held
    assert not held & {"layers.9.wk", "layers.9.wv", "layers.9.k_norm"}


def test_inputs_of_layers_have_their_own_embedding() -> None:
    spec = read(SMALL)
    assert spec.layer_inputs is not None
    assert spec.layer_inputs.embedding_scale == pytest.approx(8**0.5)
    assert spec.layer_inputs.projection_scale == pytest.approx(1 / 8)
    assert spec.tensor_shape("layer_embedding") == (300, 80)
    assert spec.tensor_shape("layer_projection") == (80, 64)
    assert spec.row_size == 64 + 80
    assert read(SMALL | {"hidden_size_per_layer_input": None}).layer_inputs is None


def test_layers_without_a_window_have_other_heads() -> None:
    window, full = mixers(read(EXPERTS))[3:5]
    assert (window.kv_heads, window.key_size, window.keys_as_values) == (2, 16, False)
    assert (full.kv_heads, full.key_size, full.keys_as_values) == (1, 32, True)
    own = {"head_dim": 32, "num_key_value_heads": 1}
    newer = {key: value for key, value in EXPERTS.items() if "global" not in key}
    assert read(newer | {"per_layer_config": {"4": own, "9": own}}) == read(EXPERTS)
    assert read(newer | {"per_layer_config": {"04": own, "09": own}}) == read(EXPERTS)
    # transformers writes an empty one where all layers have the same sizes.
    same = {"global_head_dim": EXPERTS["head_dim"], "num_global_key_value_heads": 2}
    assert read(newer | {"per_layer_config": {}}) == read(EXPERTS | same)


def test_a_quarter_of_the_pairs_turns_without_a_window() -> None:
    """At the frequencies of the whole head: 1e6^(-2i/32)."""
    full, window = read(SMALL).ropes
    assert full.frequencies == pytest.approx([1e6 ** (-i / 16) for i in range(4)] + [0.0] * 12)
    assert window.frequencies == pytest.approx([1e4 ** (-i / 8) for i in range(8)])
    of_file = read_gguf(GGUF, (1.0,) * 4 + (1e30,) * 12).ropes
    assert of_file[0].frequencies == pytest.approx(full.frequencies)
    assert of_file[1].frequencies == pytest.approx(window.frequencies)


def test_a_stage_holds_all_layers_that_share_keys() -> None:
    spec = read(SMALL)
    plan = make_plan(spec, lambda _: "f32", Layout((1, 2)))
    assert [stage.layers for stage in plan.stages] == [(0, 3), (3, 10)]
    plan = make_plan(spec, lambda _: "f32", Layout((1, 1, 1, 1)))
    assert [stage.layers for stage in plan.stages] == [(0, 1), (1, 2), (2, 3), (3, 10)]
    plan = make_plan(spec, lambda _: "f32", Layout((1, 1), (2, 8)))
    assert [stage.layers for stage in plan.stages] == [(0, 2), (2, 10)]
    with pytest.raises(HearthError, match="cannot begin with layer 5: layers 3 to 9 share keys"):
        make_plan(spec, lambda _: "f32", Layout((1, 1), (5, 5)))
    with pytest.raises(HearthError, match="into 5 stages: its layers 3 to 9 share keys"):
        make_plan(spec, lambda _: "f32", Layout((1,) * 5))


def test_only_the_first_stage_makes_the_inputs_of_layers() -> None:
    plan = make_plan(read(SMALL), lambda _: "f32", Layout((2, 1)))
    held = [{each.name for each in node.slices} for node in plan.nodes]
    assert ["layer_embedding" in names for names in held] == [True, False, False]
    assert ["layer_projection" in names for names in held] == [True, True, False]
    assert ["layers.9.layer_gate" in names for names in held] == [False, False, True]


def test_layers_that_share_keys_have_no_pages() -> None:
    spec = read(SMALL)
    (node,) = make_plan(spec, lambda _: "f32", Layout((1,))).nodes
    assert node.kv_page_bytes(spec, "f16", 16) == 16 * 2 * 2 * (4 * 16 + 32)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SMALL | {"num_kv_shared_layers": 10}, "10 of 10 layers read the keys"),
        (SMALL | {"num_kv_shared_layers": -1}, "-1 of 10 layers read the keys"),
        (SMALL | {"num_kv_shared_layers": 7}, "from 3 on .* none before has no window"),
        (SMALL | {"vocab_size_per_layer_input": 200}, "vocab_size_per_layer_input is 200"),
        (SMALL | {"hidden_size_per_layer_input": 1 << 20}, "layer_input_size is 1048576"),
        (SMALL | {"hidden_size_per_layer_input": 1 << 14, "num_hidden_layers": 30}, "layer_types"),
        (SMALL | {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        (SMALL | {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is"),
        (SMALL | {"rope_parameters": {FULL: {"rope_type": "default"}}}, "rope_theta is missing"),
        (
            SMALL | {"rope_parameters": {WINDOW: {"rope_theta": 1e4}}},
            "rope_parameters has no full_attention",
        ),
        (
            SMALL | {"rope_parameters": {FULL: {"rope_type": "yarn", "rope_theta": 1e4}}},
            "rope_type is 'yarn'; in this family Hearth reads default and proportional",
        ),
        (
            SMALL
            | {
                "rope_parameters": {
                    FULL: {
                        "rope_type": "proportional",
                        "rope_theta": 1e4,
                        "partial_rotary_factor": 1.5,
                    }
                }
            },
            "partial_rotary_factor is 1.5",
        ),
        (SMALL | {"per_layer_config": {"0": {"head_dim": 32}}}, "for full_attention layers alone"),
        (SMALL | {"per_layer_config": {"4": {"hidden_size": 3}}}, "have no such setting"),
        (SMALL | {"per_layer_config": {"4": {"head_dim": 8}}}, "have 2 sizes of heads"),
        (SMALL | {"per_layer_config": {"4": {}, "04": {"head_dim": 32}}}, "each once"),
        (SMALL | {"per_layer_config": {"400": {"head_dim": 32}}}, "numbers of layers, 0 to"),
        (SMALL | {"per_layer_config": {"all": {"head_dim": 32}}}, "numbers of layers, 0 to"),
        (SMALL | {"sliding_window": 0}, "sliding_window is 0"),
        (EXPERTS | {"num_experts": None}, "num_experts is missing"),
        (EXPERTS | {"top_k_experts": 7}, "7 of 6 experts"),
        (EXPERTS | {"num_global_key_value_heads": 3}, "4 heads cannot be shared equally by 3"),
    ],
)
def test_numbers_that_cannot_be(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        read(config)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"attention.head_count_kv": [2, 1, 1, 1]}, "layers of one kind have 1 and 2 KV heads"),
        ({"attention.shared_kv_layers": 4}, "4 of 4 layers read the keys"),
        ({"attention.shared_kv_layers": 2}, "none before has no window"),
        ({"attention.key_length": 0}, "head_size is 0"),
        ({"attention.sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_metadata_that_cannot_be(metadata: dict[str, Any], text: str) -> None:
    read_gguf(GGUF)
    with pytest.raises(ModelError, match=text):
        read_gguf(GGUF | metadata)


def test_pairs_that_turn_come_first() -> None:
    with pytest.raises(ModelError, match="a pair that turns comes after one that does not"):
        read_gguf(GGUF, (1.0, 1e30) * 8)
