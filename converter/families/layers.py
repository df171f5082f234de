"""Kinds of layers: windows of attention and their ropes; settings that files leave out."""

from collections.abc import Mapping, Sequence
from typing import Any

from hearth.converter.blocks import RopeSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.common import rope_scaling
from hearth.converter.families.rope import make_rope
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown

FULL, WINDOW = "full_attention", "sliding_attention"
_NULL_HAS_MEANING = (
    "sliding_window", "q_lora_rank", "num_key_value_heads", "head_dim",
    "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
# Beginnings of names of tensors that read images, in models whose text part runs.
IMAGE_PARTS = (
    "model.vision_tower.",
    "vision_tower.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
)


def with_defaults(config: Settings, defaults: Mapping[str, Any]) -> Settings:
    """Settings with the family's usual values for those that are absent.

    A null counts as absent, but where transformers gives it a meaning.
    """
    given = {k: v for k, v in config.values.items() if v is not None or k in _NULL_HAS_MEANING}
    return Settings({**defaults, **given})


def window_size(config: Settings, key: str = "sliding_window", usual: int = 0) -> int:
    """Tokens of a window; `usual` where the setting is absent. Raises ModelError below 1."""
    if key not in config:
        return usual
    size = config.integer(key)
    if size < 1:
        raise ModelError(
            f"{config.name(key)} is {size}; a window has at least 1 token, null is for none"
        )
    return size


def windowed_layers(config: Settings, layers: int, usual: Sequence[bool]) -> list[bool]:
    """True for each layer with a window: by layer_types, or as usual.

    Raises ModelError for a layer of another kind.
    """
    names = config.texts("layer_types", layers, [WINDOW if each else FULL for each in usual])
    for layer, name in enumerate(names):
        if name not in (FULL, WINDOW):
            raise ModelError(
                f"{config.name('layer_types')}: layer {layer} is {shown(name)}; this family has "
                f"{FULL} and {WINDOW}"
            )
    return [name == WINDOW for name in names]


def every(period: int, layers: int) -> list[bool]:
    """True for all layers but the last of each `period`. Raises ModelError for a period below 1."""
    if period < 1:
        raise ModelError(f"one of {period} layers is without a window; it must be 1 at least")
    return [(layer + 1) % period != 0 for layer in range(layers)]


def needed_window(
    config: Settings, windowed: Sequence[bool], key: str = "sliding_window", usual: int = 0
) -> int:
    """The window of the layers that have one; 0 where no layer has. Raises ModelError.

    usual: where the setting is absent; 0: it must be there.
    """
    if not any(windowed):
        return 0
    size = window_size(config, key, usual)
    if not size:
        raise ModelError(
            f"{config.name(key)} is missing; {sum(windowed)} of {len(windowed)} layers have a "
            "window"
        )
    return size


def gguf_windowed_layers(metadata: Settings, layers: int, period: int) -> list[bool]:
    """True for each layer with a window: by the metadata's pattern, or all but every period-th."""
    key = "attention.sliding_window_pattern"
    value = metadata.get(key)
    if isinstance(value, list) and all(isinstance(each, bool) for each in value):
        if len(value) < layers:
            raise ModelError(f"{metadata.name(key)} has {len(value)} entries for {layers} layers")
        return [bool(each) for each in value[:layers]]
    return every(metadata.integer(key, period), layers)


def ropes_by_kind(config: Settings, size: int, base: float, window_base: float) -> list[RopeSpec]:
    """The ropes of layers without a window and with one, of heads of `size`.

    In rope_parameters by the kind of layer. In older files rope_theta and rope_scaling are of the
    layers without a window. base, window_base: where the files name none.
    """
    parameters, scaling = config.section("rope_parameters"), config.section("rope_scaling")
    if parameters.values and not any(isinstance(v, dict) for v in parameters.values.values()):
        raise ModelError(
            f"rope_parameters has no {FULL} and {WINDOW}; this family has a rope for each"
        )
    full, window = parameters.section(FULL), parameters.section(WINDOW)
    if scaling.values:
        full = Settings({**full.values, **scaling.values}, label="rope_scaling.")
    named = config.number("rope_theta", base)
    return [
        make_rope(size, full.number("rope_theta", named), rope_scaling(full, config)),
        make_rope(size, window.number("rope_theta", window_base), rope_scaling(window, config)),
    ]
