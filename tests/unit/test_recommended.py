"""Sampling that generation_config.json recommends."""

import json
from pathlib import Path

import pytest

from hearth.converter.errors import ModelError
from hearth.converter.recommended import recommended_sampling


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
