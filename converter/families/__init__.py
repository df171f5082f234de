"""Families of models, each a file of this folder: nothing else asks which family a model is of."""

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family
from hearth.converter.families.settings import Settings
from hearth.converter.families.text_parts import whole_kinds
from hearth.converter.shown import shown

# One for each file, in the order that errors list them.
_FILES = (
    "llama", "mistral", "qwen", "qwen3_next", "gpt2", "gemma", "gemma4", "gpt_oss", "phi", "glm",
    "deepseek", "smollm", "granite", "olmo",
)  # fmt: skip
# Endings of the names of classes that make text; see also `is_body`.
_TEXT_CLASSES = ("forcausallm", "forconditionalgeneration", "lmheadmodel")


def is_body(name: str) -> bool:
    """True for the name of a class without a head, as checkpoints for embeddings have: Qwen3Model.

    Not for one with a head: GPT2LMHeadModel, Qwen2ForRewardModel.
    """
    lower = name.lower()
    headed = lower.endswith("lmheadmodel") or re.search("for(?!mer)", lower)
    return lower.endswith("model") and not headed


@cache
def families() -> tuple[Family, ...]:
    """All families."""
    return tuple(_families())


def _families() -> Iterator[Family]:
    for name in _FILES:
        module = import_module(f"hearth.converter.families.{name}")
        found = getattr(module, "FAMILIES", None) or (module.FAMILY,)
        yield from found


def family_of_config(config: Settings) -> Family:
    """The family of a config.json. Raises ModelError, with those supported, for another.

    As in transformers, model_type decides, and architectures without it.
    """
    classes = config.get("architectures") or None
    name = classes[0] if isinstance(classes, list) else classes
    kind = config.get("model_type")
    if name is None and kind is None:
        raise ModelError(
            "neither 'architectures' nor 'model_type' is given; is this the config.json of a "
            "language model?"
        )
    # "LLaMAForCausalLM" is in real files. Heads of other tasks do not make text.
    lower = name.lower() if isinstance(name, str) else ""
    text = name is None or lower.endswith(_TEXT_CLASSES) or is_body(lower)
    for family in families():
        of_class = lower in (each.lower() for each in family.classes)
        if (kind in family.model_types and text) or (kind is None and of_class):
            return family
    known = [each for family in families() for each in family.model_types] + [*whole_kinds()]
    found = name if kind in known or kind is None else kind
    raise ModelError(
        f"architecture {shown(found)} is not supported; Hearth runs {', '.join(known)}"
    )


def family_of_gguf(architecture: object) -> Family:
    """The family of a GGUF file's general.architecture. Raises ModelError for another."""
    for family in families():
        if architecture in family.architectures:
            return family
    known = [each for family in families() for each in family.architectures]
    raise ModelError(
        f"architecture {shown(architecture)} is not supported; Hearth runs {', '.join(known)}"
    )
