"""Settings from the files beside a tokenizer: special tokens, BOS, and the chat template.

tokenizer_config.json and special_tokens_map.json of Hugging Face, chat_template.jinja, and the ids
that config.json names. All optional.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
_MAX_BYTES = 32 << 20

# Chat models end their turns with these, besides the one end of text that a GGUF
# file names; and where no file names any, these are what ends a text.
END_NAMES = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
)


@dataclass(frozen=True)
class Settings:
    """bos_id, eos_ids: from the model's configuration, which precedes the tokens' names.

    add_bos: None where no file decides. added: (id, text, special) of added_tokens_decoder.
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool | None = None
    chat_template: str | None = None
    tokenizer_class: str | None = None
    added: tuple[tuple[int, str, bool], ...] = ()

    def special_ids(self, vocabulary: Mapping[str, int]) -> tuple[int | None, frozenset[int]]:
        """(bos_id, eos_ids), looked up by name in the vocabulary where needed."""
        bos_id = self.bos_id
        if bos_id is None and self.bos_token is not None:
            bos_id = vocabulary.get(self.bos_token)
        eos_ids = self.eos_ids
        if self.eos_token is not None and self.eos_token in vocabulary:
            eos_ids |= {vocabulary[self.eos_token]}
        if not eos_ids:
            eos_ids = frozenset(vocabulary[name] for name in END_NAMES if name in vocabulary)
        return bos_id, eos_ids


def read_settings(directory: Path, bos_id: int | None, eos_ids: frozenset[int]) -> Settings:
    """Read the settings of a tokenizer's directory. Raises ModelError for damaged files."""
    config = _optional(directory / CONFIG)
    names = _optional(directory / SPECIAL_TOKENS)
    add_bos = config.get("add_bos_token")
    tokenizer_class = config.get("tokenizer_class")
    return Settings(
        bos_id=bos_id,
        eos_ids=eos_ids,
        bos_token=_text(config.get("bos_token")) or _text(names.get("bos_token")),
        eos_token=_text(config.get("eos_token")) or _text(names.get("eos_token")),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        chat_template=_template(directory, config),
        tokenizer_class=tokenizer_class if isinstance(tokenizer_class, str) else None,
        added=_added(directory / CONFIG, config.get("added_tokens_decoder")),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, _MAX_BYTES) if path.is_file() else {}


def _text(value: Any) -> str | None:
    """A token as its text, or as an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / CHAT_TEMPLATE
    if path.is_file():
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ModelError(f"{path} has more than {_MAX_BYTES} bytes")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
    value = config.get("chat_template")
    if isinstance(value, list):  # several by name; "default" is the one for conversations
        named = {
            item.get("name"): item.get("template")
            for item in value
            if isinstance(item, dict) and isinstance(item.get("name"), str)
        }
        value = named.get("default")
    return value if isinstance(value, str) else None


def _added(path: Path, value: Any) -> tuple[tuple[int, str, bool], ...]:
    if value is None:
        return ()
    added = []
    for id, token in value.items() if isinstance(value, dict) else ():
        text = _text(token)
        if not (id.isascii() and id.isdecimal() and len(id) < 10) or text is None:
            raise ModelError(f"{path}: added_tokens_decoder has a damaged entry {id[:40]!r}")
        special = token.get("special", False) if isinstance(token, dict) else True
        added.append((int(id), text, bool(special)))
    return tuple(added)
