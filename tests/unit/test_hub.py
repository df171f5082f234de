"""Names of models on the hub, and the choice among a repository's GGUF files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter import ModelError
from hearth.converter.hub import HubName, cached_model, choose_gguf, gguf_models, parse_name

FILES = (
    "README.md",
    "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
    "Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf",
    "Llama-3.2-1B-Instruct-IQ3_XXS.gguf",
    "Llama-3.2-1B-Instruct.Q8_0.gguf",
    "Llama-3.2-1B-Instruct-f16.gguf",
    "mmproj-model-f16.gguf",
    "imatrix_unsloth.gguf",
    "BF16/Llama-BF16-00001-of-00002.gguf",
    "BF16/Llama-BF16-00002-of-00002.gguf",
)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("owner/model", HubName("owner/model")),
        ("owner/model:Q4_K_M", HubName("owner/model", tag="Q4_K_M")),
        ("owner/Llama-3.2_1B/a/b.gguf", HubName("owner/Llama-3.2_1B", file="a/b.gguf")),
    ],
)
def test_names(name: str, parsed: HubName) -> None:
    assert parse_name(name) == parsed
    assert str(parsed) == name


@pytest.mark.parametrize(
    "name",
    [
        *("model", "owner/", "/model", "a/b/c", "a/b/../c.gguf", "a b/c", "../x", "a/b/*.gguf", ""),
        *("a/b:", "a/b:Q4:2", "a/b:Q4/c.gguf", "a/b:../c", "a/b/", "a/b//c.gguf", "\udcff/x"),
    ],
)
def test_names_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(ModelError, match="is not the name of a model"):
        parse_name(name)
    assert cached_model(name) is None


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    try:
        parsed = parse_name(text)
    except ModelError:
        return
    assert str(parsed) == text
    assert ".." not in text


def test_types_of_gguf_models() -> None:
    models = gguf_models(FILES)
    assert [model.kind for model in models] == [
        *("BF16", "IQ3_XXS", "Q4_K_M", "UD-Q4_K_XL", "F16", "Q8_0"),
    ]
    assert models[0].files == FILES[-2:]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("o/m:q4_k_m", "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
        ("o/m:Q4_K_XL", "Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf"),
        ("o/m:F16", "Llama-3.2-1B-Instruct-f16.gguf"),
        ("o/m:bf16", "BF16/Llama-BF16-00001-of-00002.gguf"),
        ("o/m/BF16/Llama-BF16-00002-of-00002.gguf", "BF16/Llama-BF16-00001-of-00002.gguf"),
    ],
)
def test_the_model_that_a_name_means(name: str, first: str) -> None:
    assert choose_gguf(parse_name(name), gguf_models(FILES)).files[0] == first


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("o/m", r"means 6 GGUF models; name one, as in o/m:BF16: BF16, IQ3_XXS,"),
        ("o/m:Q4", r"means 2 GGUF models"),
        ("o/m:Q2_K", r"o/m has no Q2_K; its GGUF models are BF16,"),
        ("o/m/other.gguf", r"o/m has no other.gguf"),
    ],
)
def test_names_that_mean_none_or_several(name: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        choose_gguf(parse_name(name), gguf_models(FILES))


def test_missing_parts_are_named() -> None:
    models = gguf_models(FILES[:-1])
    with pytest.raises(ModelError, match="one of 2 parts, and others are missing"):
        choose_gguf(parse_name("o/m:BF16"), models)
    with pytest.raises(ModelError, match="has no GGUF file"):
        choose_gguf(parse_name("o/m:BF16"), gguf_models(["README.md"]))
