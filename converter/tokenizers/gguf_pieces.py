"""SentencePiece vocabularies inside GGUF files, read as llama.cpp reads them.

The file has no normalizer, and its added tokens are pieces. So a text is cut at its control and
user-defined tokens first. Each part between them begins with a space, as in the `legacy` tokenizers
that the models were trained with. The library merges the parts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sentencepiece

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.piece_kinds import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from hearth.converter.tokenizers.sentencepiece import build_model
from hearth.converter.tokenizers.settings import Settings

_SPACE = "\u2581"
_WHITE_SPACE = " \t\n\v\f\r"
_BYTE_NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}


@dataclass(frozen=True)
class Pieces:
    """A vocabulary: for each id its text, its score and its kind (piece_kinds).

    unknown_id: the token of a character that has none. space_prefix: parts of a text begin with a
    space. stripped: names of control tokens that take the white space behind them.
    """

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    unknown_id: int | None = None
    space_prefix: bool = True
    stripped: frozenset[str] = frozenset()


class GgufPieceTokenizer(Tokenizer):
    """Pieces merged by the sentencepiece library, between tokens found by name."""

    def __init__(self, pieces: Pieces, settings: Settings, what: str) -> None:
        """what: its source, for errors. Raises ModelError."""
        texts, kinds = pieces.texts, pieces.kinds
        self.vocab_size = len(texts)
        self._texts = texts
        self._kinds = kinds
        self._unknown_id = pieces.unknown_id
        self._space = " " if pieces.space_prefix else ""
        self.strip_space = pieces.space_prefix
        with library_errors(f"{what} has a damaged tokenizer"):
            self._inner = sentencepiece.SentencePieceProcessor(model_proto=_model(pieces))
        named = [(text, id) for id, text in enumerate(texts) if text]
        ends = {*settings.eos_ids, settings.bos_id}
        hidden = {
            text: id
            for text, id in named
            if kinds[id] in (CONTROL, UNKNOWN) or (kinds[id] == USER_DEFINED and id in ends)
        }
        shown = {text: id for text, id in named if kinds[id] == USER_DEFINED and text not in hidden}
        self._ids = hidden | shown
        self._at_shown, self._at_all = _pattern(shown), _pattern(self._ids)
        self._stripped = pieces.stripped
        self.bos_id, self.eos_ids = settings.bos_id, settings.eos_ids
        self.add_bos = settings.add_bos is not False
        self.chat_template = settings.chat_template
        self.named_templates = settings.named_templates
        self.special_tokens = settings.special_tokens
        self.gap_ids = settings.gap_ids
        self.control_ids = hidden
        self.suffix = settings.suffix(dict(named))

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        return self._parts(self._cut(text, self._at_all if parse_special else self._at_shown))

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        parts: list[str | int] = []
        for piece in pieces:
            parts += [piece] if isinstance(piece, int) else self._cut(piece, self._at_shown)
        return self._parts(parts)

    def _cut(self, text: str, pattern: re.Pattern[str] | None) -> list[str | int]:
        """The text between tokens, and the tokens' ids."""
        parts = [text] if pattern is None else pattern.split(text)
        return [self._ids[part] if place % 2 else part for place, part in enumerate(parts)]

    def _parts(self, parts: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        before: str | int = ""
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                if isinstance(before, int) and self._texts[before] in self._stripped:
                    part = part.lstrip(_WHITE_SPACE)
                if part:
                    ids += map(self._known, self._inner.encode(self._space + part))
            before = part
        return [id for id in ids if id >= 0]

    def _known(self, id: int) -> int:
        """The id; for the library's own unknown piece the vocabulary's, or -1 without one."""
        if id < self.vocab_size:
            return id
        return -1 if self._unknown_id is None else self._unknown_id

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            return b""
        kind, text = self._kinds[token], self._texts[token]
        if kind in (CONTROL, UNKNOWN, UNUSED):
            return b""
        if kind == BYTE:
            return bytes([_BYTE_NAMES.get(text, 0)])
        return text.replace(_SPACE, " ").encode()

    def _name(self, token: int) -> str:
        return self._texts[token] if 0 <= token < self.vocab_size else ""


def _model(pieces: Pieces) -> bytes:
    """The library's model: pieces that merge are normal, all others are control pieces.

    One piece more is the unknown one: the library requires exactly one, wherever the file has it.
    """
    merged = {NORMAL: NORMAL, USER_DEFINED: NORMAL, UNUSED: NORMAL, BYTE: BYTE}
    return build_model(
        [*pieces.texts, "<hearth_unknown>"],
        [*pieces.scores, 0.0],
        [*(merged.get(kind, CONTROL) for kind in pieces.kinds), UNKNOWN],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        bos_id=-1,
        eos_id=-1,
    )


def _pattern(names: dict[str, int]) -> re.Pattern[str] | None:
    """A pattern that splits at names, the longest first; its group is the name. None without."""
    if not names:
        return None
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def with_byte_kinds(texts: list[str], kinds: list[int]) -> list[int]:
    """The kinds, where <0x00> to <0xFF> are bytes by their names, if all of them are there.

    Raises ModelError for a token of kind BYTE whose name is none of them.
    """
    for id, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if kind == BYTE and text not in _BYTE_NAMES:
            raise ModelError(f"token {id} is of type byte, but its name is {text[:40]!r}")
    if not set(_BYTE_NAMES) <= set(texts):
        return [CONTROL if kind == BYTE else kind for kind in kinds]
    return [BYTE if text in _BYTE_NAMES else kind for text, kind in zip(texts, kinds, strict=True)]
