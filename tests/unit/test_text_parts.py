"""Text parts of models that also read images: which settings and tensors are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    hf_config,
    random_tensors,
    rename_tensors,
    spm_metadata,
    tiny_spec,
    write_hf,
)
from family_configs import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import ModelError, open_model
from hearth.converter.blocks import AttentionSpec
from hearth.converter.families import families
from hearth.converter.families.text_parts import text_settings, whole_kinds
from hearth.converter.hf_config import read_spec
from hearth.converter.spec import ModelSpec

SPEC = tiny_spec()
TENSORS = random_tensors(SPEC)
NOTE = "it also reads images or sound; Hearth runs its text part"


def spec_of(raw: dict[str, Any]) -> ModelSpec:
    return read_spec(raw, "model")[1]


@pytest.mark.parametrize("kind", whole_kinds())
def test_a_text_part_is_read_as_its_family(kind: str) -> None:
    """Settings that the text part names count, whatever its usual ones are."""
    text = CONFIGS["llama"] | {"tie_word_embeddings": False}
    assert spec_of({"model_type": kind, "text_config": text}) == spec_of(text)
    assert kind not in {each for family in families() for each in family.model_types}


def test_the_sizes_that_transformers_takes_for_granted() -> None:
    """config.json of llava-1.5 names little more than its vocabulary."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    spec = spec_of({"model_type": "llava", "text_config": text | {"vocab_size": 32064}})
    assert (spec.layers, spec.hidden_size, spec.heads, spec.vocab_size) == (32, 4096, 32, 32064)
    mistral = {"model_type": "llava", "text_config": {"model_type": "mistral"}}
    assert spec_of(mistral).kinds[0].mixer.kv_heads == 8
    assert spec_of({"model_type": "qwen2_vl"}).layers == 80


@pytest.mark.parametrize(
    ("outside", "inside", "tied"),
    [(True, None, True), (None, True, True), (False, True, True), (False, False, False)],
)
def test_tying_is_named_on_either_side(outside: object, inside: object, tied: bool) -> None:
    text = CONFIGS["llama"] | {"tie_word_embeddings": inside}
    raw = {"model_type": "llava", "text_config": text, "tie_word_embeddings": outside}
    assert spec_of(raw).tied == tied


def test_tying_of_qwen3_vl_is_named_outside() -> None:
    text = CONFIGS["qwen3"] | {"model_type": "qwen3_vl_text", "tie_word_embeddings": True}
    raw = {"model_type": "qwen3_vl", "text_config": text}
    assert spec_of(raw).tied
    assert not spec_of(raw | {"tie_word_embeddings": False}).tied


def test_voxtral_has_its_own_usual_sizes() -> None:
    """Beneath those that its text part names; other kinds have them for a whole text part alone."""
    spec = spec_of({"model_type": "voxtral", "text_config": {"hidden_size": 64}})
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, AttentionSpec)
    assert (spec.layers, spec.hidden_size, spec.norm_epsilon) == (30, 64, 1e-5)
    assert (mixer.kv_heads, mixer.key_size) == (8, 128)
    assert spec.ropes[0].frequencies[1] == pytest.approx(1e8 ** (-2 / 128))


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen3_5", "ovis2", "smolvlm"])
def test_a_text_part_that_is_not_described(kind: str) -> None:
    with pytest.raises(ModelError, match="text_config is missing"):
        spec_of(CONFIGS["llama"] | {"model_type": kind})


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"model_type": "mllama", "text_config": CONFIGS["llama"]}, "'mllama' is not supported"),
        (
            {"model_type": "llava", "text_config": {"model_type": "gemma"}},
            "text_config.model_type is 'gemma', which is not supported as the text part of 'llava'",
        ),
        (
            {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2"}},
            "llm_config.model_type is 'internlm2'",
        ),
        ({"model_type": "llava", "text_config": {"model_type": ["llama"]}}, "model_type is "),
        (
            {"model_type": "llava", "text_config": CONFIGS["llama"], "is_encoder_decoder": True},
            "is_encoder_decoder is True",
        ),
        (
            {"model_type": "llava", "text_config": CONFIGS["llama"] | {"is_causal": False}},
            "is_causal is False",
        ),
    ],
)
def test_others_are_refused(raw: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        spec_of(raw)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=4),
    st.lists(st.integers()),
    st.just({}),
)


