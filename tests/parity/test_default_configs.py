"""Configurations as transformers writes them, and with settings left out.

None is refused for a setting that is neutral, and a setting that is absent has the value that
transformers gives it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from family_configs import CONFIGS

from hearth.converter import ModelError
from hearth.converter.families import families
from hearth.converter.families.text_parts import whole_kinds
from hearth.converter.hf_config import read_spec
from hearth.converter.spec import ModelSpec

pytestmark = pytest.mark.parity

KINDS = [kind for family in families() for kind in family.model_types]
# Of the last, transformers has no configuration.
WHOLE_KINDS = [kind for kind in whole_kinds() if kind != "internvl_chat"]
# transformers' own default is a model that Hearth does not run.
OTHERS = {
    "granitemoehybrid": "layer 0 is 'linear_attention'",
    "deepseek_v2": "num_experts_per_tok is missing",
}


@cache
def class_of(kind: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="make test PARITY=1 installs it")
    return type(transformers.AutoConfig.for_model(kind))


def completed(raw: dict[str, Any]) -> dict[str, Any] | None:
    """A config.json with all that transformers fills in; None where it needs what is absent."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        # It changes its argument.
        config = class_of(raw["model_type"]).from_dict(json.loads(json.dumps(raw)))
    except (StrictDataclassError, TypeError, ValueError, LookupError, AttributeError):
        return None
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def read(raw: dict[str, Any]) -> ModelSpec | str:
    """The model without its head's tying, which the tensors decide; or an error."""
    try:
        return replace(read_spec(raw, "model")[1], tied=False)
    except ModelError as error:
        return str(error)


def with_one_less(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration without each of its settings, those in sections too."""
    for key, value in raw.items():
        if key == "model_type" or "vision" in key or "audio" in key:
            continue
        yield key, {each: kept for each, kept in raw.items() if each != key}
        if isinstance(value, dict):
            for inner, less in with_one_less(value):
                yield f"{key}.{inner}", {**raw, key: less}


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


@pytest.mark.parametrize("kind", KINDS + WHOLE_KINDS)
def test_a_setting_that_is_left_out(kind: str) -> None:
    """It has the default of transformers, or is asked for."""
    usual = completed({"model_type": kind})
    assert usual is not None
    for whole in [usual, *([CONFIGS[kind]] if kind in CONFIGS else [])]:
        for key, raw in [("", whole), *with_one_less(whole)]:
            expected, found = completed(raw), read(raw)
            if expected is not None and not (isinstance(found, str) and "is missing" in found):
                assert found == read(expected), f"without {key}"
