"""Configurations of every family: what is read, and what is refused with its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
from converter_builders import hf_config, random_tensors, tiny_spec, write_hf
from family_configs import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import ModelError, open_model
from hearth.converter.blocks import AttentionSpec, GatedDeltaSpec
from hearth.converter.families import families
from hearth.converter.hf_config import read_spec
from hearth.converter.readers.huggingface import further_layers, match, open_entries
from hearth.converter.spec import ModelSpec, check_positive
from hearth.converter.spec_json import spec_from_json, spec_to_json

# Numbers of any size, and values that settings of other kinds have.
NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([10**400, -(10**400), 1 << 63, 1e308, -1e308, 5e-324, 1e39, -0.0]),
    st.floats(),
)
ROPE = (
    "rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "mscale", "mscale_all_dim", "beta_fast", "beta_slow",
    "attention_factor", "truncate", "short_factor", "long_factor", "partial_rotary_factor",
    "llama_4_scaling_beta",
)  # fmt: skip
OTHERS = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.lists(st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=4)), max_size=5),
    st.lists(st.lists(st.integers(0, 3), max_size=1), max_size=2),
)
VALUES = st.one_of(NUMBERS, OTHERS, st.dictionaries(st.sampled_from(ROPE), NUMBERS, max_size=3))
# Settings that some family reads; others leave them out.
KEYS = {
    "rope_scaling", "rope_parameters", "rope_theta", "layer_types", "hidden_act", "sliding_window",
    "partial_rotary_factor", "original_max_position_embeddings", "mlp_only_layers",
    "decoder_sparse_step", "final_logit_softcapping", "attn_logit_softcapping", "mlp_layer_types",
    "query_pre_attn_scalar", "num_nextn_predict_layers", "n_inner", "layer_norm_epsilon",
    "rope_local_base_freq", "sliding_window_pattern", "no_rope_layer_interval", "model_type",
    "max_window_layers", "moe_layer_freq", "swiglu_limit", "swiglu_alpha", "attention_bias",
}  # fmt: skip
EXTREMES: tuple[Any, ...] = (
    10**400, -(10**400), 1 << 60, -1, 0, 1e308, 5e-324, True, "1", [], [[1]], {},
)  # fmt: skip
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def test_every_family_has_a_config() -> None:
    known = {kind for family in families() for kind in family.model_types}
    assert CONFIGS.keys() <= known


@pytest.mark.parametrize("name", CONFIGS)
def test_each_is_read(name: str) -> None:
    family, spec = read_spec(CONFIGS[name], name)
    assert name in family.model_types
    for tensor in spec.tensors:
        if tensor.cut is not None:
            length = tensor.shape[1 if tensor.cut.columns else 0]
            assert tensor.parts * tensor.cut.unit.count * tensor.cut.size in (
                length,
                length * tensor.parts,
            )
    # Every tensor has a recipe.
    assert {tensor.part for tensor in spec.tensors if not tensor.stored_as} <= set(family.tensors)


def read_changed(name: str, changes: dict[str, Any]) -> None:
    """Read a config with other settings: it is refused, or a shape within the limits."""
    config = CONFIGS[name]
    changed = config.get("text_config", config) | changes
    raw = config | {"text_config": changed} if "text_config" in config else changed
    try:
        family, spec = read_spec(raw, name)
        further_layers(family, spec, raw)
    except ModelError:
        return
    assert 0 < spec.parameters <= 1 << 46
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


@given(name=st.sampled_from(sorted(CONFIGS)), data=st.data(), value=VALUES)
def test_any_value_is_read_or_refused(name: str, data: st.DataObject, value: Any) -> None:
    config = CONFIGS[name]
    inner = config.get("text_config", config)
    key = data.draw(st.sampled_from(sorted({*inner, *KEYS})))
    read_changed(name, {key: value})


@given(
    name=st.sampled_from(sorted(CONFIGS)),
    kind=st.sampled_from(KINDS),
    place=st.sampled_from(["rope_scaling", "rope_parameters"]),
    values=st.dictionaries(st.sampled_from(ROPE[2:]), st.one_of(NUMBERS, OTHERS), max_size=4),
)
def test_any_scaling_is_read_or_refused(
    name: str, kind: str, place: str, values: dict[str, Any]
) -> None:
    usual = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    read_changed(name, {place: {**usual, **values, "rope_type": kind}})


@pytest.mark.parametrize("name", CONFIGS)
def test_extreme_numbers_of_every_key(name: str) -> None:
    config = CONFIGS[name]
    for key in {*config.get("text_config", config), *KEYS}:
        for value in EXTREMES:
            read_changed(name, {key: value})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("gemma2", {"sliding_window": -1}, "sliding_window is -1"),
        ("gemma3_text", {"layer_types": ["recurrent"] * 4}, "layer 0 is 'recurrent'"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "1 texts for 4 layers"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "has no full_attention"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_activation": "tanh"}, "hidden_activation is 'tanh'"),
        ("gpt_oss", {"num_experts_per_tok": 7}, "7 of 6 experts"),
        ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("gpt_oss", {"swiglu_limit": -1.0}, "limit"),
        ("qwen3_moe", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; .* softmax scores"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 4}, "layer 0 is 'mamba'"),
        ("smollm3", {"no_rope_layers": [1, 2, 1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "0 layers"),
        ("phi3", {"partial_rotary_factor": 1.0}, "2 rope scaling short_factors for a head of 8"),
        ("llama", {"rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor is missing"),
        # As OpenELM's, whose layers grow.
        ("llama", {"num_key_value_heads": [4, 8, 8, 8]}, r"\[4, 8, 8, 8\]: it differs from layer"),
        ("qwen2", {"intermediate_size": [96, 128]}, r"\[96, 128\]: it differs from layer to layer"),
        ("olmo3", {"num_key_value_heads": 3}, "8 heads cannot be shared equally by 3"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "a list of layers is needed"),
        ("qwen3_moe", {"mlp_only_layers": [[1]]}, "a whole number is needed"),
        ("qwen3_next", {"mlp_only_layers": ["1"]}, "a whole number is needed"),
        ("glm4", {"partial_rotary_factor": 0.2}, "positions of 1 elements"),
        ("glm4", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ("glm4", {"partial_rotary_factor": -0.5}, "partial_rotary_factor is -0.5"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; .*whole heads"),
        ("gemma2", {"hidden_size": -64}, "hidden_size is -64"),
        ("gemma2", {"hidden_size": 10**400}, "hidden_size is a number of 1329 bits"),
        ("gemma2", {"sliding_window": None}, "sliding_window is missing; 3 of 4 layers"),
        ("deepseek_v3", {"rope_scaling": {**YARN, "mscale_all_dim": -1e3}}, "magnitude of yarn"),
        ("llama", {"rope_scaling": {**YARN, "mscale": 1, "mscale_all_dim": -100}}, "of yarn"),
        ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "is missing"),
    ],
)
def test_refused_with_its_numbers(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_spec(CONFIGS[name] | changes, name)


def read(name: str, changes: dict[str, Any], *without: str) -> ModelSpec:
    """A family's config with other settings, and without some."""
    config = {key: value for key, value in CONFIGS[name].items() if key not in without}
    return read_spec(config | changes, name)[1]