@given(
    kind=st.sampled_from(whole_kinds()),
    outer=st.dictionaries(st.sampled_from(["tie_word_embeddings", "text_config"]), VALUES),
    inner=st.dictionaries(st.sampled_from([*CONFIGS["llama"], "model_type"]), VALUES),
)
def test_any_value_is_read_or_refused(kind: str, outer: Any, inner: Any) -> None:
    raw = {"model_type": kind, "text_config": CONFIGS["llama"] | inner} | outer
    try:
        text_settings(raw)
        assert spec_of(raw).parameters > 0
    except ModelError:
        pass


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.", "lm_head."),
        ("model.language_model.", "lm_head."),
        ("language_model.model.", "language_model.lm_head."),
        ("model.text_model.", "lm_head."),
        ("language_model.", "lm_head."),
        ("text_model.", "lm_head."),
    ],
)
def test_names_of_tensors(tmp_path: Path, prefix: str, head: str) -> None:
    config = {"model_type": "llava", "text_config": hf_config(SPEC) | {"model_type": "llama"}}
    path = write_hf(tmp_path / "m", SPEC, TENSORS, config=config)
    plain = write_hf(tmp_path / "plain", SPEC, TENSORS)
    rename_tensors(path / "model.safetensors", {"model.": prefix, "lm_head.": head})
    with open_model(str(path)) as model, open_model(str(plain)) as other:
        assert model.notes == [f"m: {NOTE}"]
        for name in SPEC.tensor_names():
            assert np.array_equal(model.read(name, "f32"), other.read(name, "f32")), name
    # A tensor that is neither the text's nor that of a known part.
    rename_tensors(path / "model.safetensors", {head: "adapter."})
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing|adapter\.weight"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("kind", "tied", "opens"),
    [("internvl", None, True), ("internvl", False, False), ("llava", None, False)],
)
def test_a_kind_whose_head_is_usually_the_embedding(
    tmp_path: Path, kind: str, tied: bool | None, opens: bool
) -> None:
    """Files without a head are of tied models, where transformers ties that kind by default."""
    text = hf_config(SPEC) | {"model_type": "llama", "tie_word_embeddings": False}
    config = {"model_type": kind, "text_config": text, "tie_word_embeddings": tied}
    headless = {name: rows for name, rows in TENSORS.items() if name != "head"}
    path = write_hf(tmp_path / "m", SPEC, headless, config=config)
    if not opens:
        with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
            open_model(str(path))
        return
    with open_model(str(path)) as model:
        assert model.spec.tied
        assert model.notes == [f"m: {NOTE}"]
    # A head of its own counts, as in transformers.
    path = write_hf(tmp_path / "headed", SPEC, TENSORS, config=config)
    with open_model(str(path)) as model:
        assert not model.spec.tied
        assert model.read("head", "f32").tobytes() == TENSORS["head"].tobytes()


@pytest.mark.parametrize(
    ("architecture", "base"),
    [("qwen2vl", "qwen2"), ("qwen3vl", "qwen3"), ("qwen3vlmoe", "qwen3moe")],
)
def test_gguf(tmp_path: Path, architecture: str, base: str) -> None:
    """The file of the text part alone, as the family's own but for the axes of its positions."""
    found = []
    for name in (architecture, base):
        metadata = {
            key.replace("llama.", f"{name}."): value for key, value in gguf_metadata(SPEC).items()
        }
        metadata |= spm_metadata() | {"general.architecture": name, "general.name": "m"}
        stored = gguf_tensors(SPEC, TENSORS, "f32")
        if name == architecture:
            metadata[f"{name}.rope.dimension_sections"] = [4, 2, 2, 0]
            metadata[f"{name}.n_deepstack_layers"] = 3
        (tmp_path / f"{name}.gguf").write_bytes(gguf_bytes(metadata, stored))
        with open_model(str(tmp_path / f"{name}.gguf")) as model:
            assert model.notes == ([f"m: {NOTE}"] if name == architecture else [])
            found.append((model.spec, model.read("layers.0.wq", "f32").tobytes()))
    assert found[0] == found[1]
