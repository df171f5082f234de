"""Settings of a config.json that must be neutral, because Hearth would compute something else.

transformers reads these in every model: in the mask of attention, in the KV cache, in the rope. A
family names those that it reads itself in `Family.reads`.
"""

from collections.abc import Iterator
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec

_ENCODERS = "Hearth runs models that generate text, not encoders"
# Each with its neutral value, also in the part of a config that describes the whole model.
_FLAGS = {
    "use_bidirectional_attention": (False, _ENCODERS),
    "is_encoder_decoder": (False, "Hearth runs models that have a decoder alone"),
    "add_cross_attention": (False, "Hearth runs models of text alone"),
}
_FULL, _WINDOW = "full_attention", "sliding_attention"
_PARTIAL = "partial_rotary_factor"
# Names of the context, the window that has no effect.
_CONTEXTS = ("max_position_embeddings", "n_positions")


def refuse_flags(config: Settings, family: Family) -> None:
    """Raise ModelError for a model that does not generate text from left to right.

    `is_causal` must be true where the key is in the file: in transformers a null is false.
    """
    if config.values.get("is_causal", True) is not True:
        raise ModelError(
            f"{config.name('is_causal')} is {shown(config.values['is_causal'])}; {_ENCODERS}"
        )
    for key, (neutral, why) in _FLAGS.items():
        if key not in family.reads:
            config.refuse(key, neutral, why=why)


def refuse_unread(config: Settings, family: Family) -> None:
    """Raise ModelError for a setting that the family does not read and that has an effect."""
    refuse_flags(config, family)
    what = f"Hearth's {family.name} has the same attention in all layers"
    if "per_layer_config" not in family.reads:
        config.refuse("per_layer_config", {}, why=what)
    config.refuse("attention_chunk_size", why=f"Hearth's {family.name} has no chunks of attention")
    if "layer_types" not in family.reads:
        _refuse_layers(config, family)
        if "sliding_window" not in family.reads:
            _refuse_window(config, family)
    if _PARTIAL not in family.reads:
        for settings in _rope_settings(config):
            settings.refuse(
                _PARTIAL, 1.0, why=f"{family.name} models rotate whole heads; remove the setting"
            )


def refuse_other_router(config: Settings, spec: ModelSpec) -> None:
    """Raise ModelError for experts that are chosen by other scores than those of the spec.

    transformers has the family's router whatever the setting says; other programs follow it.
    """
    for block in spec.kinds:
        if block.experts is not None:
            why = f"Hearth runs {spec.architecture} models with {block.experts.scores} scores"
            config.refuse("scoring_func", block.experts.scores, why=f"{why} of experts")


def _refuse_layers(config: Settings, family: Family) -> None:
    """Every layer is of the one kind that the family has."""
    kinds = config.get("layer_types", [])
    windowed = "sliding_window" in family.reads and "sliding_window" in config
    allowed = (_FULL, _WINDOW) if windowed else (_FULL,)
    if not isinstance(kinds, list) or any(kind not in allowed for kind in kinds):
        raise ModelError(
            f"{config.name('layer_types')} is {shown(kinds)}; Hearth runs {family.name} models "
            f"whose layers are all {' or all '.join(allowed)}"
        )
    if any(kind != kinds[0] for kind in kinds):
        raise ModelError(
            f"{config.name('layer_types')} is {shown(kinds)}; all layers of {family.name} models "
            "are of one kind"
        )


def _refuse_window(config: Settings, family: Family) -> None:
    """A window has no effect where it holds the whole context."""
    window = config.get("sliding_window")
    contexts = [value for key in _CONTEXTS if _is_size(value := config.get(key))]
    if window is None or (_is_size(window) and contexts and window >= contexts[0]):
        return
    raise ModelError(
        f"{config.name('sliding_window')} is {shown(window)}; Hearth's {family.name} has no window "
        "of attention, set it to null if the model was trained without one"
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rope_settings(config: Settings) -> Iterator[Settings]:
    """The config, its settings of ropes, and those of each kind of layer."""
    yield config
    for key in ("rope_parameters", "rope_scaling"):
        section = config.section(key)
        yield section
        for inner, value in section.values.items():
            if isinstance(value, dict):
                yield section.section(inner)