@pytest.mark.parametrize(("cap", "expected"), [(None, 0.0), (20.0, 20.0)])
def test_a_null_cap_of_gemma2_is_none(cap: float | None, expected: float) -> None:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    spec = read("gemma2", dict.fromkeys(caps, cap))
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, AttentionSpec)
    assert (mixer.softcap, spec.logit_softcap) == (expected, expected)
    usual = read("gemma2", {}, *caps)
    mixer = usual.kinds[0].mixer
    assert isinstance(mixer, AttentionSpec)
    assert (mixer.softcap, usual.logit_softcap) == (50.0, 30.0)


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": None}, 0),
        ("ministral", {"layer_types": None}, 4096),
        ("ministral3", {}, 0),
        ("qwen2", {"max_window_layers": 0}, 4096),
        ("qwen3_moe", {"use_sliding_window": True}, 4096),
        ("qwen3_moe", {}, 0),
    ],
)
def test_windows_of_silent_configs(name: str, changes: dict[str, Any], window: int) -> None:
    """As transformers fills them in."""
    spec = read(name, changes, "sliding_window")
    mixer = spec.kinds[spec.kind_of_layer[-1]].mixer
    assert isinstance(mixer, AttentionSpec)
    assert mixer.window == window


@pytest.mark.parametrize(
    ("name", "kv_heads", "context", "epsilon"),
    [
        ("llama", 8, 2048, 1e-6),
        ("mistral", 8, 131072, 1e-6),
        ("ministral3", 8, 262144, 1e-5),
        ("mixtral", 8, 131072, 1e-5),
        ("qwen3_moe", 4, 32768, 1e-6),
        ("smollm3", 4, 32768, 1e-6),
        ("phi3", 8, 4096, 1e-5),
    ],
)
def test_sizes_of_silent_configs(name: str, kv_heads: int, context: int, epsilon: float) -> None:
    """As transformers 5 fills them in. A null leaves a KV head to each of 8 heads."""
    keys = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    spec = read(name, {}, *keys)
    assert (spec.kv_heads, spec.context_size, spec.norm_epsilon) == (kv_heads, context, epsilon)
    assert read(name, {"num_key_value_heads": None}).kv_heads == 8


