"""A Hugging Face `config.json`: its family, the model's shape, and token ids.

Reads the forms of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5
(`rope_parameters`, `dtype`). Refuses settings that would silently compute something else.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.families import family_of_config
from hearth.converter.families.base import Family
from hearth.converter.families.neutral import refuse_flags, refuse_other_router, refuse_unread
from hearth.converter.families.settings import Settings
from hearth.converter.families.text_parts import check_text_config, text_settings, tied_by_default
from hearth.converter.files import check_pointer
from hearth.converter.quantized import QUANTIZATION_KEYS, quantization, quantization_beside
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec

_TIED = "tie_word_embeddings"
_MAX_JSON_BYTES = 4 << 20


@dataclass(frozen=True)
class HfConfig:
    """Contents of a config.json and a generation_config.json.

    bos_id, eos_ids: None or empty where the files name none. raw: config.json as read.
    text_part: True if the model also reads images or sound, which Hearth does not.
    tied_if_headless: True if the head is the embedding where files have no head, though the
    configuration does not say so.
    """

    family: Family
    spec: ModelSpec
    bos_id: int | None
    eos_ids: frozenset[int]
    raw: dict[str, Any]
    text_part: bool
    tied_if_headless: bool


def read_json(path: Path, limit: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes. Raises ModelError otherwise."""
    value = read_value(path, limit)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}; an object is needed")
    return value


def read_value(path: Path, limit: int = _MAX_JSON_BYTES) -> Any:
    """Read a JSON value from a file of at most `limit` bytes. Raises ModelError otherwise."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise ModelError(f"{path} has {size} bytes; the limit for such a file is {limit}")
        content = path.read_bytes()
        check_pointer(path, content)
        return json.loads(content)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error


def read_config(directory: Path) -> HfConfig:
    """Read the configuration of a Hugging Face directory.

    Raises:
        ModelError: config.json is absent, damaged, or describes a model that Hearth does not
        support.
    """
    path = directory / "config.json"
    raw = read_json(path)
    if not any(raw.get(key) for key in QUANTIZATION_KEYS):

        def beside(name: str) -> dict[str, Any] | None:
            return read_json(directory / name) if (directory / name).is_file() else None

        found = quantization_beside(beside)
        raw = raw if found is None else {**raw, "quantization_config": dict(found)}
    try:
        family, spec = read_spec(raw, directory.resolve().name)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    text = text_settings(raw) or raw.get("text_config")
    used = {**raw, **text} if isinstance(text, dict) else raw
    bos_id, eos_ids = token_ids(directory, used)
    is_part = isinstance(text, dict)
    return HfConfig(family, spec, bos_id, eos_ids, raw, is_part, tied_by_default(raw))


def token_ids(directory: Path, raw: dict[str, Any]) -> tuple[int | None, frozenset[int]]:
    """The ids that a config.json and the generation_config.json beside it name: BOS, and EOS.

    As in transformers' generation, the BOS of generation_config.json comes first; any EOS ends an
    answer.
    """
    files = [(directory / "config.json", raw)]
    generation = directory / "generation_config.json"
    if generation.is_file():
        files.insert(0, (generation, read_json(generation)))
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    for path, values in files:
        try:
            found, ends = _ids(values, "bos_token_id"), _ids(values, "eos_token_id")
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        bos_id = min(found) if bos_id is None and found else bos_id
        eos_ids |= ends
    return bos_id, eos_ids


def read_spec(raw: dict[str, Any], name: str) -> tuple[Family, ModelSpec]:
    """The family and the shape of a model, from its config.json. Raises ModelError.

    Of a model that also reads images, those of its text part.
    """
    part = text_settings(raw)
    config = Settings(raw if part is None else part)
    family = family_of_config(config)
    refuse_flags(Settings(raw), family)
    text = raw.get("text_config")
    if part is None:
        check_text_config(raw)
    if part is None and isinstance(text, dict):
        kind = text.get("model_type", family.model_types[0])
        if kind not in family.model_types:
            raise ModelError(
                f"text_config.model_type {shown(kind)} is not supported; as the text part of "
                f"{shown(raw.get('model_type'))}, Hearth runs {', '.join(family.model_types)}"
            )
        # Settings of the text part alone; tying may be named outside too.
        tied = {_TIED: raw[_TIED]} if _TIED in raw else {}
        config = Settings(tied | text | (tied if raw.get(_TIED) is True else {}))
    if raw.get("quantization"):
        raise ModelError(
            "the weights are quantized by another tool (quantization); get the f16 or bf16 model, "
            "or a GGUF file of it"
        )
    quantization(raw)
    config = _without_aliases(config, family)
    refuse_unread(config, family)
    assert family.config is not None
    spec = family.config(config, name)
    refuse_other_router(config, spec)
    return family, spec


def _without_aliases(config: Settings, family: Family) -> Settings:
    """Settings by their usual names. Raises ModelError where two names have two values."""
    values = dict(config.values)
    for alias, usual in family.aliases:
        given = values.pop(alias, None)
        if given is None:
            continue
        if values.get(usual) not in (None, given):
            raise ModelError(
                f"{config.name(alias)} is {shown(given)}, but {usual}, which is the same setting, "
                f"is {shown(values[usual])}; remove the wrong one"
            )
        values[usual] = given
    return Settings(values)


def _ids(raw: dict[str, Any], key: str) -> frozenset[int]:
    value = raw.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << 31:
            raise ModelError(f"{key} is {shown(value)}; it must be a token id or a list of them")
    return frozenset(values)
