"""Configurations of every family: what is read, and what is refused with its numbers."""

from typing import Any

import pytest
from family_configs import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import ModelError
from hearth.converter.families import families
from hearth.converter.hf_config import read_spec

# A number, and values that settings of other kinds have.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 40),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 9), st.floats(), st.text(max_size=4)), max_size=5),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), st.integers(-1, 9)),
)


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


@given(name=st.sampled_from(sorted(CONFIGS)), data=st.data(), value=VALUES)
def test_any_value_is_read_or_refused(name: str, data: st.DataObject, value: Any) -> None:
    config = CONFIGS[name]
    inner = config.get("text_config", config)
    key = data.draw(st.sampled_from(sorted({*inner, "rope_scaling", "layer_types", "hidden_act"})))
    changed = inner | {key: value}
    raw = config | {"text_config": changed} if "text_config" in config else changed
    try:
        _, spec = read_spec(raw, name)
    except ModelError:
        return
    assert 0 < spec.parameters <= 1 << 46


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
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 4}, "layer 0 is 'mamba'"),
        ("smollm3", {"no_rope_layers": [1, 2, 1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "0 layers"),
        ("phi3", {"partial_rotary_factor": 1.0}, "2 rope scaling short_factors for a head of 8"),
        ("llama", {"rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported"),
        ("olmo3", {"num_key_value_heads": 3}, "8 heads cannot be shared equally by 3"),
        ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "is missing"),
    ],
)
def test_refused_with_its_numbers(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_spec(CONFIGS[name] | changes, name)