# Of transformers' configurations of these models without any setting.
@pytest.mark.parametrize(
    ("name", "sizes", "experts"),
    [
        ("qwen3_next", (2048, 48, 16, 2, 256, 151936), (512, 10, 512)),
        ("qwen3_5_text", (4096, 32, 16, 4, 256, 248320), None),
        ("qwen3_5_moe_text", (2048, 40, 16, 2, 256, 248320), (256, 8, 512)),
    ],
)
def test_silent_configs_with_gated_delta_rules(
    name: str, sizes: tuple[int, ...], experts: tuple[int, int, int] | None
) -> None:
    spec = read_spec({"model_type": name}, "silent")[1]
    mixer = spec.kinds[spec.kind_of_layer[3]].mixer
    assert isinstance(mixer, AttentionSpec)
    found = (spec.hidden_size, spec.layers, mixer.heads, mixer.kv_heads, mixer.key_size)
    assert (*found, spec.vocab_size) == sizes
    assert spec.kinds[0].mixer == GatedDeltaSpec(16, 2, 128, 128, 4)
    chosen = spec.kinds[0].experts
    assert (chosen and (chosen.count, chosen.used, chosen.expert.size)) == experts


def test_silent_configs_of_gemma4() -> None:
    spec = read_spec({"model_type": "gemma4_text"}, "silent")[1]
    window, full = (spec.kinds[spec.kind_of_layer[layer]].mixer for layer in (0, 5))
    assert isinstance(window, AttentionSpec) and isinstance(full, AttentionSpec)
    assert (window.window, window.heads, window.kv_heads, window.key_size) == (512, 8, 4, 256)
    assert (full.window, full.heads, full.kv_heads, full.key_size) == (0, 8, 4, 512)
    assert (spec.hidden_size, spec.layers, spec.context_size, spec.tied) == (2304, 30, 131072, True)
    assert spec.layer_inputs is not None and spec.layer_inputs.size == 256
    unified = read_spec({"model_type": "gemma4_unified_text"}, "silent")[1]
    assert (unified.context_size, unified.layer_inputs) == (262144, None)


