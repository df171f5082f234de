"""The files beside a vocabulary, read for settings.py. All optional."""

from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json
from hearth.converter.tokenizers.settings import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
    CHAT_TEMPLATES,
    CONFIG,
    GENERATION,
    MODEL_CONFIG,
    SPECIAL_TOKENS,
    Settings,
    TokenizerFiles,
    resolve,
)

_MAX_BYTES = 32 << 20
_MAX_TEMPLATES = 64


def read_settings(directory: Path, bos_id: int | None, eos_ids: frozenset[int]) -> Settings:
    """Read and resolve the settings of a tokenizer's directory.

    bos_id, eos_ids: as the model's config names them, where it was read already. Raises ModelError
    for damaged files.
    """
    try:
        return resolve(_read(directory), bos_id, eos_ids)
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from error


def settings_files(directory: Path) -> list[str]:
    """Names, relative to the directory, of the files beside a vocabulary that are there.

    Without config.json and generation_config.json, which belong to the model.
    """
    names = [CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, CHAT_TEMPLATE, CHAT_TEMPLATE_JSON]
    templates = [f"{CHAT_TEMPLATES}/{path.name}" for path in _templates(directory)]
    return [name for name in (*names, *templates) if (directory / name).is_file()]


def _read(directory: Path) -> TokenizerFiles:
    templates = {path.stem: _text(path) for path in _templates(directory)}
    if (directory / CHAT_TEMPLATE).is_file():
        templates["default"] = _text(directory / CHAT_TEMPLATE)
    return TokenizerFiles(
        model_config=_optional(directory / MODEL_CONFIG),
        generation=_optional(directory / GENERATION),
        config=_optional(directory / CONFIG),
        special_tokens=_optional(directory / SPECIAL_TOKENS),
        added_tokens=_optional(directory / ADDED_TOKENS),
        template_json=_optional(directory / CHAT_TEMPLATE_JSON),
        templates=templates,
    )


def _templates(directory: Path) -> list[Path]:
    found = sorted((directory / CHAT_TEMPLATES).glob("*.jinja"))
    if len(found) > _MAX_TEMPLATES:
        raise ModelError(f"{CHAT_TEMPLATES} has {len(found)} templates; at most {_MAX_TEMPLATES}")
    return found


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, _MAX_BYTES) if path.is_file() else {}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path} has more than {_MAX_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
