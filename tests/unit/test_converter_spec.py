"""A model's shape: rotary frequencies, names, sizes, limits; and the forms of config.json."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_builders import hf_config, llama_numbers, rotary, tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import ModelError, ModelSpec
from hearth.converter.blocks import RopeSpec
from hearth.converter.families.rope import RopeScaling, make_rope
from hearth.converter.hf_config import read_config
from hearth.converter.readers.random import random_spec
from hearth.converter.readers.shapes import SHAPES
from hearth.converter.spec import LIMITS
from hearth.converter.spec_json import spec_from_json, spec_to_json
from hearth.converter.tokenizers.files import read_settings
from hearth.worker import shape

# From the models' cards and files.
PARAMETERS = {
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen3.6-35b-a3b": 34_660_610_688,
    "gpt2-xl": 1_557_611_200,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v3": 671_026_419_200,
    "glm-4.7-flash": 29_943_393_920,
    # Of 25.2 billion, as its card rounds them.
    "gemma-4-26b-a4b": 25_233_141_790,
}


def test_published_shapes_have_their_published_sizes() -> None:
    assert {name: random_spec(name).parameters for name in SHAPES} == PARAMETERS


def test_tensor_shapes_are_rows_and_columns() -> None:
    spec = tiny_spec(head_size=24)
    assert spec.tensor_shape("layers.1.wq") == (96, 64)
    assert spec.tensor_shape("layers.1.wk") == (48, 64)
    assert spec.tensor_shape("layers.1.wo") == (64, 96)
    assert spec.tensor_shape("layers.0.w2") == (64, 96)
    assert spec.tensor_shape("layers.0.w1") == (96, 64)
    assert spec.tensor_shape("head") == (300, 64)
    assert len(spec.tensor_names()) == len(set(spec.tensor_names())) == 2 * 9 + 3


@pytest.mark.parametrize("tied", [True, False])
def test_cuts_of_a_tensor_cover_it(tied: bool) -> None:
    spec = tiny_spec(head_size=24, tied=tied)
    for tensor in spec.tensors:
        assert tensor.shape == spec.tensor_shape(tensor.source)
        if tensor.cut is not None:
            length = tensor.shape[1 if tensor.cut.columns else 0]
            assert tensor.cut.unit.count * tensor.cut.size == length
    whole = {tensor.part for tensor in spec.tensors if tensor.cut is None}
    assert whole == {"embedding", "attn_norm", "ffn_norm", "norm"}
    assert [tensor.source for tensor in spec.tensors][-1] == ("embedding" if tied else "head")


@pytest.mark.parametrize(
    "name", ["layers.2.wq", "layers.-1.wq", "layers.0.wz", "layers.0", "layers.².wq", "head", ""]
)
def test_tensors_that_a_model_has_not(name: str) -> None:
    with pytest.raises(KeyError):
        tiny_spec(tied=True).tensor_shape(name)


def test_plain_and_linear_frequencies() -> None:
    expected = [10000 ** (-2 * i / 16) for i in range(8)]
    assert np.allclose(rotary(tiny_spec()), expected, rtol=1e-6)
    halved = rotary(tiny_spec(rope_scaling=RopeScaling("linear", 2.0)))
    assert np.allclose(halved, np.array(expected) / 2, rtol=1e-6)


def test_llama3_frequencies_keep_fast_ones_divide_slow_ones_and_blend_between() -> None:
    spec = random_spec("llama-3.2-1b")
    plain = [500000.0 ** (-2 * i / 64) for i in range(32)]
    expected = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 32)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 32 + smooth * frequency)
    frequencies = rotary(spec)
    assert np.allclose(frequencies, expected, rtol=1e-6)
    ratios = frequencies / np.array(plain)
    assert np.isclose(ratios, 1).any() and np.isclose(ratios, 1 / 32).any()
    assert ((ratios < 0.99) & (ratios > 1.01 / 32)).any()


def test_listed_rope_factors_divide() -> None:
    factors = tuple(float(i) for i in range(1, 9))
    plain = rotary(tiny_spec())
    divided = rotary(tiny_spec(rope_factors=factors))
    assert np.allclose(divided, plain / np.array(factors), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"layers": 10**9}, "1 to 1024"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"heads": 4, "kv_heads": 3}, "4 heads cannot be shared equally by 3 KV heads"),
        ({"head_size": 15}, "even"),
        ({"norm_epsilon": math.nan}, "norm_epsilon"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_factors": (1.0,)}, "1 rope factors for a head of 16; there must be 8"),
        ({"rope_factors": (0.0,) * 8}, "rope factor"),
        ({"hidden_size": True}, "whole number"),
        ({"hidden_size": 1 << 17}, "1 to 65536"),
        ({"vocab_size": 1 << 22}, "1 to 2097152"),
        ({"hidden_size": 64.0}, "whole number"),
    ],
)
def test_impossible_shapes_are_refused_with_their_numbers(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        tiny_spec(**changes)


# Numbers of a model, and of the shards that its workers check (services/worker/shape.py).
IN_BOTH = {
    "hidden_size": ["hidden_size"],
    "layers": ["layers", "layer_inputs.layers"],
    "heads": ["heads", "key_heads", "group", "tile"],
    "kv_heads": ["kv_heads"],
    "head_size": ["key_size", "value_size", "nope_size", "rope_size"],
    "latent_size": ["query_rank", "kv_rank"],
    "convolution": ["width"],
    "layer_input_size": ["layer_inputs.size"],
    "layer_input_sizes": ["inputs of all layers"],
    "ffn_size": ["units", "units of an expert"],
    "vocab_size": ["vocab_size", "vocab"],
    "context_size": ["window"],
    "experts": ["experts"],
    "learned_positions": ["learned_positions"],
    "kinds": ["kinds"],
    "ropes": ["ropes"],
}


def test_workers_accept_all_that_a_model_may_have() -> None:
    workers = shape.LIMITS | {
        "kinds": shape.MAX_KINDS,
        "ropes": shape.MAX_ROPES,
        "inputs of all layers": shape.MAX_INPUTS,
    }
    of_steps = {"page_size", "max_pages", "max_step_tokens", "max_sequences", "max_undo"}
    assert LIMITS.keys() == IN_BOTH.keys()
    assert workers.keys() - of_steps == {name for names in IN_BOTH.values() for name in names}
    for field, names in IN_BOTH.items():
        for name in names:
            assert LIMITS[field] <= workers[name], (field, name)
    assert LIMITS["heads"] * LIMITS["head_size"] <= shape.MAX_VALUES


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"frequencies": (1.0, math.nan)}, "a rotary frequency is nan"),
        ({"frequencies": (1e39,)}, "a rotary frequency is 1e"),
        ({"frequencies": ()}, "no frequencies"),
        ({"long": (1.0, math.inf)}, "a rotary frequency is inf"),
        ({"long": (1.0,)}, "2 frequencies, and 1 for long contexts"),
        ({"magnitude": 0.0}, "magnitude of rotary positions is 0.0"),
        ({"magnitude": math.nan}, "magnitude of rotary positions is nan"),
        ({"magnitude": 1e-50}, "magnitude of rotary positions is 1e-50"),
        ({"long_context": -1}, "-1 tokens"),
    ],
)
def test_rotary_positions_that_workers_refuse(rope: dict[str, Any], words: str) -> None:
    spec = tiny_spec()
    good = RopeSpec((1.0, 0.5))
    assert replace(spec, ropes=(good,)).ropes == (good,)
    with pytest.raises(ModelError, match=words):
        replace(spec, ropes=(replace(good, **rope),))
    raw = spec_to_json(replace(spec, ropes=(good,)))
    raw["ropes"][0] |= rope
    with pytest.raises(ModelError, match=words):
        spec_from_json(json.loads(json.dumps(raw)))


def test_most_kinds_and_ropes() -> None:
    spec = tiny_spec()
    with pytest.raises(ModelError, match="kinds is 65; it must be a whole number, 1 to 64"):
        replace(spec, kinds=spec.kinds * 65)
    with pytest.raises(ModelError, match="ropes is 17; it must be a whole number, 0 to 16"):
        replace(spec, ropes=spec.ropes * 17)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def write(directory: Path, config: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def read(directory: Path, **changes: Any) -> ModelSpec:
    config = hf_config(tiny_spec()) | changes
    return read_config(write(directory, {k: v for k, v in config.items() if v != "absent"})).spec


def test_config_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, num_key_value_heads="absent", head_dim=None, rope_theta="absent")
    attention, _ = llama_numbers(spec)
    assert (attention.kv_heads, attention.key_size) == (4, 16)
    assert spec.ropes == (make_rope(16, 10000.0),)
    assert not read(tmp_path, tie_word_embeddings="absent").tied


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_rope_settings_of_transformers_4_and_5_mean_the_same(tmp_path: Path) -> None:
    old = read(tmp_path, rope_theta=500000.0, rope_scaling=LLAMA3)
    new = read(tmp_path, rope_theta="absent", rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    assert old == new
    assert old.ropes == (make_rope(16, 500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)),)
    older = read(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    assert older.ropes == (make_rope(16, 10000.0, RopeScaling("linear", 4.0)),)
    plain = read(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    assert plain.ropes == (make_rope(16, 77.0),)


@pytest.mark.parametrize(
    ("changes", "theta", "factor"),
    [
        # As transformers 4.57 and 5.24 read both: rope_scaling first, where it says anything.
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            10000.0,
            4.0,
        ),
        (
            {
                "rope_theta": "absent",
                "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0},
            },
            77.0,
            4.0,
        ),
        (
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0},
                "rope_scaling": None,
            },
            77.0,
            2.0,
        ),
        ({"rope_parameters": {"factor": 2.0, "type": "linear"}, "rope_scaling": {}}, 10000.0, 2.0),
        ({"rope_parameters": None, "rope_scaling": {"type": "default"}}, 10000.0, 1.0),
        ({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 3}}, 10000.0, 1.0),
        ({"rope_scaling": {"type": "linear", "factor": 4, "rope_theta": 5e5}}, 5e5, 4.0),
        ({"partial_rotary_factor": 1.0}, 10000.0, 1.0),
    ],
)
def test_rope_settings_side_by_side(
    tmp_path: Path, changes: dict[str, Any], theta: float, factor: float
) -> None:
    spec = read(tmp_path, **changes)
    expected = theta ** -(np.arange(0, 16, 2) / 16) / factor
    assert np.allclose(rotary(spec), expected, rtol=1e-6)


def test_an_original_context_at_the_top_counts(tmp_path: Path) -> None:
    scaling = {key: value for key, value in LLAMA3.items() if "original" not in key}
    top = read(tmp_path, rope_scaling=scaling, original_max_position_embeddings=8192)
    assert top.ropes == (make_rope(16, 10000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)),)
    bare = read(tmp_path, rope_scaling=scaling, max_position_embeddings=777)
    assert bare.ropes == (make_rope(16, 10000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 777)),)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LLaMAForCausalLM"]},
        {"architectures": ["LlamaForCausalLM"], "model_type": "absent"},
        {"architectures": ["LLaMaForCausalLM"], "model_type": "absent"},
        {"architectures": "absent"},
        {"architectures": []},
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"hidden_act": "swish"},
        {"head_dim": None},
        {"dtype": "bfloat16", "torch_dtype": "absent"},
        {"torch_dtype": "absent"},
    ],
)
def test_spellings_of_one_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read(tmp_path, **changes) == replace(tiny_spec(), name=tmp_path.name)


def test_a_spec_survives_json() -> None:
    for spec in [*map(random_spec, SHAPES), tiny_spec(rope_scaling=RopeScaling("linear", 2.0))]:
        assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


@given(st.data())
def test_any_value_in_the_json_of_a_spec_is_read_or_refused(data: st.DataObject) -> None:
    """Any place of it, replaced by any value."""
    raw = json.loads(json.dumps(spec_to_json(tiny_spec())))
    where: Any = raw
    while True:
        keys = sorted(where) if isinstance(where, dict) else range(len(where))
        key = data.draw(st.sampled_from(keys))
        inner = where[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            where[key] = data.draw(json_values)
            break
        where = inner
    try:
        assert spec_from_json(raw).parameters > 0
    except ModelError:
        return


def test_generation_config_adds_its_ends_of_text(tmp_path: Path) -> None:
    write(tmp_path, hf_config(tiny_spec()) | {"bos_token_id": 1, "eos_token_id": 2})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4], "bos_token_id": 9}')
    config = read_config(tmp_path)
    assert (config.bos_id, config.eos_ids) == (9, {2, 3, 4})


@pytest.mark.parametrize(
    ("generation", "model", "bos_id"),
    [
        ({"bos_token_id": 9}, {"bos_token_id": 1}, 9),
        ({"bos_token_id": 0}, {"bos_token_id": 1}, 0),
        ({"bos_token_id": None}, {"bos_token_id": 1}, 1),
        ({}, {"bos_token_id": 1}, 1),
        (None, {"bos_token_id": 1}, 1),
        ({"bos_token_id": [9, 8]}, {}, 8),
        ({"eos_token_id": 3}, {}, None),
    ],
)
def test_the_begin_of_a_text_has_one_order(
    tmp_path: Path, generation: dict[str, Any] | None, model: dict[str, Any], bos_id: int | None
) -> None:
    """As transformers' generation: of the model's reader, and of the tokenizer opened alone."""
    kept = {k: v for k, v in hf_config(tiny_spec()).items() if k != "bos_token_id"}
    write(tmp_path, kept | model)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_config(tmp_path).bos_id == bos_id
    assert read_settings(tmp_path, None, frozenset()).bos_id == bos_id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["BloomForCausalLM"], "model_type": "absent"},
            "'BloomForCausalLM' is not supported.*llama",
        ),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "'LlamaForSequenceClassification' is not supported",
        ),
        ({"architectures": [7]}, "architecture 7 is not supported"),
        ({"model_type": 7}, "architecture 7 is not supported"),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            "rope_theta is 500000 in rope_parameters, which rope_scaling replaces",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "full_attention has settings of its own",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.1}}, "Llama models rotate whole heads"),
        (
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings is 4096, but 8192 in rope_scaling",
        ),
        ({"rope_scaling": {"rope_type": None}}, "rope_type is null"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "'ntk' is not supported"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantized by another tool"),
        ({"model_type": "bloom"}, "'bloom' is not supported.*llama"),
        ({"architectures": "absent", "model_type": "absent"}, "neither"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"hidden_act": "tanh"}, "'tanh'.*silu"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": "absent"}, "hidden_size is missing"),
        ({"num_hidden_layers": 10**30}, "layers"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rope_scaling": [1]}, "an object is needed"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"head_dim": None, "num_attention_heads": 0}, "num_attention_heads 0"),
        ({"head_dim": None, "num_attention_heads": 3}, "not a multiple"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)config.json.*{words}"):
        read(tmp_path, **changes)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"a": 1e999999}'])
def test_text_that_is_no_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


@given(
    key=st.sampled_from([*sorted(hf_config(tiny_spec())), "rope_scaling", "rope_parameters",
                         "eos_token_id", "bos_token_id", "hearth"]),
    value=json_values,
)  # fmt: skip
def test_any_value_in_a_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    directory = tmp_path_factory.getbasetemp()
    write(directory, hf_config(tiny_spec()) | {key: value})
    try:
        spec = read_config(directory).spec
    except ModelError:
        return
    assert spec.parameters > 0 and np.isfinite(rotary(spec)).all()
