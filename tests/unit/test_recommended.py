"""Sampling that generation_config.json or a GGUF file recommends."""

import json
from pathlib import Path
from typing import Any

import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    random_tensors,
    spm_metadata,
    tiny_spec,
)

from hearth.converter import open_model
from hearth.converter.convert import convert
from hearth.converter.errors import ModelError
from hearth.converter.recommended import gguf_sampling, recommended_sampling


def test_values_that_make_sense(tmp_path: Path) -> None:
    assert recommended_sampling(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    good = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05}
    path.write_text(json.dumps(good | {"do_sample": True, "eos_token_id": 2}))
    assert recommended_sampling(tmp_path) == good
    bad = {"temperature": "hot", "top_k": 1.5, "top_p": 0, "min_p": True, "repetition_penalty": -1}
    path.write_text(json.dumps(bad))
    assert recommended_sampling(tmp_path) == {}
    path.write_text('{"temperature": NaN, "top_k": Infinity, "top_p": 1e999}')
    assert recommended_sampling(tmp_path) == {}


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ModelError, match="generation_config"):
        recommended_sampling(tmp_path)


def test_gguf(tmp_path: Path) -> None:
    """The keys of llama.cpp, which a converted model keeps."""
    given = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.05}
    sampling = {f"general.sampling.{key}": value for key, value in given.items()}
    sampling["general.sampling.penalty_last_n"] = 64
    spec = tiny_spec()
    metadata = gguf_metadata(spec) | spm_metadata() | sampling
    stored = gguf_tensors(spec, random_tensors(spec), "f32")
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(metadata, stored))
    good = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05}
    good["repetition_penalty"] = 1.05
    with open_model(str(tmp_path / "m.gguf")) as model:
        assert model.sampling_defaults == good
    made = convert(str(tmp_path / "m.gguf"), tmp_path / "made", "f32")
    with open_model(str(made)) as model:
        assert model.sampling_defaults == good


@pytest.mark.parametrize(
    "values",
    [
        {"temp": "hot", "top_k": 1.5, "top_p": 0.0, "min_p": True, "penalty_repeat": -1.0},
        {"temp": float("nan"), "top_k": -1, "top_p": float("inf"), "min_p": [0.5]},
        {},
    ],
)
def test_gguf_values_that_make_no_sense(values: dict[str, Any]) -> None:
    metadata = {f"general.sampling.{key}": value for key, value in values.items()}
    assert gguf_sampling(metadata) == {}
