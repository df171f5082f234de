"""Tokenizer of character-level models: a token for each character that the training text had."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json
from hearth.converter.shown import shown
from hearth.converter.tokenizers.base import Tokenizer

FILE = "characters.json"
_KEY = "characters"
_MAX_BYTES = 64 << 20
_MAX_CHARACTERS = 0x110000


class CharacterTokenizer(Tokenizer):
    """Ids are places in a list of characters. Texts with other characters are refused.

    No token begins or ends a text.
    """

    def __init__(self, characters: Sequence[str], what: str) -> None:
        """what: its source, for errors. Raises ModelError for a list that is not of characters."""
        if not 1 <= len(characters) <= _MAX_CHARACTERS:
            raise ModelError(f"{what} lists {len(characters)} characters")
        for id, character in enumerate(characters):
            if not isinstance(character, str) or len(character) != 1 or _is_half(character):
                raise ModelError(f"{what}: token {id} is {shown(character)}, not a character")
        self._characters = tuple(characters)
        self._ids = {character: id for id, character in enumerate(characters)}
        if len(self._ids) != len(characters):
            raise ModelError(f"{what}: {len(characters) - len(self._ids)} characters occur twice")
        self.vocab_size = len(characters)

    def content(self) -> bytes:
        """Its file's content."""
        text = json.dumps({_KEY: list(self._characters)}, ensure_ascii=False)
        return (text + "\n").encode()

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise ModelError(
                f"the character {error.args[0]!r} is not one of the {self.vocab_size} that the "
                "model was trained on; leave it out"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        return self._name(token).encode()

    def _name(self, token: int) -> str:
        return self._characters[token] if 0 <= token < self.vocab_size else ""


def load_characters(path: Path) -> CharacterTokenizer:
    """Load a characters.json: an object with the list `characters`. Raises ModelError."""
    characters: Any = read_json(path, _MAX_BYTES).get(_KEY)
    if not isinstance(characters, list):
        raise ModelError(f"{path} has no list of {_KEY}")
    return CharacterTokenizer(characters, str(path))


def _is_half(character: str) -> bool:
    """True for half of a surrogate pair, which no text can hold."""
    return 0xD800 <= ord(character) < 0xE000
