"""Configurations as transformers writes them: none is refused for a setting that is neutral."""

from __future__ import annotations

import json

import pytest

from hearth.converter import ModelError
from hearth.converter.families import families
from hearth.converter.hf_config import read_spec

pytestmark = pytest.mark.parity

KINDS = [kind for family in families() for kind in family.model_types]
# transformers' own default is a model that Hearth does not run.
OTHERS = {
    "granitemoehybrid": "layer 0 is 'linear_attention'",
    "deepseek_v2": "num_experts_per_tok is missing",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_of_each_family(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="make test PARITY=1 installs it")
    config = transformers.AutoConfig.for_model(kind)
    for only_changes in (False, True):
        raw = json.loads(config.to_json_string(use_diff=only_changes))
        if not only_changes and kind in OTHERS:
            with pytest.raises(ModelError, match=OTHERS[kind]):
                read_spec(raw, kind)
        elif not only_changes:
            family, _ = read_spec(raw, kind)
            assert kind in family.model_types
        else:
            try:
                read_spec(raw, kind)
            except ModelError as error:
                # A default that is left out may be a size that Hearth needs.
                assert "is missing" in str(error) or kind in OTHERS, error
