"""Vocabularies of models trained on one text: its characters, or a byte-level BPE trained on it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

from export import train_tokenizer
from tokenizers import Tokenizer

CHARACTERS, BPE = "characters.json", "tokenizer.json"


class Vocabulary(ABC):
    """Text to ids. Saved in the folder of the model, where Hearth finds it."""

    size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write its file."""


class Characters(Vocabulary):
    """A token for each character of the text."""

    def __init__(self, characters: list[str]) -> None:
        self.characters = characters
        self.ids = {character: id for id, character in enumerate(characters)}
        self.size = len(characters)

    def encode(self, text: str) -> list[int]:
        return [self.ids[character] for character in text]

    def save(self, folder: Path) -> None:
        text = json.dumps({"characters": self.characters}, ensure_ascii=False)
        (folder / CHARACTERS).write_text(text + "\n", encoding="utf-8")


class BytePairs(Vocabulary):
    """Byte-level BPE of the `tokenizers` library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / BPE))


def make_vocabulary(kind: str, text: str, size: int) -> Vocabulary:
    """kind: "char" or "bpe". size: of a BPE, the most tokens."""
    if kind == "char":
        return Characters(sorted(set(text)))
    return BytePairs(train_tokenizer(text.splitlines(keepends=True), [], size))


def load_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary that was saved in a folder."""
    if (folder / CHARACTERS).is_file():
        stored = json.loads((folder / CHARACTERS).read_text(encoding="utf-8"))
        return Characters(stored["characters"])
    return BytePairs(Tokenizer.from_file(str(folder / BPE)))
