"""Tokenizers of the `tokenizers` library.

They come from tokenizer.json, or are byte-level BPE built from vocabulary and merges (files of
GPT-2
and Qwen2, and those inside GGUF)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.byte_level import piece_bytes
from hearth.converter.tokenizers.patterns import BytePairRules
from hearth.converter.tokenizers.settings import Settings

_MAX_BYTES = 256 << 20
# The library keeps lists as long as the highest id.
_MAX_TOKENS = 1 << 22


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, with its decoder's rules applied token by token."""

    def __init__(self, inner: library.Tokenizer, settings: Settings, what: str) -> None:
        """what: its source, for errors."""
        with library_errors(what):
            decoder = inner.decoder
            state = None if decoder is None else json.loads(decoder.__getstate__())
            self._rules = _DecoderRules(state, what)
            added = inner.get_added_tokens_decoder()
            vocabulary = inner.get_vocab(with_added_tokens=True)
            begin = inner.encode("", add_special_tokens=True).ids
        if not vocabulary:
            raise ModelError(f"{what} has an empty vocabulary")
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > _MAX_TOKENS:
            raise ModelError(
                f"{what} has a token of id {self.vocab_size - 1}; ids are below {_MAX_TOKENS}"
            )
        self._inner = inner
        self._literal: library.Tokenizer | None = None
        self._added = {id: (token.content, token.special) for id, token in added.items()}
        self.strip_space = self._rules.strip_space
        self.bos_id, self.eos_ids = settings.special_ids(vocabulary)
        if self.bos_id is None and begin and self._is_control(begin[0]):
            self.bos_id = begin[0]
        adds = bool(begin) and begin[0] == self.bos_id
        self.add_bos = adds if settings.add_bos is None else settings.add_bos
        self.chat_template = settings.chat_template
        self._bytes: dict[int, bytes] = {}

    def _is_control(self, token: int) -> bool:
        return self._added.get(token, ("", False))[1]

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        inner = self._inner
        if not parse_special:
            if self._literal is None:
                literal = library.Tokenizer.from_str(inner.to_str())
                literal.encode_special_tokens = True
                self._literal = literal
            inner = self._literal
        ids: list[int] = inner.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._lookup(token)
        return known

    def _lookup(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            return b""
        if token in self._added:
            content, special = self._added[token]
            return b"" if special else content.encode()
        piece = self._inner.id_to_token(token)
        return b"" if piece is None else self._rules.piece_bytes(piece)

    def _name(self, token: int) -> str:
        if token in self._added:
            return self._added[token][0]
        return self._inner.id_to_token(token) or "" if 0 <= token < self.vocab_size else ""


class _DecoderRules:
    """A tokenizer.json's decoder, applied to a single token.

    Two families are supported: byte-level (GPT-2), and SentencePiece's (a mark for spaces, <0xNN>
    for bytes). Both work token by token, except for the text's first space.
    """

    def __init__(self, decoder: Any, what: str) -> None:
        steps = decoder.get("decoders") if isinstance(decoder, dict) else None
        parts = steps if isinstance(steps, list) else [decoder]
        self.byte_level = False
        self.byte_fallback = False
        self.strip_space = False
        self.replacements: list[tuple[str, str]] = []
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "ByteLevel":
                self.byte_level = True
            elif kind == "ByteFallback":
                self.byte_fallback = True
            elif kind == "Replace" and "String" in part["pattern"]:
                self.replacements.append((part["pattern"]["String"], part["content"]))
            elif kind == "Metaspace":
                self.replacements.append((part["replacement"], " "))
                self.strip_space |= part.get("prepend_scheme") != "never"
            elif kind == "Strip" and (part["content"], part["stop"]) == (" ", 0):
                self.strip_space |= part["start"] > 0
            elif kind != "Fuse":
                raise ModelError(
                    f"{what} decodes by {kind!r}, which Hearth does not know; it knows ByteLevel, "
                    "and Replace, ByteFallback, Fuse, Strip and Metaspace"
                )

    def piece_bytes(self, piece: str) -> bytes:
        if self.byte_level:
            return piece_bytes(piece)
        if self.byte_fallback and len(piece) == 6 and piece[:3] == "<0x" and piece[5] == ">":
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                pass
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode()


def load_tokenizer_json(path: Path, settings: Settings) -> LibraryTokenizer:
    """Load a tokenizer.json.

    Raises ModelError where it is damaged or has an unsupported decoder.
    """
    with library_errors(f"cannot read {path}"):
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelError(f"{path} has {size} bytes; the limit for a tokenizer is {_MAX_BYTES}")
        inner = library.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        # Files saved by a training run may truncate or pad every text.
        inner.no_truncation()
        inner.no_padding()
    return LibraryTokenizer(inner, settings, str(path))


def byte_pair_tokenizer(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    rules: BytePairRules,
    added: Iterable[tuple[int, str, bool]],
    settings: Settings,
    what: str,
) -> LibraryTokenizer:
    """A byte-level BPE tokenizer from its parts.

    added: (id, text, special) of tokens that are matched before the text is split.
    """
    with library_errors(what):
        inner = library.Tokenizer(
            models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.ignore_merges)
        )
        if rules.nfc:
            inner.normalizer = normalizers.NFC()
        splits = [
            pre_tokenizers.Split(library.Regex(pattern), "isolated") for pattern in rules.patterns
        ]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        inner.decoder = decoders.ByteLevel()
        tokens = sorted(added)
        for special in (True, False):
            inner.add_tokens(
                [
                    library.AddedToken(text, special=special, normalized=False)
                    for _, text, is_special in tokens
                    if is_special == special
                ]
            )
        for id, text, _ in tokens:
            if inner.token_to_id(text) != id:
                raise ModelError(
                    f"{what}: token {text!r} should have id {id}, but gets "
                    f"{inner.token_to_id(text)}; the vocabulary has a gap"
                )
    return LibraryTokenizer(inner, settings, what)
