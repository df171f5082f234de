"""Contexts beyond the positions that a model can have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from family_configs import CONFIGS

from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.converter.hf_config import read_spec
from hearth.converter.spec_json import spec_from_json, spec_to_json
from hearth.root.planning.blueprint import draw
from hearth.root.settings import ClusterSettings

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_dynamic_scaling_holds_for_the_context_of_the_config(key: str) -> None:
    """As in transformers, original_max_position_embeddings has no effect on it."""
    raw = CONFIGS["qwen3"] | {key: DYNAMIC | {"original_max_position_embeddings": 16}}
    spec = read_spec(raw, "model")[1]
    plain = read_spec(CONFIGS["qwen3"], "model")[1]
    assert spec.ropes == (replace(plain.ropes[0], most_positions=64),)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_a_longer_context_is_refused_with_dynamic_scaling() -> None:
    with open_model("demo") as model:
        longest = model.spec.context_size
        settings = ClusterSettings(context=longest + 1)
        assert draw(model, settings).context == longest + 1  # of other scaling: a note, no error
        dynamic = replace(model.spec.ropes[0], most_positions=longest)
        model.spec = replace(model.spec, ropes=(dynamic,))
        assert draw(model, ClusterSettings(context=longest)).context == longest
        with pytest.raises(HearthError, match="dynamic") as refused:
            draw(model, settings)
    assert refused.value.reason == Reason.BAD_SETTING
    assert f"--context {longest + 1} is more than the {longest} positions" in str(refused.value)
    assert str(refused.value).endswith(f"give --context {longest} or less")


def test_a_longer_context_is_refused_with_learned_positions() -> None:
    with open_model("random:gpt2-xl") as model:
        assert draw(model, ClusterSettings(context=1024)).context == 1024
        with pytest.raises(HearthError, match=r"1025 is more than the 1024 positions that .* has"):
            draw(model, ClusterSettings(context=1025))