def test_routers_of_silent_configs() -> None:
    """As transformers fills them in: 8 groups, of which 4 are used; 3 layers without experts."""
    silent = ("n_group", "topk_group", "routed_scaling_factor", "first_k_dense_replace")
    spec = read("deepseek_v3", {}, *silent)
    experts = spec.kinds[1].experts
    assert experts is not None
    assert (experts.groups, experts.used_groups, experts.scale) == (8, 4, 2.5)
    assert spec.kind_of_layer == (0, 0, 0, 1)
    spec = read("glm4_moe_lite", {}, *silent, "rms_norm_eps")
    experts = spec.kinds[1].experts
    assert experts is not None
    assert (experts.groups, experts.scale, spec.norm_epsilon) == (1, 1.8, 1e-5)


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe_lite"])
def test_layers_that_guess_further_tokens(name: str) -> None:
    """They lie behind the model's layers, of which there may be any number."""
    for count, numbers in ((None, [4]), (0, []), (2, [4, 5])):
        raw = CONFIGS[name] | {"num_nextn_predict_layers": count}
        expected = tuple(f"model.layers.{number}." for number in numbers)
        assert further_layers(*read_spec(raw, name), raw) == expected
    for count in (-1, 65, 10**400):
        raw = CONFIGS[name] | {"num_nextn_predict_layers": count}
        with pytest.raises(ModelError, match="num_nextn_predict_layers is"):
            further_layers(*read_spec(raw, name), raw)
    raw = CONFIGS["llama"]
    assert further_layers(*read_spec(raw, "llama"), raw) == ()


@pytest.mark.parametrize(
    ("name", "alias", "usual"),
    [
        ("gpt2", "num_attention_heads", "n_head"),
        ("gpt2", "hidden_size", "n_embd"),
        ("mixtral", "num_experts", "num_local_experts"),
        ("deepseek_v3", "num_local_experts", "n_routed_experts"),
    ],
)
def test_a_setting_has_two_names(name: str, alias: str, usual: str) -> None:
    """As in transformers' attribute_map."""
    config = CONFIGS[name]
    renamed = {alias: config[usual]} | {k: v for k, v in config.items() if k != usual}
    assert read_spec(renamed, "m") == read_spec(config, "m")
    assert read_spec(config | {alias: config[usual]}, "m") == read_spec(config, "m")
    with pytest.raises(ModelError, match=f"{alias} is 7, but {usual}, which is the same setting"):
        read_spec(config | {alias: 7}, "m")


def test_tensors_of_further_layers_are_left_out(tmp_path: Path) -> None:
    spec = tiny_spec()
    tensors = random_tensors(spec)
    extra = tensors | {f"layers.{spec.layers}.wq": tensors["layers.0.wq"]}
    directory = write_hf(tmp_path / "m", spec, extra, config=hf_config(spec))
    family = read_spec(hf_config(spec), "m")[0]
    number = f"model.layers.{spec.layers}."
    with pytest.raises(ModelError, match=f"tensor {number}self_attn.q_proj.weight does not belong"):
        open_model(str(directory))
    for unused in ((number,), (f"model.layers.{spec.layers + 1}.", number)):
        entries, files = open_entries(directory, lambda name, entry, header: ("f32", entry.shape))
        found = match(directory, spec, family, entries, unused)
        assert found.keys() == tensors.keys()
        for file in files:
            file.close()


def test_a_text_part_of_another_family_is_refused_by_name() -> None:
    for kind in ("mistral4", "llama", 4):
        raw = {"model_type": "mistral3", "text_config": CONFIGS["mistral"] | {"model_type": kind}}
        with pytest.raises(ModelError, match=f"text_config.model_type {kind!r} is not supported"):
            read_spec(raw, "model")


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), 0])
def test_no_number_is_too_large_for_its_check(value: float) -> None:
    with pytest.raises(ModelError, match="must be a finite number above 0"):
        check_positive("scale", value)


def test_a_whole_number_of_a_hearth_directory_may_not_be_a_float() -> None:
    raw = spec_to_json(read("llama", {}))
    with pytest.raises(ModelError, match=r"spec.embedding_scale is a number of 1329 bits"):
        spec_from_json(raw | {"embedding_scale": 10**400})
